"""Damaged checkpoints, a disk that is full, data that vanish, losses that leap."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from peftjax.errors import UserError
from peftjax.train import loop
from peftjax.train.checkpoint import Base, Checkpoints
from peftjax.train.faults import faults_as_one_line
from peftjax.train.session import Session
from peftjax.train.spikes import SpikeState, watch_loss
from peftjax.train.step import make_train_step

BASE = Base("somewhere", "a" * 64)


def test_a_flipped_bit_in_any_file_is_found(tiny, tmp_path, caplog):
  run = tiny()
  step = jax.jit(run.step)
  states = [run.state]
  folder = tmp_path / "c"
  with Checkpoints(folder, keep=3) as checkpoints:
    for index in range(2):
      states.append(step(states[-1], run.frozen, tiny.batch(seed=index))[0])
      checkpoints.save(states[-1], {"at": index + 1}, BASE)
  kept = {path: path.read_bytes() for path in (folder / "2").rglob("*") if path.is_file() and path.stat().st_size}
  assert len(kept) > 5
  random = np.random.default_rng()
  for number, (path, content) in enumerate(kept.items(), 1):
    flipped = bytearray(content)
    place, bit = int(random.integers(len(content))), int(random.integers(8))
    flipped[place] ^= 1 << bit
    path.write_bytes(flipped)
    with Checkpoints(folder, keep=3) as checkpoints:
      found, position = checkpoints.restore(run.state, BASE)
    assert (int(found.step), position) == (1, {"at": 1}), f"bit {bit} of byte {place} of {path} was not found"
    jax.tree.map(np.testing.assert_array_equal, found, states[1])
    assert caplog.text.count("checkpoint 2 is damaged and passed over") == number
    for one, bytes_then in kept.items():
      one.parent.mkdir(parents=True, exist_ok=True)
      one.write_bytes(bytes_then)
  with Checkpoints(folder, keep=3) as checkpoints:
    assert int(checkpoints.restore(run.state, BASE)[0].step) == 2  # put back as it was


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_with_the_last_checkpoint_whole(config, tmp_path):
  config.train.update({"steps": 6, "save_every": 3, "predictions": False})
  workdir = tmp_path / "run"
  program = f"""
import resource, signal, sys
from ml_collections import ConfigDict
from peftjax.errors import UserError
from peftjax.train import loop, checkpoint
config = ConfigDict({config.to_dict()!r})
saved = checkpoint.Checkpoints.save
def save(self, state, *rest):
  if int(state.step) > 3:  # from now on no file may grow beyond 16 bytes, as on a disk without room
    self.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
  return saved(self, state, *rest)
checkpoint.Checkpoints.save = save
try:
  loop.train(config, {str(workdir)!r})
except UserError as error:
  sys.stdout.write("ENDED " + str(error) + chr(10))
"""
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ), check=False
  )
  assert done.stdout.startswith("ENDED saving: "), done.stdout + done.stderr[-3000:]
  assert done.stdout.count("\n") == 1
  assert "the checkpoint of step 3 is whole" in done.stdout
  assert loop.train(config, workdir)["step"] == 6


@pytest.mark.parametrize(
  ("what", "steps", "error", "line"),
  [
    (
      "reading the data",
      [],
      FileNotFoundError(2, "No such file or directory", "gone.csv"),
      r"reading the data: No such file or directory \(gone\.csv\); there is no checkpoint yet",
    ),
    ("saving", [4, 8], ValueError("No space left on device [3]"), "saving: no space left; the checkpoint of step 8 is"),
    ("saving", [], ValueError("RESOURCE_EXHAUSTED: Error writing"), "saving: no space left; there is no"),
    ("saving", [], ValueError("NOT_FOUND: Error reading"), "saving: a file that was being written is gone;"),
    ("saving", [4], ValueError("No ArrayMetadata found for"), "saving: a file that was being written is gone;"),
  ],
)
def test_a_fault_is_one_line(what, steps, error, line):
  with pytest.raises(UserError, match=line), faults_as_one_line(what, lambda: steps):
    raise error


@pytest.mark.parametrize("late", [None, OSError("the save failed too")])
def test_a_checkpoint_that_is_being_saved_is_waited_for(config, tmp_path, late):
  """Data that vanish while a save runs in the background: what stays is said once that has ended."""
  events = []

  def wait():
    events.append("saved")
    if late:
      raise late

  def vanish():
    raise FileNotFoundError(2, "No such file or directory", "gone.csv")
    yield

  session = Session(config, tmp_path)
  session.checkpoints = SimpleNamespace(wait=wait, whole=lambda: [3] * (bool(events) and not late))
  session.run = SimpleNamespace(loaders=SimpleNamespace(train=vanish()))
  stays = "there is no checkpoint yet" if late else "the checkpoint of step 3 is whole"
  with pytest.raises(UserError, match=rf"reading the data: No such file or directory \(gone.csv\); {stays}"):
    session.next_batch()


def test_other_errors_stay():
  with pytest.raises(ValueError, match="another"), faults_as_one_line("saving", list):
    raise ValueError("another")


def test_a_leaping_loss_is_left_out_and_does_not_enter_the_mean(tiny):
  run = tiny()
  optimizer = watch_loss(run.optimizer, 1.5)
  step = jax.jit(make_train_step(run.loss, optimizer))
  state = run.state._replace(opt_state=optimizer.init(run.state.trainable))
  batch = tiny.batch()
  for _ in range(12):
    state, metrics = step(state, run.frozen, batch)
    assert metrics["finite"]
  # Leaves that something threw far off: the loss leaps.
  state = state._replace(trainable=jax.tree.map(lambda leaf: -30 * leaf, state.trainable))
  wrong = step(state, run.frozen, batch)
  assert wrong[1]["loss"] > 1.5 * state.opt_state.mean, "the batch is no spike"
  assert not wrong[1]["finite"]
  jax.tree.map(np.testing.assert_array_equal, wrong[0].trainable, state.trainable)
  assert isinstance(wrong[0].opt_state, SpikeState)
  np.testing.assert_array_equal(wrong[0].opt_state.mean, state.opt_state.mean)
  back = jax.tree.map(lambda leaf: leaf / -30, wrong[0].trainable)
  after, metrics = step(wrong[0]._replace(trainable=back), run.frozen, batch)
  assert metrics["finite"] and int(after.step) == 14


def test_a_spike_may_stop_the_run(config, tmp_path):
  config.train.update({"steps": 14, "spike": 1.0001, "nonfinite": "stop"})
  with pytest.raises(UserError, match=r"step 1[1-4]: loss .* on examples \["):
    loop.train(config, tmp_path / "run")
  config.train.spike = 0.5
  with pytest.raises(UserError, match=r"train\.spike=0\.5: expected a finite number above 1, or 0"):
    loop.train(config, tmp_path / "other")
