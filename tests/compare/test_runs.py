"""The study on real training runs of a tiny BERT: killed in the middle of a trial, resumed, with real step times."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peftjax import config as config_lib
from peftjax.compare.study import run_study
from peftjax.compare.training import JaxTrainer
from peftjax.errors import UserError
from peftjax.train.splits import SplitScores
from tests.train.conftest import write_data, write_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
  folder = tmp_path_factory.mktemp("material")
  write_model(folder / "model")
  write_data(folder / "reviews.csv")
  return folder


@pytest.fixture
def config(material, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(material / "cache"))
  return make_config(material)


def make_config(material):
  config = config_lib.default()
  config.model.path = str(material / "model")
  config.data.name = f"csv:{material / 'reviews.csv'}"
  config.data.update({"max_length": 16, "buckets": (10,)})
  config.train.update({"batch_size": 8, "eval_batch_size": 16, "steps": 8, "save_every": 2, "log_every": 1})
  config.train.tensorboard = False
  config.optim.learning_rate = 2e-2
  config.compare.methods.update({"full": {}, "lora": {"method": {"name": "lora", "rank": 2}}})
  config.compare.baseline = ""
  config.compare.timing_rounds = 3
  return config


@pytest.fixture(scope="module")
def unbroken(material, tmp_path_factory):
  folder = tmp_path_factory.mktemp("unbroken")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PEFTJAX_CACHE", str(material / "cache"))
    return folder, run_study(make_config(material), folder)


def test_real_runs_fill_the_table(unbroken):
  folder, outcome = unbroken
  assert outcome.exit_code == 0
  rows = {row.row: row for row in outcome.summary.rows}
  assert set(rows) == {"full", "lora"} and outcome.summary.seeds == (0, 1)
  assert outcome.summary.examples and rows["lora"].seeds == (0, 1)
  assert outcome.summary.spec.share and set(outcome.summary.metrics_spec) == {"accuracy", "macro_f1", "mcc", "loss"}
  assert rows["lora"].parameters.adapter == 2 * 2 * 2 * (8 + 8)  # layers, query and value, rank 2, in + out
  for row in rows.values():
    held = row.bytes
    assert held.gradients == 4 * row.parameters.trainable
    assert held.optimizer >= 2 * held.gradients and held.activations > 0
    assert row.step_ratio.estimate > 0 and row.steps == 8
  assert rows["lora"].flops_ratio < 1 == rows["full"].flops_ratio
  saved = folder / "runs/lora/seed-0/adapter/adapter_model.safetensors"
  assert rows["lora"].bytes.adapter_file == saved.stat().st_size
  assert (folder / "report.html").is_file()
  curve = json.loads((folder / "results.jsonl").read_text().splitlines()[0])["curve"]
  assert [step for step, _ in curve] == list(range(1, 9))


@pytest.mark.slow
def test_a_study_killed_in_a_trial_ends_as_an_unbroken_one(unbroken, material, tmp_path):
  script = """
import sys
from pathlib import Path
from peftjax.compare.study import run_study
from tests.compare.test_runs import make_config
run_study(make_config(Path(sys.argv[1])), sys.argv[2])
"""
  environment = os.environ | {"PEFTJAX_CACHE": str(material / "cache"), "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-c", script, str(material), str(tmp_path)]
  process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
  while process.poll() is None and not list(tmp_path.glob("runs/lora/seed-0/checkpoints/4")):
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (tmp_path / "summary.json").exists()
  run_study(make_config(material), tmp_path)
  assert outcomes(tmp_path) == outcomes(unbroken[0])


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_request_to_end_that_comes_too_late_for_a_run_ends_the_study(config, tmp_path, monkeypatch, seeds):
  plain = SplitScores.after

  def asked_during_the_last_evaluation(self, step, *trees):
    if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
      os.kill(os.getpid(), signal.SIGTERM)
    return plain(self, step, *trees)

  monkeypatch.setattr(SplitScores, "after", asked_during_the_last_evaluation)
  config.method.name = "lora"
  config.train.steps = 2
  trials = []
  for seed in seeds:
    trials.append(config.copy_and_resolve_references())
    trials[-1].seed = seed
  folders = [tmp_path / str(seed) for seed in seeds]
  with pytest.raises(SystemExit) as caught:
    JaxTrainer().train(trials, folders)
  assert caught.value.code == 143
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  assert all((folder / "summary.json").is_file() for folder in folders)
  monkeypatch.setattr(SplitScores, "after", None)  # nothing is trained once more
  assert [summary["seed"] for summary in JaxTrainer().train(trials, folders)] == list(seeds)


def outcomes(folder):
  """What may not depend on when a study was killed: all but the clock."""
  lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
  return [{key: value for key, value in line.items() if "seconds" not in key} for line in lines]


def test_a_misspelt_target_costs_nothing(config, tmp_path):
  config.compare.methods.lora = {"method": {"name": "lora", "targets": ("qeury",)}}
  with pytest.raises(UserError, match=r"compare\.methods\.lora: .*qeury.*query"):
    run_study(config, tmp_path)
  assert not list(tmp_path.iterdir())


def test_a_missing_file_is_a_mistake_and_no_failure(config, tmp_path):
  config.data.name = "csv:/nowhere/reviews.csv"
  with pytest.raises(UserError, match="reviews"):
    run_study(config, tmp_path)


def test_rows_are_checked_without_weights(material, config, tmp_path):
  (tmp_path / "config.json").write_text((material / "model/config.json").read_text())
  config.model.path = str(tmp_path)
  JaxTrainer().check(config)
