"""The command line on a model of one's own: examples/own_model, trained, evaluated, inspected, planned and studied."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftjax import cli
from peftjax import config as configs
from peftjax.train import finished, loop
from peftjax.train.checkpoint import Checkpoints
from tests.test_adding_a_modality import KILLED

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "examples" / "own_model" / "config.py"
SHORT = ("train.steps=8", "train.save_every=4", "train.log_every=2", "train.eval_every=8", "train.batch_size=16",
         "train.eval_batch_size=64", "train.tensorboard=False", "train.final_splits=('validation',)")  # fmt: skip
TRUST = ("grid_model:make_model", "grid_source:walks", "grid_task:Cloning", "grid_input:Planes")
KINDS = ("grid_model", "grid_linen", "grid_nnx", "grid_equinox", "grid_haiku")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))


def flags(*more):
  return [f"--config={CONFIG}:lora", *(f"--config.{one}" for one in (*SHORT, *more))]


def model_of(kind):
  """The overrides that take the model of a library."""
  if kind in ("grid_equinox", "grid_haiku"):
    pytest.importorskip(kind.removeprefix("grid_"))
  targets = {"grid_model": "('layers.*',)"}.get(kind, "all-linear")
  return f"model.path={kind}:make_model", f"method.targets={targets}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_library_is_inspected_from_shapes(kind, capsys):
  assert cli.main(["inspect", "--json", *flags(*model_of(kind))]) == 0, capsys.readouterr().err
  found = json.loads(capsys.readouterr().out)
  assert found["head"] > 0 and found["adapter"] > 0
  rows = {row["path"]: row for row in found["sites"]}
  assert {row["kind"] for row in rows.values()} == {"linear", "conv", "bias"}


def test_it_trains_and_is_evaluated_by_who_vouches_for_it(tmp_path, capsys):
  folder = tmp_path / "run"
  assert cli.main(["train", f"--workdir={folder}", *flags()]) == 0, capsys.readouterr().err
  summary = json.loads((folder / "summary.json").read_text())
  assert summary["main_metric"] == "optimal"
  code = ("import sys; from peftjax import cli; sys.path.append(sys.argv[1]); "
          "raise SystemExit(cli.main(sys.argv[2:]))")  # fmt: skip
  verb = [sys.executable, "-c", code, str(CONFIG.parent), "eval", f"--workdir={folder}", "--json"]
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  refused = subprocess.run(verb, env=environment, capture_output=True, text=True, check=False)
  assert refused.returncode == 2 and "--trust=grid_" in refused.stderr
  trusted = subprocess.run(
    [*verb, f"--trust={','.join(TRUST)}"], env=environment, capture_output=True, text=True, check=False
  )
  assert trusted.returncode == 0, trusted.stderr
  metrics = json.loads(trusted.stdout)["metrics"]["validation"]
  assert metrics["optimal"] == pytest.approx(summary["metrics"]["validation"]["optimal"])
  _, step, model = finished.load_model(folder, trust=TRUST)
  assert step == 8 and model.methods[0].name == "lora"
  written = finished.export(folder, "peft", tmp_path / "adapter", trust=TRUST)
  assert written["bytes"] > (tmp_path / "adapter" / "adapter.safetensors").stat().st_size


def test_what_a_run_of_full_fine_tuning_is_told_to_export_goes_on(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  whole = ("method.name=full", "train.steps=2", "train.eval_every=2", "train.save_every=2")
  config = [f"--config={CONFIG}:full", *(f"--config.{one}" for one in (*SHORT, *whole))]
  assert cli.main(["train", "--workdir=run", *config]) == 0
  told = capsys.readouterr().out.partition("peftjax export ")[2].split()
  assert cli.main(["export", *(word.replace("FOLDER", "START").rstrip(".") for word in told)]) == 0
  capsys.readouterr()
  assert cli.main(["train", "--workdir=run", *config]) == 0
  line = capsys.readouterr().err
  assert "--format=peft --out=START" in line and "train with --config.model.adapter=START" in line
  assert cli.main(["train", "--workdir=more", *config, "--config.model.adapter=START"]) == 0
  capsys.readouterr()
  assert cli.main(["inspect", "--json", *config, "--config.model.adapter=START"]) == 0
  assert json.loads(capsys.readouterr().out)["methods"] == ["full"]
  assert cli.main(["inspect", *config, "--config.model.adapter=GONE"]) == 2
  assert cli.main(["export", "--workdir=run", "--format=merged", "--out=M", f"--trust={CONFIG.parent}"]) == 2
  assert "peftjax export --format=peft" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(tmp_path):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  loop.train(configs.load(f"{CONFIG}:lora", SHORT), whole)
  verb = ["train", f"--workdir={parts}", *flags()]
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", KILLED.format(verb=verb, folder=str(parts))]
  killed = subprocess.run(command, env=environment, check=False)
  assert killed.returncode == -9
  with Checkpoints(parts / "checkpoints") as checkpoints:
    assert checkpoints.steps() == [4]
  loop.train(configs.load(f"{CONFIG}:lora", SHORT), parts)
  for name in ("metrics.jsonl", "predictions-validation.npz"):
    assert (parts / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_library_is_planned_and_studied(kind, tmp_path, capsys):
  model = model_of(kind)
  assert cli.main(["plan", "--json", *flags(*model)]) == 0, capsys.readouterr().err
  assert json.loads(capsys.readouterr().out)["bytes_per_device"]["total"] > 0
  targets = f"compare.methods.lora.{model[1]}"  # of the study's row, as of the method
  more = (*model, targets, "compare.seeds=(0,)", "compare.dimensions=('overfitting',)")
  assert cli.main(["compare", f"--workdir={tmp_path / 'study'}", "--json", *flags(*more)]) == 0, capsys.readouterr().err
  records = [json.loads(line) for line in (tmp_path / "study" / "results.jsonl").read_text().splitlines()]
  assert {record["row"] for record in records} == {"full", "lora"}


def test_a_function_that_gives_no_model_is_one_line(capsys):
  assert cli.main(["inspect", *flags("model.path=grid_source:walks")]) == 2
  assert cli.main(["inspect", *flags("model.path=grid_model:make_mode")]) == 2
  assert "make_model" in capsys.readouterr().err.splitlines()[-1]
