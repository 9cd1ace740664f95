"""Rows of JSON-lines and CSV files by number: an index of byte offsets, made once, and positioned reads."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.data.sources.json_lines import Spans, check_keys, index_json
from peftjax.errors import UserError
from peftjax.files import parse_json

Row = dict[str, Any]

MAX_FIELD = 2**28  # characters of a CSV field


class TextFile:
  """A sequence of rows (dicts) over a file that stays on disk. Threads may share it; it can be pickled.

  Opening reads the file once: every row is checked, and `sha256` is taken.

  Attributes:
    path: the file.
    texts: the columns that are known to hold a string in every row.
    sha256: hex digest of the file.

  Raises:
    UserError: the file is missing, empty, not UTF-8, or a line is no JSON object, has a field twice, or has another
      number of fields.
  """

  def __init__(self, path: Path, kind: str):
    self.path = path
    csv.field_size_limit(MAX_FIELD)
    self._open()
    self._header: list[str] = []
    self.delimiter, self.texts = "", frozenset[str]()
    with path.open("rb") as file:
      if kind == "csv":
        self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        self._header, self.delimiter = _read_header(file, path)
        entries = np.array(list(_csv_spans(file, self)), np.int64).reshape(-1, 3)
        lines, starts, ends = entries.T
        self._spans = Spans(starts, ends, lines)
      else:
        found = index_json(file, self._parse_checked)
        self._spans, self.texts, self.sha256 = found.spans, found.texts, found.sha256
    if not len(self):
      raise UserError(f"{path} has no rows")

  @property
  def columns(self) -> list[str]:
    """What the header of a CSV file names; empty for JSON lines."""
    return self._header

  def __len__(self) -> int:
    return len(self._spans.starts)

  def __getitem__(self, index: int) -> Row:
    start, end = int(self._spans.starts[index]), int(self._spans.ends[index])
    content = os.pread(self._descriptor, end - start, start)
    return self.parse(content, self._spans.line(index))

  def where(self, index: int) -> str:
    """ "FILE:LINE" of a row."""
    return f"{self.path}:{self._spans.line(index)}"

  def parse(self, content: bytes, line: int) -> Row:
    """The row in the bytes of one record that starts on `line`."""
    try:
      text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
      raise UserError(f"{self.path}:{line}: not UTF-8: byte {content[error.start]:#04x}") from None
    return self._parse_csv(text, line) if self._header else self._parse_json(text, line)

  def _parse_checked(self, content: bytes, line: int) -> Row:
    """As `parse`, of a JSON line that is read for the first time."""
    row = self.parse(content, line)
    check_keys(content, row, f"{self.path}:{line}")
    return row

  def _parse_json(self, text: str, line: int) -> Row:
    row = parse_json(text, f"{self.path}:{line}")
    if not isinstance(row, dict):
      raise UserError(f"{self.path}:{line}: a JSON object was expected, not {type(row).__name__}")
    return row

  def _parse_csv(self, text: str, line: int) -> Row:
    try:
      fields = next(csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter, strict=True), [])
    except csv.Error as error:
      raise UserError(f"{self.path}:{line}: no CSV: {error}") from None
    return dict(zip(self._header, self.checked(fields, line), strict=True))

  def checked(self, fields: list[str], line: int) -> list[str]:
    """The fields of a CSV row, which are as many as the header's."""
    if len(fields) != len(self._header):
      raise UserError(f"{self.path}:{line}: {len(fields)} fields, but the header has {len(self._header)}")
    return fields

  def _open(self) -> None:
    try:
      self._descriptor = os.open(self.path, os.O_RDONLY)
    except OSError as error:
      raise UserError(f"cannot read {self.path}: {error.strerror}") from None
    weakref.finalize(self, os.close, self._descriptor)

  def __getstate__(self) -> dict[str, Any]:
    return {name: value for name, value in self.__dict__.items() if name != "_descriptor"}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._open()


class _CountedLines:
  """Lines of a file as text, with a count of the lines and bytes that a reader has taken.

  Attributes:
    taken: the lines since `taken` was emptied.
  """

  def __init__(self, file: io.BufferedReader, path: Path):
    self.file, self.path, self.line, self.position = file, path, 0, file.tell()
    self.taken: list[str] = []

  def __iter__(self) -> _CountedLines:
    return self

  def __next__(self) -> str:
    content = self.file.readline()
    if not content:
      raise StopIteration
    self.line += 1
    self.position += len(content)
    if b"\0" in content:
      raise UserError(f"{self.path}:{self.line}: a zero byte; a text file in UTF-8 was expected")
    try:
      self.taken.append(content.decode("utf-8-sig" if self.line == 1 else "utf-8"))
    except UnicodeDecodeError as error:
      raise UserError(f"{self.path}:{self.line}: not UTF-8: byte {content[error.start]:#04x}") from None
    return self.taken[-1]


