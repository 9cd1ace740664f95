"""A folder that cannot be written, data that vanish: one line, exit code 2, the last checkpoint whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftjax import cli
from peftjax.files import read_json

# The superuser writes wherever he likes. Without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (1 and 2), dropped from the
# bounding set (24) before the program starts, the modes of files hold for him as for anyone.
AS_ANYONE = """
import ctypes, os, sys
for capability in (1, 2):
  ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])
"""
LOCKED_WHILE_RUNNING = """
import os, sys
from peftjax import cli
from peftjax.train import checkpoint
saved = checkpoint.Checkpoints.save
def save(self, state, *rest):
  if int(state.step) > 2:
    self.wait()
    os.chmod(self.folder, 0o555)
    assert not os.access(self.folder, os.W_OK), "the folder can still be written"
  return saved(self, state, *rest)
checkpoint.Checkpoints.save = save
sys.exit(cli.main(sys.argv[1:]))
"""
LOCKED_BEFORE = """
import os, sys
from peftjax import cli
codes = []
for workdir in sys.argv[1].split(":"):
  assert not os.access(workdir, os.W_OK) and not os.access(os.path.dirname(workdir), os.W_OK), workdir
  codes.append(cli.main(["train", f"--workdir={workdir}", *sys.argv[2:]]))
sys.exit(0 if codes == [2, 2] else 1)
"""


@pytest.fixture
def flags(config, tmp_path):
  config.train.update({"steps": 4, "save_every": 2, "predictions": False, "tensorboard": False})
  data = tmp_path / "reviews.csv"
  data.write_bytes(Path(config.data.name.partition(":")[2]).read_bytes())
  fields = {
    f"{section}.{name}": value for section in ("data", "optim", "train") for name, value in config[section].items()
  }
  fields = {name: value for name, value in fields.items() if isinstance(value, (int, float, str)) and value != ""}
  return [f"--config.{name}={value}" for name, value in {**fields, "model.path": config.model.path}.items()
          if name != "data.name"] + [f"--config.data.name=csv:{data}"]  # fmt: skip


def as_anyone(program, *arguments):
  command = [sys.executable, "-c", AS_ANYONE, program, *map(str, arguments)]
  return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)


def test_a_folder_that_is_locked_while_the_run_goes_on_and_data_that_vanish(flags, tmp_path, capsys):
  workdir = tmp_path / "run"
  done = as_anyone(LOCKED_WHILE_RUNNING, "train", f"--workdir={workdir}", *flags)
  said = [line for line in done.stderr.splitlines() if line.startswith("peftjax: ")]
  assert done.returncode == 2, done.stderr[-3000:]
  assert len(said) == 1 and "Traceback" not in done.stderr
  assert said[0].startswith("peftjax: saving: ") and "the checkpoint of step 2 is whole" in said[0], said
  assert "permission denied" in said[0].lower()

  (workdir / "checkpoints").chmod(0o755)
  data = tmp_path / "reviews.csv"
  data.rename(tmp_path / "gone.csv")
  capsys.readouterr()
  assert cli.main(["train", f"--workdir={workdir}", *flags]) == 2
  said = capsys.readouterr().err
  assert str(data) in said and said.count("\n") == 1 and said.startswith("peftjax: ")
  (tmp_path / "gone.csv").rename(data)
  assert cli.main(["train", f"--workdir={workdir}", *flags]) == 0
  assert read_json(workdir / "summary.json")["step"] == 4
  assert "going on after step 2" in capsys.readouterr().err


def test_a_folder_that_is_locked_from_the_start(flags, tmp_path):
  """A new run's, and that of a run that has begun."""
  parent = tmp_path / "locked"
  (parent / "begun").mkdir(parents=True)
  (parent / "begun" / ".lock").touch()
  for folder in (parent / "begun", parent):
    folder.chmod(0o555)
  done = as_anyone(LOCKED_BEFORE, f"{parent / 'new'}:{parent / 'begun'}", *flags)
  parent.chmod(0o755)
  assert done.returncode == 0, done.stderr[-3000:]
  said = [line for line in done.stderr.splitlines() if line.startswith("peftjax: ")]
  assert len(said) == 2 and all("ermission denied" in line for line in said), done.stderr[-3000:]
  assert str(parent / "new") in said[0] and str(parent / "begun") in said[1]
  assert "Traceback" not in done.stderr
