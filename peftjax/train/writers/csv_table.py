"""A table that spreadsheets read."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import IO, ClassVar

from ml_collections import ConfigDict

from peftjax.errors import UserError
from peftjax.files import write_text
from peftjax.train.rows import writing
from peftjax.train.writers.base import Begun, Writer

FILE = "metrics.csv"


class CsvTable(Writer):
  """metrics.csv: a row for each row of training or evaluation, a column for each number, empty where a row has none."""

  name: ClassVar[str] = "csv"

  def __init__(self, begun: Begun, options: ConfigDict):
    super().__init__(begun, options)
    self._path = begun.folder / FILE
    last = begun.start or -1  # a run that starts anew also evaluates step 0 anew
    self._rows = [row for row in _read(self._path) if _step(row, self._path) < last + any(map(_of_training, row))]
    self._columns = list(dict.fromkeys(["step", *(name for row in self._rows for name in row)]))
    self._file = self._anew()

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends a row; with a new column, the file is written anew."""
    row = {"step": str(step), **{name: repr(float(value)) for name, value in values.items()}}
    self._rows.append(row)
    if new := [name for name in row if name not in self._columns]:
      self._columns += new
      self._file.close()
      self._file = self._anew()
      return
    with writing(self._path):
      self._file.write(self._text([row]))
      self._file.flush()

  def close(self, failed: bool) -> None:
    """Closes the file; rows that were written stay."""
    del failed
    self._file.close()

  def _anew(self) -> IO[str]:
    write_text(self._path, self._text([dict(zip(self._columns, self._columns)), *self._rows]))
    return self._path.open("a", encoding="utf-8", newline="")

  def _text(self, rows: list[dict[str, str]]) -> str:
    content = io.StringIO()
    csv.DictWriter(content, self._columns, lineterminator="\n").writerows(rows)
    return content.getvalue()


def _read(path: Path) -> list[dict[str, str]]:
  """The whole rows of a table, empty cells left out."""
  if not path.is_file():
    return []
  text = path.read_text(encoding="utf-8")
  rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]), restkey="")
  return [{name: value for name, value in row.items() if name and value} for row in rows]


def _step(row: Mapping[str, str], path: Path) -> int:
  text = row.get("step", "")
  if not text.isdecimal():
    raise UserError(
      f"{path}: a row's step is {text!r}; expected a whole number: move the file away to go on without it"
    )
  return int(text)


def _of_training(name: str) -> bool:
  return name.startswith(("train/", "timing/"))
