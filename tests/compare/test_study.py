"""A study of trials that take no time: killed and resumed, with failures, and over a folder of another study."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from peftjax import config as config_lib
from peftjax.compare.study import run_study
from peftjax.errors import UserError
from peftjax.stored import plain
from tests.compare.synthetic import SPECS

ACCURACY = {"full": 0.85, "head": 0.7, "lora": 0.83}


def config(**methods):
  made = config_lib.default()
  made.compare.methods.update(methods or {name: {} for name in ACCURACY})
  made.compare.seeds = (0, 1, 2)
  made.compare.timing_rounds, made.compare.dimensions = 3, ()
  return made


def train_one(config, folder):
  """What a real run leaves: predictions, metrics, step times, and the summary it returns."""
  name, seed = config.method.name, config.seed
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng([seed, len(name)])
  correct = (rng.random(200) < ACCURACY[name]).astype(np.int32)
  np.savez(folder / "predictions-test.npz", index=np.arange(200), correct=correct)
  rows = [{"step": step, "loss": 1 / step} for step in range(1, 11)]
  rows.append({"step": 10, "split": "test", "accuracy": float(correct.mean())})
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (folder / "timing.jsonl").write_text(json.dumps({"step": 10, "step_seconds": 0.1}) + "\n")
  trainable = 1000 if name == "full" else 10
  return {
    "step": 10,
    "main_metric": "accuracy",
    "metrics_spec": plain(SPECS),
    "metrics": {"test": {"accuracy": float(correct.mean())}},
    "parameters": {"trainable": trainable, "adapter": trainable, "head": 0, "total": 1000, "percent": trainable / 10},
    "bytes": {"weights": 4000, "gradients": 4 * trainable, "optimizer": 8 * trainable, "adapter": 40, "head": 8},
    "compiled": [{"shape": "4x8", "flops": 10 * trainable, "temp_bytes": 77}],
    "step_seconds": 0.1,
    "learning_rates": {"adapter": 0.01, "head": 0.02},
  }


class Trainer:
  """Trains in no time; an error is that run's outcome."""

  def __init__(self, train=train_one):
    self.train_one = train

  def check(self, config):
    pass

  def train(self, configs, folders):
    return [self.tried(config, folder) for config, folder in zip(configs, folders)]

  def tried(self, config, folder):
    try:
      return self.train_one(config, folder)
    except Exception as error:
      return error

  def step(self, config):
    return lambda: sum(range(1000))

  def step_flops(self, config):
    raise NotImplementedError

  def measure(self, dimensions, config, folder, study):
    return [None for _ in dimensions]


def run(made, folder, train=train_one):
  return run_study(made, folder, Trainer(train))


def results(folder):
  return (folder / "results.jsonl").read_text()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  folder = tmp_path_factory.mktemp("unbroken")
  outcome = run(config(), folder)
  assert outcome.exit_code == 0
  return folder, outcome


def test_a_study_leaves_its_files_and_its_answer(unbroken):
  folder, outcome = unbroken
  lines = [json.loads(line) for line in results(folder).splitlines()]
  assert [line["run"] for line in lines[:4]] == ["full/seed-0", "head/seed-0", "lora/seed-0", "full/seed-1"]
  assert len(lines) == 9
  assert lines[2]["bytes"]["adapter_file"] == 48 and lines[2]["learning_rate"] == 0.01
  assert lines[2]["train_seconds"] == pytest.approx(1.0)
  assert json.loads((folder / "summary.json").read_text()) == outcome.summary.to_json()
  assert len(json.loads((folder / "claims.json").read_text())) == 32
  assert (folder / "report.html").is_file() and (folder / "report.md").is_file()
  lora = outcome.summary.row("lora")
  assert outcome.summary.row("head").difference.verdict == "worse"
  assert lora.step_ratio.estimate > 0 and lora.flops_ratio == 0.01


@pytest.mark.parametrize("before", [True, False], ids=["before-training", "after-training"])
@pytest.mark.parametrize("deaths", [(0, 3, 4), (8,)])
def test_a_study_killed_and_resumed_equals_an_unbroken_one(unbroken, tmp_path, before, deaths):
  """The process ends at once, without a word to anybody, in the trials whose numbers are `deaths`."""
  script = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.compare import test_study as one
trained = 0
def train(config, folder):
  global trained
  if {before} and trained == int(sys.argv[1]): os._exit(9)
  summary = one.train_one(config, folder)
  if not {before} and trained == int(sys.argv[1]): os._exit(9)
  trained += 1
  return summary
