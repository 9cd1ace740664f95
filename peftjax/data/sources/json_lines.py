"""Where the rows of a JSON-lines file stand, and which of its columns hold a text in every row.

Small files are parsed line by line in Python. Large ones go through Arrow's reader, a block at a time, at a hundred
times the speed; a block that it does not read as one row a line is parsed line by line, which finds what is wrong.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from peftjax.errors import UserError

BLOCK = 2**24  # bytes; a file of less is parsed in Python
Parse = Callable[[bytes, int], dict[str, Any]]  # (a line's bytes, its number) -> the row


@dataclasses.dataclass(frozen=True)
class Spans:
  """Rows of a file.

  Attributes:
    starts, ends: [n] int64, the first byte of each row and the one after its last.
    lines: [n] int64, the line (from 1) on which each starts; None: row i on line i + 1.
  """

  starts: np.ndarray
  ends: np.ndarray
  lines: np.ndarray | None = None

  def line(self, index: int) -> int:
    """The line on which a row starts."""
    return index % len(self.starts) + 1 if self.lines is None else int(self.lines[index])


@dataclasses.dataclass(frozen=True)
class Indexed:
  """What one reading of a file shows.

  Attributes:
    spans: its rows; blank lines are none.
    texts: the columns that hold a string in every row.
    sha256: hex digest of the file.
  """

  spans: Spans
  texts: frozenset[str]
  sha256: str


@dataclasses.dataclass(frozen=True)
class _Found:
  """What a block shows.

  Attributes:
    lines: [n] int64, its lines (from 0) that are rows; None: all.
    texts: as `Indexed` has them.
  """

  lines: np.ndarray | None
  texts: frozenset[str]


_COLONS = (b'":', b" :", b"\t:", b"\r:")  # behind every key stands one of them


def check_keys(content: bytes, row: dict[str, Any] | list[Any], where: str) -> None:
  """Checks that no object in a row, or in a list of them, has a field twice, of which `json` keeps the last.

  Where there are as many colons that may stand behind a key as the row has keys, or each key is written once, none was
  lost. Few other rows are left to be parsed again.

  Args:
    content: what was parsed to `row`.
    where: it stands; opens the error's line.

  Raises:
    UserError: a field stands twice.
  """
  if isinstance(row, dict) and content.count(b":") == len(row):
    return
  is_flat = isinstance(row, dict) and content.count(b"{") == 1
  if sum(map(content.count, _COLONS)) == (len(row) if is_flat else _keys(row)):
    return
  if is_flat and b"\\" not in content and all(content.count(f'"{name}"'.encode()) == 1 for name in row):
    return

  def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
      names = [name for name, _ in pairs]
      twice = next(name for name in names if names.count(name) > 1)
      raise UserError(f"{where}: the field {twice!r:.60} stands twice in one object; leave one out")
    return found

  json.loads(content.decode("utf-8-sig"), object_pairs_hook=once)


def _keys(row: dict[str, Any] | list[Any]) -> int:
  count, left = 0, list[Any]([row])
  while left:
    one = left.pop()
    count += len(one) if isinstance(one, dict) else 0
    left += [inner for inner in (one.values() if isinstance(one, dict) else one) if isinstance(inner, (dict, list))]
  return count


def index_json(file: io.BufferedReader, parse: Parse) -> Indexed:
  """Reads a file once.

  Args:
    file: at its start.
    parse: of a line that must hold a row; what it raises ends the reading. Arrow refuses a field that stands twice.
  """
  digest, position, line = hashlib.sha256(), 0, 0
  bounds, rows = [np.zeros(1, np.int64)], []  # of all lines; of each block its lines that are rows
  texts: frozenset[str] | None = None
  for block in _blocks(file):
    digest.update(block)
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
    if not len(ends) or ends[-1] < len(block):
      ends = np.append(ends, len(block))
    found = _by_line(block, ends, parse, line) if len(block) < BLOCK else _by_arrow(block, ends, parse, line)
    if found.lines is None or len(found.lines):
      texts = found.texts if texts is None else texts & found.texts
    rows.append((line, len(ends), found.lines))
    bounds.append(ends + position)
    position, line = position + len(block), line + len(ends)
  whole = np.concatenate(bounds)
  del bounds
  spans = Spans(whole[:-1], whole[1:])
  if any(lines is not None for _, _, lines in rows):
    kept = np.concatenate([first + (np.arange(count) if lines is None else lines) for first, count, lines in rows])
    spans = Spans(whole[kept], whole[kept + 1], kept + 1)
  return Indexed(spans, texts or frozenset(), digest.hexdigest())


def _blocks(file: io.BufferedReader) -> Iterator[bytes]:
  """Whole lines, `BLOCK` bytes of them and the rest of the last; the end of the file has less."""
  while block := file.read(BLOCK):
    yield block if block.endswith(b"\n") else block + file.readline()


def _by_arrow(block: bytes, ends: np.ndarray, parse: Parse, first: int) -> _Found:
  """As `_by_line`, which finds the mistakes and blank lines of a block that Arrow does not read as one row a line."""
  import pyarrow as pa
  import pyarrow.json as reader

  try:
    table = reader.read_json(pa.BufferReader(block), read_options=reader.ReadOptions(block_size=2**22))
  except pa.ArrowException:
    return _by_line(block, ends, parse, first)
  if table.num_rows != len(ends):
    return _by_line(block, ends, parse, first)
  names = (field.name for field in table.schema if pa.types.is_string(field.type))
  return _Found(None, frozenset(name for name in names if not table.column(name).null_count))


def _by_line(block: bytes, ends: np.ndarray, parse: Parse, first: int) -> _Found:
  """What a block shows, parsed line by line; `first`: lines of the file before it."""
  texts: frozenset[str] | None = None
  kept = []
  for number, (start, end) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist())):
    content = block[start:end]
    if content.strip():
      row = parse(content, first + number + 1)
      names = {name for name, value in row.items() if isinstance(value, str)}
      texts = frozenset(names) if texts is None else texts & names
      kept.append(number)
  return _Found(None if len(kept) == len(ends) else np.array(kept, np.int64), texts or frozenset())