def _read_header(file: io.BufferedReader, path: Path) -> tuple[list[str], str]:
  delimiter = "\t" if path.suffix == ".tsv" else ","
  try:
    header = next(csv.reader(_CountedLines(file, path), delimiter=delimiter, strict=True), [])
  except csv.Error as error:
    raise UserError(f"{path}:1: no CSV: {_why(error)}") from None
  if not header:
    raise UserError(f"{path} is empty; its first line must name the columns")
  quoted = next((name for name in header if name != name.strip() and name.strip().startswith('"')), None)
  if quoted is not None:
    raise UserError(f"{path}:1: a space stands before the quote of {quoted.strip():.60}; expected none")
  header = [name.strip() for name in header]
  twice = next((name for name in header if header.count(name) > 1), None)
  if twice is not None:
    raise UserError(f"{path}:1: two columns are called {twice!r:.60}")
  other = next((sign for sign in ("\t", ";", "|") if len(header) == 1 and sign in header[0]), None)
  if other is not None:
    how = "call the file .tsv" if other == "\t" else "write them so, or as JSON lines"
    raise UserError(f"{path}:1: fields divided by {other!r}; {delimiter!r} was expected: {how}")
  file.seek(0)
  return header, delimiter


def _csv_spans(file: io.BufferedReader, rows: TextFile) -> Iterator[tuple[int, int, int]]:
  lines = _CountedLines(file, rows.path)
  reader = csv.reader(lines, delimiter=rows.delimiter, strict=True)
  swallowed = _Swallowed(rows)
  next(reader)
  line, position = lines.line, lines.position
  lines.taken.clear()
  try:
    for fields in reader:
      if fields:
        rows.checked(fields, line + 1)
        swallowed.look(fields, lines.taken, line + 1)
        yield line + 1, position, lines.position
      line, position = lines.line, lines.position
      lines.taken.clear()
  except csv.Error as error:
    raise UserError(f"{rows.path}:{line + 1}: no CSV: {_why(error)}") from None
  swallowed.check()


def _why(error: csv.Error) -> str:
  """What is wrong, in the words of one who has a spreadsheet before them."""
  text = str(error)
  if "unexpected end of data" in text:
    return "a quote is left open"
  if "expected after" in text:
    return f"a quote stands within a field that opens with one (write two there), or one is left open: {text}"
  if "new-line character" in text:
    return "lines end with a carriage return alone; save it with line feeds"
  return text


class _Swallowed:
  """Finds rows that a stray quote has made part of a field: lines in it that are rows themselves.

  A line in a quoted field is a row if it has as many fields as the header and one of them is a value that other rows
  have in that column, such as a label. A label in the first column counts if two lines have one, since lines of a text
  may open with a number. Where no value is there twice, as among scores or translations, every line of the field but
  the last, which a stray quote closes, must look like a row: two lines at least, or one with numbers where all rows
  have numbers.
  """

  def __init__(self, rows: TextFile):
    self._rows = rows
    self._seen: list[set[str]] = [set() for _ in rows.columns]
    self._has_words = [False] * len(rows.columns)
    self._spaced = False  # whether rows have a space after a divider, as lines of a text have
    self._suspects: list[tuple[int, list[list[str]], bool]] = []
    self._rows_of_one_line = 0

  def look(self, fields: list[str], lines: list[str], line: int) -> None:
    """Notes the values of a row on one line, or the lines of a longer one that might be rows."""
    if len(lines) == 1:
      self._rows_of_one_line += 1
      self._spaced |= any(value.startswith(" ") for value in fields[1:])
      for column, (seen, value) in enumerate(zip(self._seen, fields, strict=True)):
        self._has_words[column] |= not _is_number(value)
        if len(value) <= 40 and len(seen) < 10_000:
          seen.add(value)
      return
    opening = [lines[0][1:]] if lines[0].startswith('"') else []
    inner = [_fields(one, self._rows.delimiter) for one in [*opening, *lines[1:-1]]]
    suspects = [one for one in inner if len(one) == len(self._seen) > 1]
    if suspects:
      are_all = len(suspects) == len(inner) and not any('"' in one for one in [*opening, *lines[1:-1]])
      self._suspects.append((line, suspects[:100], are_all))

  def check(self) -> None:
    """Raises:
    UserError: a field holds rows.
    """
    if 2 * len(self._seen[0]) > self._rows_of_one_line:
      self._seen[0] = set()
    for line, suspects, are_all in self._suspects:
      first = [one for one in suspects if one[0] in self._seen[0]]
      later = [one for one in suspects if any(map(_is_seen, one[1:], self._seen[1:]))]
      if later or len(first) > 1 or (are_all and self._look_like_rows(suspects)):
        row = self._rows.delimiter.join((later or first or suspects)[0])
        raise UserError(
          f"{self._rows.path}:{line}: a field opens with a quote and holds whole rows, such as {row!r:.60}; "
          "is a quote left open? If it is a text of such lines, write the data as JSON lines"
        )

  def _look_like_rows(self, lines: list[list[str]]) -> bool:
    is_spaced = any(value.startswith(" ") for line in lines for value in line[1:])
    if not self._rows_of_one_line or (is_spaced and not self._spaced):
      return False
    numbers = [column for column, has_words in enumerate(self._has_words) if not has_words]
    if numbers:
      return all(_is_number(row[column]) for row in lines for column in numbers)
    return len(lines) > 1


def _is_number(value: str) -> bool:
  try:
    return math.isfinite(float(value)) and value == value.strip()
  except ValueError:
    return False


def _is_seen(value: str, seen: set[str]) -> bool:
  return bool(value) and value in seen


def _fields(line: str, delimiter: str) -> list[str]:
  try:
    return next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), [])
  except csv.Error:
    return []
