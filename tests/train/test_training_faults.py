"""The table of docs/training_faults.md: what happens to a run, what is said, and that nothing is lost."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from peftjax import cli
from peftjax.data.loader import TrainLoader
from peftjax.errors import UserError
from peftjax.train import checkpoint, finished, loop
from tests.train.conftest import run_config, write_data, write_model


def quick_config(material):
  """Four updates of one shape, a checkpoint after each second one, of which one is kept."""
  config = run_config(material)
  config.data.buckets = ()
  config.train.update({"steps": 4, "save_every": 2, "log_every": 1, "keep": 1, "tensorboard": True})
  return config


@pytest.fixture
def happens():
  """A monkeypatch of what happens to a run, which a test can undo."""
  with pytest.MonkeyPatch.context() as patch:
    yield patch


@pytest.fixture
def config(material, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(material / "cache"))
  return quick_config(material)


@pytest.fixture(scope="module")
def whole(material, tmp_path_factory):
  """The folder of a run that nothing happened to."""
  folder = tmp_path_factory.mktemp("whole") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PEFTJAX_CACHE", str(material / "cache"))
    loop.train(quick_config(material), folder)
  return folder


def check_goes_on(config, folder, whole):
  """The same command ends as if nothing had happened, bit by bit."""
  assert loop.train(config, folder)["step"] == 4
  for name in ("metrics.jsonl", "predictions-validation.npz", "config.json"):
    assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
  params = [finished.load_model(one)[2].params for one in (folder, whole)]
  jax.tree.map(np.testing.assert_array_equal, *params)


def until_there(path):
  """Waits for what another thread makes."""
  until = time.monotonic() + 300
  while not path.exists():
    assert time.monotonic() < until, path
    time.sleep(0.01)


def before_step(happens, step, act):
  """Calls `act` when the data of a step are read."""
  following = TrainLoader.__next__

  def read(self):
    if self.get_state()["step"] == step - 1:
      act()
    return following(self)

  happens.setattr(TrainLoader, "__next__", read)


# A full disk ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_room():
  """No file can grow any more, as on a full disk; the system's own limit, so it holds for every library."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


FULL = [  # what is written; function, which of its calls; the line; the checkpoint that is there then
  ("the config", "folder:write_config", 1, r"cannot write .*config\.json", None),
  ("the first row", "rows:RowFile.write", 1, r"cannot write .*metrics\.jsonl: File too large", None),
  ("a later row", "rows:RowFile.write", 5, r"cannot write .*metrics\.jsonl: File too large", 2),
  ("events", "writers.tensorboard:TensorBoard.flush", 1, r"cannot write .*tensorboard", None),
  ("the cost of the program", "compiling:Costs.add", 1, r"cannot write .*compiled\.json", None),
  (
    "the first checkpoint",
    "checkpoint:Checkpoints.save",
    1,
    r"saving: .*there is no checkpoint yet|cannot write",
    None,
  ),
  ("the last checkpoint", "checkpoint:Checkpoints.save", 2, r"saving: .*the checkpoint of step 2 is whole", 2),
  ("a manifest", "manifest:write", 2, r"saving: .*the checkpoint of step 2 is whole", 2),
  ("predictions", "evaluators.predict:save_rows", 1, r"cannot write .*predictions-validation\.npz", 4),
  ("the summary", "session:write_text", 1, r"cannot write .*summary\.json", 4),
]


@pytest.mark.parametrize(("place", "call", "line", "saved"), [one[1:] for one in FULL], ids=[one[0] for one in FULL])
def test_a_full_disk(config, tmp_path, whole, happens, capsys, printed, place, call, line, saved):
  module, _, path = place.partition(":")
  holder = importlib.import_module(f"peftjax.train.{module}")
  *outer, name = path.split(".")
  for one in outer:
    holder = getattr(holder, one)
  real, calls, limits = getattr(holder, name), [], contextlib.ExitStack()
  folder = tmp_path / "run"

  def full(*arguments, **more):
    calls.append(place)
    if len(calls) == call:
      if saved:
        until_there(folder / "checkpoints" / str(saved))
      limits.enter_context(no_room())
    return real(*arguments, **more)

  happens.setattr(holder, name, full)
  with limits, pytest.raises(UserError) as caught:
    loop.train(config, folder)
  assert re.search(line, str(caught.value)) and "\n" not in str(caught.value)
  assert "Traceback" not in capsys.readouterr().err and printed() == []
  kept = [int(one.name) for one in (folder / "checkpoints").glob("*") if one.name.isdigit()]
  assert kept == ([] if saved is None else [saved])
  assert not (folder / "summary.json").exists()
  happens.undo()
  check_goes_on(config, folder, whole)


