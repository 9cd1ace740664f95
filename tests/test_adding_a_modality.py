"""The example of docs/adding_a_modality.md, from outside the package: trained, killed, resumed and studied."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from peftjax import cli, tasks
from peftjax import config as configs
from peftjax.data import Header, Input
from peftjax.train import assemble, finished, loop
from peftjax.train.checkpoint import Checkpoints

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "spectra"
PULSES = ROOT / "examples" / "pulses" / "pulses.py"
SHORT = ("train.steps=12", "train.save_every=4", "train.log_every=2", "train.eval_every=6", "train.tensorboard=False")

# Dies as step 7 has been dispatched: the newest checkpoint is that of step 4, which is written beside the steps and may
# need some of their time, and later rows are on disk.
KILLED = """
import os, signal, time
from pathlib import Path
from peftjax import cli
from peftjax.train.watch import Watch

plain = Watch.dispatched

def dispatched(self, step, *rest, **more):
  if step == 7:
    end = time.monotonic() + 300.0
    while not Path({folder!r}, "checkpoints", "4").is_dir() and time.monotonic() < end:
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
  return plain(self, step, *rest, **more)

Watch.dispatched = dispatched
cli.main({verb!r})
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))


def config_of(*overrides):
  return configs.load(str(EXAMPLE / "config.py"), (*SHORT, *overrides))


def test_the_page_shows_the_files_of_spectra():
  page = (ROOT / "docs" / "adding_a_modality.md").read_text()
  shown = dict(re.findall(r"```python\n# examples/spectra/(\w+)\.py\n(.*?)```", page, re.DOTALL))
  assert set(shown) == {f"spectra_{part}" for part in ("source", "input", "task", "evaluator")}
  for name, code in shown.items():
    whole = (EXAMPLE / f"{name}.py").read_text()
    assert whole.endswith(code) and len(whole.splitlines()) < 75, name


def test_the_page_shows_the_file_of_pulses_and_what_labels_become():
  page = (ROOT / "docs" / "adding_a_modality.md").read_text()
  shown = re.findall(r"```python\n# examples/pulses/pulses\.py\n(.*?)```", page, re.DOTALL)
  whole = PULSES.read_text()
  assert len(shown) == 4 and all(code in whole for code in shown)
  assert len(shown) + 4 == page.count("```python")
  for kind, expected in (("class", "int32 [B]"), ("classes", "float32 [B, C]"), ("number", "float32 [B]")):
    fields = Header("own", label_names=() if kind == "number" else ("a", "b"), fields=("x", "label"), label_kind=kind)
    spec = Input(configs.default(), fields, tasks.make("masked_lm")).label_spec(5)["labels"]
    sizes = {5: "B", 2: "C"}
    told = f"{spec.dtype} [{', '.join(sizes[one] for one in spec.shape)}]"
    assert told == expected and re.search(rf"\| `{kind}` \|[^|]*\| {re.escape(expected)} \|", page), kind


def test_pulses_have_several_lengths_a_number_and_a_model_of_their_own(tmp_path, capsys):
  flags = [f"--config={PULSES}", *(f"--config.{one}" for one in SHORT)]
  assert cli.main(["train", f"--workdir={tmp_path / 'run'}", "--json", *flags]) == 0
  summary = json.loads(capsys.readouterr().out)
  assert {one["shape"] for one in summary["compiled"]} <= {"32x8", "32x16", "32x32"} and len(summary["compiled"]) > 1
  kinds = {name: one["kind"] for name, one in summary["metrics_spec"].items()}
  assert kinds == {"loss": "per-example", "off": "ratio", "spearman": "corpus"}
  rows = [json.loads(line) for line in (tmp_path / "run" / "timing.jsonl").read_text().splitlines()]
  assert all(row["pulses_per_second"] > 0 for row in rows)
  batch = next(iter(loop.make_run(configs.load(str(PULSES), SHORT)).loaders.evals["test"]))
  assert batch["labels"].dtype == "float32" and (batch["charges"][~batch["seen"]] == -1).all()
  assert (batch["charges"][batch["seen"]] > 0).all() and batch["charges"].shape[1] in (8, 16, 32)


def test_every_verb_means_the_same_and_nothing_is_measured(tmp_path):
  config = config_of()
  run = loop.make_run(config)
  setting = assemble.setting(config)
  assert setting.task.name == run.task.name and setting.task.label_names == ("blue", "green", "red")
  assert run.loaders.train.measured is None and not (tmp_path / "cache" / "lengths").exists()
  batch = next(run.loaders.train)
  spec = setting.inputs().batch_spec(24)
  assert {name: (one.shape, one.dtype) for name, one in batch.items()} == {
    name: (one.shape, one.dtype) for name, one in spec.items()
  }


def test_it_trains_and_is_evaluated_and_resumes_to_the_same_bytes(tmp_path):
  """Augmentation and the loss draw random numbers; a kill between two steps changes none of them."""
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  summary = loop.train(config_of(), whole)
  assert summary["main_metric"] == "accuracy" and summary["metrics_spec"]["far"]["higher_is_better"] is False
  assert set(summary["metrics"]["test"]) == {"loss", "accuracy", "far"}
  assert (whole / "far-test.json").is_file()
  plain = loop.train(config_of("input.noise=0.0"), tmp_path / "plain")
  assert plain["train"]["loss"] != summary["train"]["loss"]

  verb = ["train", f"--config={EXAMPLE / 'config.py'}", f"--workdir={parts}", *(f"--config.{one}" for one in SHORT)]
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  killed = subprocess.run(
    [sys.executable, "-c", KILLED.format(verb=verb, folder=str(parts))], env=environment, check=False
  )
  assert killed.returncode == -9
  with Checkpoints(parts / "checkpoints") as checkpoints:
    assert checkpoints.steps() == [4]
  loop.train(config_of(), parts)
  for name in ("metrics.jsonl", "predictions-test.npz", "far-test.json"):
    assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
  evaluated = finished.evaluate_run(parts)["metrics"]["test"]
  assert evaluated["far"] == summary["metrics"]["test"]["far"]
  assert evaluated["accuracy"] == pytest.approx(summary["metrics"]["test"]["accuracy"])


def test_it_is_studied(tmp_path, capsys):
  flags = [f"--config.{one}" for one in (*SHORT, "compare.seeds=(0,)", "compare.dimensions=('overfitting',)")]
  code = cli.main(["compare", f"--config={EXAMPLE / 'config.py'}", f"--workdir={tmp_path / 'study'}", "--json", *flags])
  assert code == 0, capsys.readouterr().err
  records = [json.loads(line) for line in (tmp_path / "study" / "results.jsonl").read_text().splitlines()]
  assert {record["row"] for record in records} == {"full", "lora"}
  rows = json.loads(capsys.readouterr().out)["rows"]
  assert all(0 <= row["low"] < row["estimate"] < row["high"] <= 1 for row in rows)  # from the examples of one seed
  page = (tmp_path / "study" / "report.html").read_text()
  assert "tokens of a row" not in page
