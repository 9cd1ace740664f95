"""The .jsonl files of a run: whole lines that a kill cannot undo, read back with one clear line for each mistake."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftjax.errors import UserError
from peftjax.files import parse_json, write_text
from peftjax.stored import plain

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
  """The rows of a .jsonl file, each with its "step"; a last line that was cut off by a kill is left out.

  Raises:
    UserError: the file cannot be read, or a line in it is no row.
  """
  if not path.is_file():
    return []
  try:
    lines = path.read_bytes().split(b"\n")
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from None
  return [_row(line, f"{path}:{number}") for number, line in enumerate(lines[:-1], 1)]


def _row(line: bytes, where: str) -> Row:
  row = parse_json(line, where)
  step = row.get("step") if isinstance(row, dict) else None
  if not isinstance(step, int) or isinstance(step, bool) or not isinstance(row.get("split", ""), str):
    raise UserError(f'{where}: expected an object with a whole number as "step"; remove the line to go on without it')
  return dict(row)


class RowFile:
  """A .jsonl file that grows by whole lines. Opening it drops the rows that came after the checkpoint of `last_step`:
  those of later steps, and the evaluations of that step, which follow its save, and final ones, with which a run ends.
  """

  def __init__(self, path: Path, last_step: int):
    rows = [row for row in read_rows(path) if not row.get("final")]
    kept = [row for row in rows if row["step"] < last_step + ("split" not in row)]
    write_text(path, "".join(_line(row) for row in kept))
    self._path = path
    self._file = path.open("ab", buffering=0)

  def write(self, row: Row) -> None:
    """Appends a row; a kill of this process after the return cannot undo it.

    Raises:
      UserError: it cannot be written, as on a full disk.
    """
    content = _line(row).encode()
    with writing(self._path):
      while content:
        content = content[self._file.write(content) :]

  def close(self) -> None:
    """Closes the file; rows that were written stay."""
    self._file.close()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
  """An `OSError` in the block becomes one line."""
  try:
    yield
  except OSError as error:
    raise UserError(f"cannot write {path}: {error.strerror or error}; the same command goes on") from None


def _line(row: Row) -> str:
  return json.dumps(plain(row), allow_nan=False) + "\n"
