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
import pyarrow.compute as pc
import pyarrow.parquet as pq

from peftjax import memory
from peftjax.data.sources.json_lines import check_keys
from peftjax.data.sources.text_files import Row
from peftjax.errors import UserError
from peftjax.files import MAX_JSON_BYTES, can_be_named, parse_json, read_json

_CHUNK = 256  # rows that are converted together
_ROW = 64  # bytes that a row takes at least once it is checked
_SMALL = 2**28  # bytes that any machine has


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
    names = tables[0].column_names
    if twice := next((name for name in names if names.count(name) > 1), None):
      raise UserError(f"{self.path} has two columns named {twice!r:.60}; rename one")
    for part, table in zip(self.parts, tables):
      if (own := _label_names(table, part)) != (first := _label_names(tables[0], self.path)):
        odd = next(name for name in names if own.get(name) != first.get(name))
        raise UserError(
          f"{part}: the classes of column {odd!r:.60} are {_told(own.get(odd))}, but in {self.path} "
          f"{_told(first.get(odd))}; write all parts with the same"
        )
    try:
      return pa.concat_tables(tables)
    except pa.ArrowException as error:
      raise UserError(f"{self.path}: its parts have columns of different types: {_first_line(error)}") from None

  @functools.cached_property
  def label_names(self) -> Mapping[str, tuple[str, ...]]:
    """Column -> the names of its classes, in the order of their numbers, of those that the schema names."""
    return _label_names(self._table, self.path)

  def __len__(self) -> int:
    return int(self._table.num_rows)

  def __getitem__(self, index: int) -> Row:
    number, within = divmod(index, _CHUNK)
    return dict(self._chunk(number)[within])

  def _chunk(self, number: int) -> list[Row]:
    held: tuple[int, list[Row]] | None = self.__dict__.get("_held")
    if held is None or held[0] != number:
      rows = self._converted(self._table.slice(number * _CHUNK, _CHUNK), number * _CHUNK)
      for name, names in self.label_names.items():
        for row in rows:
          row[name] = _named(row[name], names)
      held = self.__dict__["_held"] = (number, rows)  # one assignment: threads see the old or the new
    return held[1]

  def _converted(self, rows: Any, first: int) -> list[Row]:
    """Rows of the table, from number `first` on, as Python's values."""
    columns: dict[str, list[Any]] = {}
    for name in rows.column_names:
      try:
        columns[name] = rows.column(name).to_pylist()
      except (ValueError, TypeError, LookupError, OverflowError, pa.ArrowException) as error:
        raise UserError(f"{self.where(first)} or after: column {name!r:.60}: {_first_line(error)}") from None
    return [dict(zip(columns, values)) for values in zip(*columns.values())]

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
  """A file's table.

  Raises:
    UserError: it cannot be read, or a small file would be a table that no memory holds.
  """
  with _readable(path):
    if kind == "parquet":
      stored = pq.ParquetFile(path, memory_map=True)
      groups = [stored.metadata.row_group(number) for number in range(stored.num_row_groups)]
      memory.check(_ROW * stored.metadata.num_rows + sum(one.total_byte_size for one in groups), str(path))
      total = 0
      columns = _repeated(groups)
      for batch in stored.iter_batches(_CHUNK, columns=columns) if columns else ():
        memory.check(total := total + batch.nbytes, str(path))
      table = pq.read_table(path, memory_map=True)
    else:
      source = pa.memory_map(str(path))
      try:
        table = pa.ipc.open_stream(source).read_all()  # as Hugging Face's data sets write
      except pa.ArrowInvalid:
        source.seek(0)
        table = pa.ipc.open_file(source).read_all()  # as pyarrow.feather and polars write
    memory.check(_ROW * table.num_rows + sum(_expanded(one, str(path)) for one in table.columns), str(path))
    return table


def _repeated(groups: Sequence[Any]) -> list[str]:
  """The columns that could be above 1 GiB because what is stored once stands in many rows."""
  found = set()
  for group in groups:
    for chunk in map(group.column, range(group.num_columns)):
      if chunk.has_dictionary_page and chunk.num_values * chunk.total_uncompressed_size > 2**30:
        found.add(chunk.path_in_schema.split(".")[0])
  return sorted(found)


def _expanded(column: Any, where: str) -> int:
  """Bytes of a column's values where one is stored for many rows, with as many copies as there are rows of it.

  Raises:
    UserError: no memory holds them.
  """
  kind = column.type.value_type if pa.types.is_dictionary(column.type) else None
  if kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
    chunks = (pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in column.chunks)
    return sum(pc.sum(pc.cast(lengths, pa.int64())).as_py() or 0 for lengths in chunks)
  if not _shares(column.type) or len(column) * column.get_total_buffer_size() < _SMALL:
    return 0
  total = checked = 0
  for value in column:  # one at a time: no two of them need stand in memory
    with contextlib.suppress(ValueError, TypeError, LookupError, OverflowError, pa.ArrowException):  # told by its row
      total += _bytes_of(value.as_py())
    if total - checked > _SMALL:
      memory.check(checked := total, where)
  return total


def _shares(kind: Any) -> bool:
  """Whether many rows of a type may be stored as one."""
  is_one = (pa.types.is_dictionary, pa.types.is_run_end_encoded, pa.types.is_string_view, pa.types.is_binary_view,
            pa.types.is_list_view, pa.types.is_large_list_view)  # fmt: skip
  within = [kind.field(number).type for number in range(kind.num_fields)] if pa.types.is_nested(kind) else []
  return any(one(kind) for one in is_one) or any(map(_shares, within))


def _bytes_of(value: Any) -> int:
  """Bytes of a value's texts, and 8 for each of its parts."""
  if isinstance(value, (str, bytes)):
    return len(value)
  parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
  return 8 + sum(map(_bytes_of, parts))


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


def _label_names(table: Any, path: Path) -> dict[str, tuple[str, ...]]:
  """Column -> the names of its classes, of a table's columns that its schema gives such."""
  said = (table.schema.metadata or {}).get(b"huggingface")
  features = parse_json(said, str(path)) if said else {}
  for field in ("info", "features"):
    features = features.get(field) if isinstance(features, dict) else None
  columns = features if isinstance(features, dict) else {}  # the table may have lost some since
  return {name: names for name in table.column_names if (names := _names(columns.get(name)))}


def _told(names: tuple[str, ...] | None) -> str:
  return f"{', '.join(names)}"[:80] if names else "not named"


def _names(feature: Any) -> tuple[str, ...]:
  """The names of a column's classes, or of those in its lists; () of any other, and of names that are not one each."""
  if isinstance(feature, list) and len(feature) == 1:  # a list, as earlier versions describe it
    return _names(feature[0])
  if not isinstance(feature, dict):
    return ()
  names = feature.get("names")
  if feature.get("_type") == "ClassLabel" and isinstance(names, list):
    is_one_each = all(isinstance(one, str) for one in names) and len(set(names)) == len(names)
    return tuple(names) if is_one_each else ()  # else the numbers alone say which is which
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