def test_a_disk_that_is_really_full(config, tmp_path, whole, capsys, printed):
  """A file system of 200 KiB, where one can be mounted."""
  small = tmp_path / "small"
  small.mkdir()
  mounted = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", small], capture_output=True, check=False
  )
  if mounted.returncode:
    pytest.skip("no file system can be mounted here")
  try:
    (small / "letter").write_bytes(bytes(120 * 1024))
    config.train.tensorboard = False
    with pytest.raises(UserError, match=r"no space left|No space left"):
      loop.train(config, small / "run")
    assert "Traceback" not in capsys.readouterr().err and printed() == []
    (small / "letter").unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", small], check=True)
    loop.train(config, small / "run")
    assert (small / "run" / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
  finally:
    subprocess.run(["umount", small], check=True)


# Kills and requests to end ----------------------------------------------------------------------------------------

KILLED_WITHIN_A_SAVE = """
import os, sys
from peftjax import cli
from peftjax.train import manifest
written = manifest.write
def write(folder):
  if "4" in folder.name.split("."):
    os.kill(os.getpid(), 9)
  written(folder)
manifest.write = write
sys.exit(cli.main(sys.argv[1:]))
"""


def overrides(config):
  given = {f"{section}.{name}": value for section in ("model", "data", "optim", "train")
           for name, value in config[section].items()
           if isinstance(value, str | int | float | tuple) and value != ""}  # fmt: skip
  return [f"--config.{name}={value}" for name, value in given.items() if name != "optim.groups"]


def test_killed_within_a_save(config, tmp_path, whole):
  """The checkpoint that was being written is none, and the one before it, the only one kept, is whole."""
  folder = tmp_path / "run"
  command = [sys.executable, "-c", KILLED_WITHIN_A_SAVE, "train", f"--workdir={folder}", *overrides(config)]
  done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
  assert done.returncode == -9, done.stderr[-2000:]
  names = {path.name for path in (folder / "checkpoints").iterdir()}
  assert "2" in names and "4" not in names
  assert names != {"2"}  # what the kill left over, the next start cleans up
  check_goes_on(config, folder, whole)
  assert {path.name for path in (folder / "checkpoints").iterdir()} == {"4"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_end(config, tmp_path, whole, happens, capsys, number):
  before_step(happens, 3, lambda: os.kill(os.getpid(), number))
  with pytest.raises(SystemExit) as caught:
    loop.train(config, tmp_path / "run")
  assert caught.value.code == 143
  assert "saved after step 3; the same command goes on" in capsys.readouterr().err
  happens.undo()
  check_goes_on(config, tmp_path / "run", whole)


@pytest.fixture
def ctrl_c():
  """SIGINT interrupts, as in a terminal; a shell's jobs in the background ignore it."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_ends_at_once(config, tmp_path, whole, happens, capsys):
  def twice():
    until_there(tmp_path / "run" / "checkpoints" / "2")
    signal.raise_signal(signal.SIGINT)  # handled before it returns: two that are pending would be one
    signal.raise_signal(signal.SIGINT)

  before_step(happens, 4, twice)
  assert cli.main(["train", f"--workdir={tmp_path / 'run'}", *overrides(config)]) == 130
  said = capsys.readouterr().err
  assert said.endswith("peftjax: interrupted\n") and "Traceback" not in said
  assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]
  happens.undo()
  check_goes_on(config, tmp_path / "run", whole)


# The folder, the clock, other processes ---------------------------------------------------------------------------


def test_the_folder_is_removed_while_the_run_goes_on(config, tmp_path, whole, happens, printed):
  folder = tmp_path / "run"

  def remove():
    until_there(folder / "checkpoints" / "2")
    while folder.exists():
      shutil.rmtree(folder, ignore_errors=True)

  before_step(happens, 3, remove)
  with pytest.raises(UserError, match=r"saving: No such file or directory .*; there is no checkpoint yet") as caught:
    loop.train(config, folder)
  assert "\n" not in str(caught.value) and printed() == []
  happens.undo()
  check_goes_on(config, folder, whole)


@pytest.mark.parametrize("days", [-400, 400])
def test_the_clock_is_moved(config, tmp_path, whole, happens, days):
  """Backwards and forwards, within the run and between two starts of it."""
  now, shift = time.time, []
  happens.setattr(time, "time", lambda: now() + 86400 * days * len(shift))
  before_step(happens, 2, lambda: shift.append(1))
  happens.setattr(checkpoint.Checkpoints, "reached_preemption", lambda *_: False)
  folder = tmp_path / "run"
  config.train.update({"steps": 4})
  assert loop.train(config, folder)["step"] == 4
  assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
  seconds = [float(one) for one in re.findall(r'"step_seconds": ([-0-9.e]+)', (folder / "timing.jsonl").read_text())]
  assert seconds and all(0 < one < 1000 for one in seconds)
  (folder / "summary.json").unlink()
  shift.append(1)
  check_goes_on(config, folder, whole)


def test_two_processes_in_one_folder(config, tmp_path, whole, happens):
  """The second is refused, and one that only reads disturbs nothing, not even a save under way."""
  folder, said, read = tmp_path / "run", [], []

  def others():
    with pytest.raises(UserError) as caught:
      loop.train(config, folder)
    said.append(str(caught.value))
    until_there(folder / "checkpoints" / "2")
    under_way = folder / "checkpoints" / "9.orbax-checkpoint-tmp"
    under_way.mkdir()
    read.append(finished.load_model(folder)[1])
    assert under_way.is_dir()
    under_way.rmdir()

  before_step(happens, 4, lambda: said or others())
  loop.train(config, folder)
  assert said == [f"another process is training in {folder}"] and read == [2]
  assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_checkpoint_that_goes_while_it_is_read(config, tmp_path, happens):
  """The run keeps only newer ones: the reader takes one of these."""
  folder = tmp_path / "run"
  config.train.keep = 2
  loop.train(config, folder)
  real = checkpoint.Checkpoints._trainable

  def vanishing(self, step, *rest):
    if step == 4:
      shutil.rmtree(folder / "checkpoints" / "4")
    return real(self, step, *rest)

  happens.setattr(checkpoint.Checkpoints, "_trainable", vanishing)
  assert finished.load_model(folder)[1] == 2


# What a run is made of ---------------------------------------------------------------------------------------------


def begun(config, folder, happens):
  """Trains two of four updates."""
  with happens.context() as patch:
    before_step(patch, 3, lambda: (_ for _ in ()).throw(UserError("enough")))
    with pytest.raises(UserError, match="enough"):
      loop.train(config, folder)
  assert [path.name for path in (folder / "checkpoints").iterdir()] == ["2"]


def test_changed_data(config, tmp_path, happens):
  data = tmp_path / "reviews.csv"
  shutil.copy(Path(config.data.name.partition(":")[2]), data)
  config.data.name = f"csv:{data}"
  begun(config, tmp_path / "run", happens)
  kept = data.read_bytes()
  write_data(data, seed=1)
  with pytest.raises(UserError, match="the saved position in the data does not fit: data's content was"):
    loop.train(config, tmp_path / "run")
  data.unlink()
  with pytest.raises(UserError, match=re.escape(str(data))):
    loop.train(config, tmp_path / "run")
  data.write_bytes(kept)
  assert loop.train(config, tmp_path / "run")["step"] == 4


def test_changed_base(config, tmp_path, happens, material):
  model = shutil.copytree(material / "model", tmp_path / "model")
  config.model.path = str(model)
  begun(config, tmp_path / "run", happens)
  shutil.rmtree(model)
  write_model(model, seed=1)
  with pytest.raises(UserError, match="the checkpoint belongs to another base model"):
    loop.train(config, tmp_path / "run")
  shutil.rmtree(model)
  shutil.copytree(material / "model", model)
  assert loop.train(config, tmp_path / "run")["step"] == 4


def test_no_more_files_can_be_opened(config, tmp_path, whole, happens):
  """Where a run starts again: its checkpoint is not taken for damaged."""
  begun(config, tmp_path / "run", happens)
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  restored = checkpoint.Checkpoints.restore

  def restore(self, *arguments):
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(one.name) for one in Path("/proc/self/fd").iterdir()), hard))
    held = []
    with contextlib.suppress(OSError):  # handles below the greatest that are free
      while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
    try:
      return restored(self, *arguments)
    finally:
      resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
      for one in held:
        os.close(one)

  happens.setattr(checkpoint.Checkpoints, "restore", restore)
  with pytest.raises(UserError, match="cannot be read now"):
    loop.train(config, tmp_path / "run")
  happens.undo()
  assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
  check_goes_on(config, tmp_path / "run", whole)
