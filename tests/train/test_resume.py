"""Kill -9 at ten random moments: the resumed run ends bit for bit as the one that nobody disturbed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from peftjax import config as config_lib
from peftjax.train import finished
from peftjax.train.rows import read_rows

STEPS = 34


@pytest.fixture
def start(config, material):
  """Starts `peftjax train` in a folder, as a process of its own."""
  changed = ["seed=3", "model.dropout=0.1", f"train.steps={STEPS}", "train.save_every=2", "train.log_every=1"]
  changed += ["train.eval_every=16", "train.accumulate=2", "data.buckets=()"]  # one shape: quick starts
  given = [f"{name}.{field}={config[name][field]}" for name in ("data", "optim", "train") for field in config[name]
           if config[name][field] != config_lib.default()[name][field]]  # fmt: skip
  overrides = [f"--config.{one}" for one in (f"model.path={config.model.path}", *given, *changed)]
  environment = {**os.environ, "PEFTJAX_CACHE": str(material / "cache")}

  def process(folder: Path, more: Sequence[str] = (), devices: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "peftjax", "train", f"--workdir={folder}", *overrides, *more]
    flags = f"{environment.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
      command, env={**environment, "XLA_FLAGS": flags}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )

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


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_and_resumed(start, tmp_path, kills):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  finish(start(whole))
  random = np.random.default_rng(0)
  for step in np.sort(random.choice(np.arange(1, STEPS - 4), kills, replace=False)):
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


MESHES = ({"data": 4}, {"data": 1, "fsdp": 4}, {"data": 2, "fsdp": 2}, {"data": 1, "fsdp": 2, "tensor": 2})
MANY = 50


def kill_within_a_save(process, folder, step):
  """Kills the process while a checkpoint of a step from `step` on is being written."""
  while True:
    assert process.poll() is None, process.communicate()[1]
    under_way = [path.name.partition(".")[0] for path in (folder / "checkpoints").glob("*orbax-checkpoint-tmp*")]
    if any(name.isdigit() and int(name) >= step for name in under_way):
      break
  process.kill()
  process.communicate()
  assert process.returncode == -9


@pytest.mark.slow
@pytest.mark.parametrize("changing", [False, True])
def test_killed_fifty_times(start, tmp_path, changing):
  """Half of the kills within a save, each five on another mesh: the end is that of the whole run."""
  steps = 4 * MANY + 10
  same = [f"--config.train.steps={steps}", "--config.train.save_every=1", "--config.model.dropout=0.0"]

  def on(number):
    mesh = MESHES[number // 5 % len(MESHES)] if changing else MESHES[1]
    return [*same, *(f"--config.mesh.{axis}={size}" for axis, size in mesh.items())]

  whole, parts = tmp_path / "whole", tmp_path / "parts"
  finish(start(whole, on(0), devices=4))
  random = np.random.default_rng(1)
  for number in range(MANY):
    process = start(parts, on(number), devices=4)
    target = 4 * number + 3
    if number % 2:
      kill_within_a_save(process, parts, target)
    else:
      kill_at(process, parts, target, random.uniform(0.0, 0.05))
  assert not (parts / "summary.json").exists()
  finish(start(parts, on(MANY), devices=4))

  rows, others = (read_rows(folder / "metrics.jsonl") for folder in (whole, parts))
  assert [row["step"] for row in rows] == [row["step"] for row in others]
  trained = [finished.load_model(folder)[2].params for folder in (whole, parts)]
  if changing:
    for row, other in zip(rows, others):
      np.testing.assert_allclose(other["loss"], row["loss"], rtol=1e-2, atol=1e-4)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-3), *trained)
  else:
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, *trained)
