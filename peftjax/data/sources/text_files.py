"""Rows of JSON-lines and CSV files by number: an index of byte offsets, made once, and positioned reads."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.errors import UserError

Row = dict[str, Any]


class TextFile:
  """A sequence of rows (dicts) over a file that stays on disk. Threads may share it; it can be pickled.

  Opening reads the file once: every row is checked, and `sha256` is taken.

  Attributes:
    path: the file.
    lines: [n] int64, the line (from 1) on which each row starts.
    sha256: hex digest of the file.

  Raises:
    UserError: the file is missing, empty, not UTF-8, or a line is no JSON object or has another number of fields.
  """

  def __init__(self, path: Path, kind: str):
    self.path = path
    self._open()
    with path.open("rb") as file:
      self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
      file.seek(0)
      self._header, self.delimiter = _read_header(file, path) if kind == "csv" else ([], "")
      entries = list(_csv_spans(file, self) if kind == "csv" else _json_spans(file, self))
    if not entries:
      raise UserError(f"{path} has no rows")
    self.lines, self._starts, self._ends = np.array(entries, np.int64).T

  def __len__(self) -> int:
    return len(self.lines)

  def __getitem__(self, index: int) -> Row:
    start, end = int(self._starts[index]), int(self._ends[index])
    content = os.pread(self._descriptor, end - start, start)
    return self.parse(content, int(self.lines[index]))

  def where(self, index: int) -> str:
    """ "FILE:LINE" of a row."""
    return f"{self.path}:{self.lines[index]}"

  def parse(self, content: bytes, line: int) -> Row:
    """The row in the bytes of one record that starts on `line`."""
    try:
      text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
      raise UserError(f"{self.path}:{line}: not UTF-8: byte {content[error.start]:#04x}") from None
    return self._parse_csv(text, line) if self._header else self._parse_json(text, line)

  def _parse_json(self, text: str, line: int) -> Row:
    try:
      row = json.loads(text)
    except json.JSONDecodeError as error:
      raise UserError(f"{self.path}:{line}: no JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
      raise UserError(f"{self.path}:{line}: a JSON object was expected, not {type(row).__name__}")
    return row

  def _parse_csv(self, text: str, line: int) -> Row:
    fields = next(csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter), [])
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


def _json_spans(file: io.BufferedReader, rows: TextFile) -> Iterator[tuple[int, int, int]]:
  """(line, first byte, byte after the last) of each row; blank lines are none."""
  position = 0
  for line, content in enumerate(file, 1):
    if content.strip():
      rows.parse(content, line)
      yield line, position, position + len(content)
    position += len(content)


class _CountedLines:
  """Lines of a file as text, with a count of the lines and bytes that a reader has taken."""

  def __init__(self, file: io.BufferedReader, path: Path):
    self.file, self.path, self.line, self.position = file, path, 0, file.tell()

  def __iter__(self) -> _CountedLines:
    return self

  def __next__(self) -> str:
    content = self.file.readline()
    if not content:
      raise StopIteration
    self.line += 1
    self.position += len(content)
    try:
      return content.decode("utf-8-sig" if self.line == 1 else "utf-8")
    except UnicodeDecodeError as error:
      raise UserError(f"{self.path}:{self.line}: not UTF-8: byte {content[error.start]:#04x}") from None


def _read_header(file: io.BufferedReader, path: Path) -> tuple[list[str], str]:
  delimiter = "\t" if path.suffix == ".tsv" else ","
  header = next(csv.reader(_CountedLines(file, path), delimiter=delimiter), [])
  if not header:
    raise UserError(f"{path} is empty; its first line must name the columns")
  file.seek(0)
  return header, delimiter


def _csv_spans(file: io.BufferedReader, rows: TextFile) -> Iterator[tuple[int, int, int]]:
  lines = _CountedLines(file, rows.path)
  reader = csv.reader(lines, delimiter=rows.delimiter)
  next(reader)
  line, position = lines.line, lines.position
  try:
    for fields in reader:
      if fields:
        rows.checked(fields, line + 1)
        yield line + 1, position, lines.position
      line, position = lines.line, lines.position
  except csv.Error as error:
    raise UserError(f"{rows.path}:{line + 1}: no CSV: {error}; is a quote left open?") from None
