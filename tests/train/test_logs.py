"""Rows that survive a kill, and what is shown while training."""

from __future__ import annotations

import fcntl

import pytest

from peftjax.errors import UserError
from peftjax.train import folder as folder_lib
from peftjax.train.display import Display
from peftjax.train.rows import RowFile, read_rows


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  rows = RowFile(path, 0)
  for step in (3, 6, 9):
    rows.write({"step": step, "loss": 1 / step})
  rows.close()
  with path.open("a") as file:
    file.write('{"step": 12, "lo')  # killed while it wrote
  assert [row["step"] for row in read_rows(path)] == [3, 6, 9]
  rows = RowFile(path, 6)
  rows.write({"step": 9, "loss": float("nan"), "by": {"head": float("inf")}, "each": [1.0, float("nan")]})
  rows.close()
  assert path.read_text().splitlines() == [
    '{"step": 3, "loss": 0.3333333333333333}',
    '{"step": 6, "loss": 0.16666666666666666}',
    '{"step": 9, "loss": null, "by": {"head": null}, "each": [1.0, null]}',
  ]


def test_a_bar_on_a_terminal(monkeypatch, capsys):
  monkeypatch.setenv("FORCE_COLOR", "1")
  monkeypatch.setenv("TERM", "xterm")
  display = Display(start=2, total=8)
  display.update(4, 0.25, 17.0)
  display.say("a line above the bar")
  display.close()
  shown = capsys.readouterr()
  assert shown.out == ""
  assert "4/8" in shown.err and "loss 0.2500, 17.0 examples/s" in shown.err and "a line above the bar" in shown.err


def test_lines_elsewhere(capsys):
  display = Display(start=0, total=8)
  for step in range(1, 9):
    display.update(step, 0.5, None)
    display.row(step, "loss 0.5000")
  display.close()
  assert capsys.readouterr().err == "step 8 of 8: loss 0.5000\n"


def test_one_run_a_folder(tmp_path):
  with folder_lib.only_run(tmp_path / "run"):
    with (tmp_path / "run" / ".lock").open("w") as other, pytest.raises(BlockingIOError):
      fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(UserError, match="another process is training"), folder_lib.only_run(tmp_path / "run"):
      pass
    with folder_lib.only_run(tmp_path / "run", first=False):
      pass
  with folder_lib.only_run(tmp_path / "run"):
    pass


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot write the folder"), folder_lib.only_run(tmp_path / "file" / "run"):
    pass
