"""New examples for a trained model: texts, tables, pictures, recordings, as the examples that its task reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from peftjax.data.inputs.pictures import decode
from peftjax.data.sources import columns, media
from peftjax.data.sources import files as tables
from peftjax.data.sources.column_files import ColumnFile, JsonFile
from peftjax.data.sources.text_files import TextFile
from peftjax.data.sources.types import BESIDE, SPEECH_RECOGNITION, Example, Header
from peftjax.errors import UserError, nearest
from peftjax.files import read_text
from peftjax.models.family import CTC

Row = dict[str, Any]

# Fields that say what is wanted, which new examples do not: what stands in their place.
_UNKNOWN: dict[str, Callable[[Example, Header], Any]] = {
  "label": lambda example, header: np.zeros(len(header.label_names)) if header.label_kind == "classes" else 0,
  "tags": lambda example, header: list(range(len(example["tokens"]))),  # so that a token's label says whose it is
  "target": lambda example, header: "",
  "answers": lambda example, header: [],
  "is_impossible": lambda example, header: False,
}
# The same of pictures with boxes; of these the size is the picture's
_NO_BOXES: dict[str, Callable[[Example, Header], Any]] = {
  "boxes": lambda example, header: np.zeros((0, 4), np.float32),
  "labels": lambda example, header: np.zeros(0, np.int32),
  "crowd": lambda example, header: np.zeros(0, bool),
  "size": lambda example, header: decode(example["image"], str(example.get("where", "picture"))).size[::-1],
}
_SAID = (SPEECH_RECOGNITION, CTC)  # tasks whose text is what is asked
_USUAL = {
  "text": columns.TEXT_NAMES,
  "text_pair": columns.PAIR_NAMES,
  "tokens": columns.TOKENS_NAMES,
  "source": columns.SOURCE_NAMES,
  "messages": columns.MESSAGES_NAMES,
  "image": columns.IMAGE_NAMES,
  "audio": columns.AUDIO_NAMES,
}
_TABLES: dict[str, Callable[[Path], tables.Table]] = {
  ".jsonl": lambda path: TextFile(path, "jsonl"),
  ".csv": lambda path: TextFile(path, "csv"),
  ".tsv": lambda path: TextFile(path, "csv"),
  ".json": JsonFile,
  ".parquet": lambda path: ColumnFile([path], "parquet"),
  ".arrow": lambda path: ColumnFile([path], "arrow"),
}
_PLACE = re.compile(r":\d+$|, row \d+$")  # behind a file's name
_WORD = re.compile(r"\w+|[^\w\s]")


def rows_of(texts: Sequence[str], files: Sequence[str]) -> Iterator[tuple[Row, str]]:
  """(row, where it stands) of every text and of everything in the files.

  A file is a picture or a recording, ``.txt`` with a text on each line, a table (``.jsonl``, ``.json``, ``.csv``,
  ``.tsv``, ``.parquet``, ``.arrow``), or a folder of pictures or recordings.

  Raises:
    UserError: a file is not there, or of another kind.
  """
  for number, text in enumerate(texts, 1):
    yield {"text": text}, f"--text {number}"
  for name in files:
    path = Path(name).expanduser()
    if path.is_dir():
      found = sorted(one for one in path.rglob("*") if one.is_file() and media.medium_of(one.name))
      if not found:
        raise UserError(f"--file: no picture or recording in the folder {name!r}")
      yield from ((_of_medium(one), str(one)) for one in found)
    elif not path.is_file():
      near = [one.name for one in path.absolute().parent.glob("*")]
      raise UserError(f"--file: no file {name!r}; {nearest(path.name, near)}")
    elif media.medium_of(path.name):
      yield _of_medium(path), name
    elif path.suffix == ".txt":
      lines = read_text(path, "utf-8-sig").split("\n")  # U+2028 and its like stand within a line
      yield from (({"text": line}, f"{name}:{number}") for number, line in enumerate(lines, 1) if line.strip())
    elif path.suffix in _TABLES:
      table = _TABLES[path.suffix](path)
      yield from ((table[at], table.where(at)) for at in range(len(table)))
    else:
      known = f".txt, {', '.join(_TABLES)}"
      raise UserError(f"--file={name}: expected {known}, a picture, a recording, or a folder of them")


def _of_medium(path: Path) -> Row:
  medium = media.medium_of(path.name)
  assert medium is not None
  return {medium.field: media.read(path), "where": str(path)}


def example_of(
  row: Mapping[str, Any], where: str, header: Header, data: ConfigDict, targets: Collection[str] = ()
) -> Example:
  """A row as an example of the fields that the header names; what is to be predicted is filled in with nothing.

  Args:
    where: opens an error's line.
    data: `config.data` of the run, which may name columns.
    targets: `Task.target_fields`, which the example lacks where the row does.

  Raises:
    UserError: a field that the task reads is not in the row.
  """
  if not header.fields:  # of a task and an input of the user's own
    return {name: _array(name, value) for name, value in row.items()}
  example: Example = {name: row[name] for name in BESIDE if row.get(name) is not None}
  has_boxes = holds_boxes(header.fields)
  unknown = _UNKNOWN | (_NO_BOXES if has_boxes else {})
  unknown |= {"text": lambda example, header: ""} if header.task in _SAID else {}
  for field in header.fields:
    if field not in unknown and field != "id" and not (field in targets and row.get(field) is None):
      example[field] = _value(field, row, where, header, data)
  wanted = {*header.fields, *(_NO_BOXES if has_boxes else ())}
  return example | {name: make(example, header) for name, make in unknown.items() if name in wanted}


def holds_boxes(fields: Collection[str]) -> bool:
  """Whether examples of such fields are pictures with the boxes of objects."""
  return {"image", "boxes", "labels"} <= set(fields)


def _value(field: str, row: Mapping[str, Any], where: str, header: Header, data: ConfigDict) -> Any:
  texts = (data.text_column.split(",") if data.text_column else []) + ["", ""]
  named = {"text": texts[0], "tokens": texts[0], "messages": texts[0], "text_pair": texts[1],
           "source": data.source_column, "image": data.image_column, "audio": data.audio_column}  # fmt: skip
  column = named.get(field, "")
  names = [name for name in (column, field, *_USUAL.get(field, ())) if name in row]
  kind = list if field in ("tokens", "messages") else object
  held = next((row[name] for name in names if isinstance(row[name], kind)), None)
  if held is None:
    held = _made(field, row, header)
  if held is None:
    if names and row[names[0]] is None:
      raise UserError(f"{where}: {names[0]!r} is null")
    given = ", ".join(row) or "nothing"
    raise UserError(f"{where}: no {column or field!r} in it; it holds {given}")
  if field == "messages":
    return held if held[-1].get("role") == "assistant" else [*held, {"role": "assistant", "content": ""}]
  medium = next((one for one in media.MEDIA if one.field == field), None)
  if medium is not None and media.is_within(held):
    return held["bytes"]
  if medium is not None and isinstance(held, str):
    return media.read(media.named_file(held, Path(_PLACE.sub("", where)).parent, where, medium))
  return _array(field, held)


def _array(field: str, held: Any) -> Any:
  """A list of numbers, as a table holds an array of a modality of the user's own, as that array."""
  if field in _USUAL or not isinstance(held, list):
    return held
  try:
    made = np.asarray(held)
  except ValueError:  # lists of several lengths
    return held
  return made if made.dtype.kind in "biuf" else held


def _made(field: str, row: Mapping[str, Any], header: Header) -> Any:
  """A field from the text of a row that has not the field itself; None if there is no way."""
  names = (*columns.TEXT_NAMES, *columns.SOURCE_NAMES)
  text = next((row[name] for name in names if isinstance(row.get(name), str)), None)
  if text is None:
    return None
  if field == "tokens":
    return _WORD.findall(text)
  if field == "messages":
    return [{"role": "user", "content": text}]
  if field == "source" or (field == "text_pair" and header.task == "contrastive"):
    return text
  return None


def told(example: Example, where: str) -> Row:
  """What a prediction names its example by: its texts, or its file, or where it stands."""
  if "where" in example:
    return {"file": example["where"]}
  if "messages" in example:
    return {"messages": example["messages"][:-1]}
  names = ("text", "text_pair", "tokens", "source", "question")
  return {name: example[name] for name in names if name in example} or {"example": where}


def of_lists(example: Example) -> str:
  """Behind an error of an example: which of its fields is no array, as it holds lists of several lengths; or ""."""
  for name, value in example.items():
    try:
      _ = np.asarray(value) if isinstance(value, list) else None
    except ValueError:
      return f"; its {name!r} holds lists of several lengths, which are no array"
  return ""
