"""Rows of Parquet and Arrow files and of JSON arrays by number, as `text_files.TextFile` gives those of text files.

Columns that Hugging Face's data sets describe in the schema are read as they mean it: a class label is its name, a
picture or a recording its bytes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from peftjax.data.sources.json_lines import check_keys
from peftjax.data.sources.text_files import Row
from peftjax.errors import UserError
from peftjax.files import MAX_JSON_BYTES, can_be_named, parse_json, read_json

_CHUNK = 256  # rows that are converted together


class ColumnFile:
  """A sequence of rows over the parts of a split, which stay on disk. It can be pickled.

  Attributes:
    path: the first part.
    sha256: hex digest of all parts.

  Raises:
    UserError: a part cannot be read, or is of another format or other columns than the first.
  """

  def __init__(self, parts: Sequence[Path], kind: str):
    self.parts, self.kind, self.path = tuple(parts), kind, parts[0]
    digest = hashlib.sha256()
    for part in self.parts:
      with _readable(part), part.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    self.sha256 = digest.hexdigest()
    if not len(self):
      raise UserError(f"{self.path} has no rows")

  @functools.cached_property
  def _table(self) -> Any:
    tables = [_read(part, self.kind) for part in self.parts]
    for part, table in zip(self.parts, tables):
      if table.column_names != tables[0].column_names:
        raise UserError(f"{part}: columns {table.column_names}, but {self.path} has {tables[0].column_names}")
    try:
      return pa.concat_tables(tables)
    except pa.ArrowException as error:
      raise UserError(f"{self.path}: its parts have columns of different types: {_first_line(error)}") from None

  @functools.cached_property
  def label_names(self) -> Mapping[str, tuple[str, ...]]:
    """Column -> the names of its classes, in the order of their numbers, of those that the schema names."""
    said = (self._table.schema.metadata or {}).get(b"huggingface")
    info = parse_json(said, str(self.path)) if said else {}
    features = info.get("info", {}).get("features", {}) if isinstance(info, dict) else {}
    return {name: names for name, one in features.items() if (names := _names(one))}

  def __len__(self) -> int:
    return int(self._table.num_rows)

  def __getitem__(self, index: int) -> Row:
    number, within = divmod(index, _CHUNK)
    return dict(self._chunk(number)[within])

  def _chunk(self, number: int) -> list[Row]:
    held: tuple[int, list[Row]] | None = self.__dict__.get("_held")
    if held is None or held[0] != number:
      rows = self._table.slice(number * _CHUNK, _CHUNK).to_pylist()
      for name, names in self.label_names.items():
        for row in rows:
          row[name] = _named(row[name], names)
      held = self.__dict__["_held"] = (number, rows)  # one assignment: threads see the old or the new
    return held[1]

  def where(self, index: int) -> str:
    """ "FILE, row N" of a row, counted from 1."""
    return f"{self.path}, row {index + 1}"

  def __getstate__(self) -> dict[str, Any]:
    return {name: value for name, value in self.__dict__.items() if name in ("parts", "kind", "path", "sha256")}


class JsonFile:
  """A sequence of rows over a file that holds a JSON array of objects, or an object with such an array in "data"."""

  def __init__(self, path: Path):
    self.path = path
    try:
      content = path.read_bytes() if path.stat().st_size <= MAX_JSON_BYTES else None
    except OSError as error:
      raise UserError(f"cannot read {path}: {error.strerror}") from None
    if content is None:
      raise UserError(f"{path} has more than {MAX_JSON_BYTES:,} bytes; write it as JSON lines")
    parsed = parse_json(content, str(path))
    rows = parsed.get("data") if isinstance(parsed, dict) else parsed
    if not isinstance(rows, list) or not all(isinstance(one, dict) for one in rows):
      raise UserError(f"{path}: expected a JSON array of objects; JSON lines are jsonl:{path}")
    if not rows:
      raise UserError(f"{path} has no rows")
    check_keys(content, parsed, str(path))
    self._rows: list[Row] = rows
    self.sha256 = hashlib.sha256(content).hexdigest()

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Row:
    return dict(self._rows[index])

  def where(self, index: int) -> str:
    """ "FILE, row N" of a row, counted from 1."""
    return f"{self.path}, row {index + 1}"


def _read(path: Path, kind: str) -> Any:
  with _readable(path):
    if kind == "parquet":
      return pq.read_table(path, memory_map=True)
    source = pa.memory_map(str(path))
    try:
      return pa.ipc.open_stream(source).read_all()  # as Hugging Face's data sets write
    except pa.ArrowInvalid:
      source.seek(0)
      return pa.ipc.open_file(source).read_all()  # as pyarrow.feather and polars write


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
  """Faults of reading as one line."""
  try:
    yield
  except pa.ArrowException as error:
    raise UserError(f"{path} cannot be read: {_first_line(error)}") from None
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror or _first_line(error)}") from None


def _first_line(error: BaseException) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _names(feature: Any) -> tuple[str, ...]:
  """The names of a column's classes, or of those in its lists; () of any other."""
  if not isinstance(feature, dict):
    return ()
  names = feature.get("names")
  if feature.get("_type") == "ClassLabel" and isinstance(names, list):
    return tuple(one for one in names if isinstance(one, str))
  return _names(feature.get("feature"))


def _named(value: Any, names: Sequence[str]) -> Any:
  if isinstance(value, list):
    return [_named(one, names) for one in value]
  return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


# Which files ------------------------------------------------------------------------------------------------------


def saved_splits(folder: Path) -> dict[str, list[Path]]:
  """Split -> its parts, of a folder that ``save_to_disk`` of Hugging Face's data sets wrote.

  It holds one data set, whose state.json lists its files, the split's name then being empty, or several, whose folders
  dataset_dict.json names.

  Raises:
    UserError: the folder is not whole.
  """
  if (folder / "dataset_dict.json").is_file():
    splits = read_json(folder / "dataset_dict.json").get("splits", [])
    return {str(name): _parts(_inside(folder, str(name))) for name in splits}
  return {"": _parts(folder)}


def _parts(folder: Path) -> list[Path]:
  state = folder / "state.json"
  listed = read_json(state).get("_data_files", []) if state.is_file() else []
  found = [_inside(folder, str(one.get("filename", ""))) for one in listed if isinstance(one, dict)]
  if not found:
    raise UserError(f"{folder} is no data set on disk: expected state.json that lists its .arrow files")
  return found


def _inside(folder: Path, name: str) -> Path:
  if Path(name).name != name or name in ("", ".", "..") or not can_be_named(name):
    raise UserError(f"{folder} lists {name!r:.80}; expected the name of a file or folder in it")
  return folder / name