one.run(one.config(), Path({str(tmp_path)!r}), train)
"""
  for death in deaths:
    finished = len(list(tmp_path.glob("runs/*/*/record.json")))
    done = subprocess.run(
      [sys.executable, "-c", script, str(max(death - finished, 0))], check=False, capture_output=True
    )
    assert done.returncode == 9, done.stderr.decode()
  assert not (tmp_path / "summary.json").exists()
  assert len(results(tmp_path).splitlines()) < 9 if (tmp_path / "results.jsonl").exists() else True
  run(config(), tmp_path)
  assert results(tmp_path) == results(unbroken[0])


def test_finished_trials_are_not_trained_again(unbroken, tmp_path):
  def never(config, folder):
    raise AssertionError("trained again")

  shutil.copytree(unbroken[0], tmp_path, dirs_exist_ok=True)
  assert run(config(), os.fspath(tmp_path), never).exit_code == 0
  assert results(tmp_path) == results(unbroken[0])


def test_a_study_may_grow_by_rows_and_seeds(tmp_path):
  small = config(full={}, head={})
  small.compare.seeds = (0, 1)
  run(small, tmp_path)
  trained = []

  def watch(config, folder):
    trained.append(folder.parent.name + "/" + folder.name)
    return train_one(config, folder)

  run(config(), tmp_path, watch)
  assert trained == ["lora/seed-0", "lora/seed-1", "full/seed-2", "head/seed-2", "lora/seed-2"]


def test_one_failure_does_not_stop_the_others(tmp_path):
  def fail(config, folder):
    if config.method.name == "lora" and config.seed == 1:
      raise FloatingPointError("loss is not finite\nat step 3")
    return train_one(config, folder)

  outcome = run(config(), tmp_path, fail)
  assert outcome.exit_code == 1
  assert outcome.failed == {"lora/seed-1": "FloatingPointError: loss is not finite"}
  assert len(results(tmp_path).splitlines()) == 8
  assert "step 3" in (tmp_path / "runs/lora/seed-1/error.txt").read_text()
  assert "loss is not finite" in (tmp_path / "report.html").read_text()
  assert run(config(), tmp_path).exit_code == 0
  assert not (tmp_path / "runs/lora/seed-1/error.txt").exists()


def test_all_failed(tmp_path, capsys):
  def fail(config, folder):
    raise RuntimeError("no memory")

  outcome = run(config(), tmp_path, fail)
  assert outcome.exit_code == 1 and len(outcome.failed) == 9 and not outcome.summary.rows


def test_a_mistake_that_the_first_trial_finds_ends_the_study(tmp_path):
  def fail(config, folder):
    raise UserError("data.name: no file 'a.csv'")

  with pytest.raises(UserError, match="no file"):
    run(config(), tmp_path, fail)


def test_a_folder_of_another_study_is_refused_untouched(unbroken, tmp_path):
  shutil.copytree(unbroken[0], tmp_path, dirs_exist_ok=True)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
  other = config()
  other.train.epochs = 5.0
  with pytest.raises(UserError, match=r"train\.epochs: 2\.0 -> 5\.0"):
    run(other, tmp_path)
  assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_row_that_cannot_be_built_is_found_before_any_training(tmp_path):
  class Checks(Trainer):
    def check(self, config):
      if config.method.name == "lora":
        raise UserError("method.targets: no site matches 'qeury'")

  with pytest.raises(UserError, match=r"compare\.methods\.lora: method\.targets"):
    run_study(config(), tmp_path, Checks())
  assert not list(tmp_path.iterdir())


def test_a_study_of_another_config_is_refused_while_one_is_at_its_first_trial(unbroken, tmp_path):
  """Nothing is finished yet that would tell; trials of both would lie in one folder, of use to neither."""
  begun, goes_on, exits = threading.Event(), threading.Event(), []

  def wait(config, folder):
    begun.set()
    assert goes_on.wait(60)
    return train_one(config, folder)

  first = threading.Thread(target=lambda: exits.append(run(config(), tmp_path, wait).exit_code))
  first.start()
  try:
    assert begun.wait(60)
    other = config()
    other.train.epochs = 5.0
    with pytest.raises(UserError, match=rf"process {os.getpid()} of \S+ works on train-full/seed-0 of another config"):
      run(other, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["train"]["epochs"] == 2.0
  finally:
    goes_on.set()
    first.join()
  assert exits == [0] and results(tmp_path) == results(unbroken[0])


def test_results_that_a_killed_process_did_not_write_are_written(unbroken, tmp_path):
  """It ended between its last trial's record and the table of all."""
  shutil.copytree(unbroken[0], tmp_path, dirs_exist_ok=True)
  (tmp_path / "results.jsonl").write_text("".join(results(tmp_path).splitlines(keepends=True)[:-1]))
  run(config(), tmp_path)
  assert results(tmp_path) == results(unbroken[0])


def test_processes_that_share_a_folder_divide_the_trials(unbroken, tmp_path):
  """Three real ones; the first is killed in its second trial, and all others end with the whole study.

  The others train nothing before, or they would have done all on a machine that starts the first one late.
  """
  script = f"""
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.compare import test_study as one
trained, died = [], Path({str(tmp_path.with_name("died"))!r})
def train(config, folder):
  trained.append(folder.parent.name + "/" + folder.name)
  if len(trained) == int(sys.argv[1]):
    died.touch()
    os.kill(os.getpid(), signal.SIGKILL)
  end = time.monotonic() + 300
  while sys.argv[1] == "0" and not died.exists() and time.monotonic() < end: time.sleep(0.02)
  time.sleep(0.2)
  return one.train_one(config, folder)
outcome = one.run(one.config(), Path({str(tmp_path)!r}), train)
print(len(outcome.summary.rows[0].seeds), *trained)
"""
  processes = [
    subprocess.Popen([sys.executable, "-c", script, str(death)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for death in (2, 0, 0)
  ]
  told = [process.communicate(timeout=900) for process in processes]
  assert [process.returncode for process in processes] == [-9, 0, 0], told
  (first, *one), (second, *other) = (out.decode().split() for out, _ in told[1:])
  assert first == second == "3"
  assert not set(one) & set(other) and len({*one, *other}) == 8  # the killed one finished the ninth
  assert results(tmp_path) == results(unbroken[0])
  mine, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, unbroken[0]))
  assert [row["estimate"] for row in mine["rows"]] == [row["estimate"] for row in theirs["rows"]]
  assert mine["dimensions"] == theirs["dimensions"]
