"""Kill -9 at ten random moments: the resumed run ends bit for bit as the one that nobody disturbed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from peftjax import config as config_lib
from peftjax.train import finished
from peftjax.train.logs import read_rows

STEPS = 34
KILLS = 10


@pytest.fixture
def start(config, material):
  """Starts `peftjax train` in a folder, as a process of its own."""
  changed = ["seed=3", "model.dropout=0.1", f"train.steps={STEPS}", "train.save_every=2", "train.log_every=1"]
  changed += ["train.eval_every=16", "train.accumulate=2", "data.buckets=()"]  # one shape: quick starts
  given = [f"{name}.{field}={config[name][field]}" for name in ("data", "optim", "train") for field in config[name]
           if config[name][field] != config_lib.default()[name][field]]  # fmt: skip
  overrides = [f"--config.{one}" for one in (f"model.path={config.model.path}", *given, *changed)]
  environment = {**os.environ, "PEFTJAX_CACHE": str(material / "cache")}

  def process(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "peftjax", "train", f"--workdir={folder}", *overrides]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

  return process


def finish(process):
  _, errors = process.communicate()
  assert process.returncode == 0, errors


def kill_at(process, folder, step, delay):
  """Kills the process a moment after the row of a step has appeared in this attempt."""
  while " at step " not in (line := process.stderr.readline()) and " after step " not in line:
    assert process.poll() is None, line
  while not any(row["step"] >= step for row in read_rows(folder / "metrics.jsonl")):
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.001)
  time.sleep(delay)
  process.kill()
  process.communicate()
  assert process.returncode == -9


def test_killed_ten_times_and_resumed(start, tmp_path):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  finish(start(whole))
  random = np.random.default_rng(0)
  for step in np.sort(random.choice(np.arange(1, STEPS - 4), KILLS, replace=False)):
    process = start(parts)
    kill_at(process, parts, step, random.uniform(0.0, 0.06))
  assert not (parts / "summary.json").exists()
  finish(start(parts))

  assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
  for name in ("predictions-validation.npz", "config.json"):
    assert (parts / name).read_bytes() == (whole / name).read_bytes()
  trained = [finished.load_model(folder)[2].params for folder in (whole, parts)]
  jax.tree.map(np.testing.assert_array_equal, *trained)
  assert [row["step"] for row in read_rows(whole / "metrics.jsonl") if "split" not in row] == list(range(1, STEPS + 1))
