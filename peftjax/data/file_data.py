"""Data sets made of JSON-lines or CSV files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.data.labels import TAGS, Labels, read_labels
from peftjax.data.sources import CAUSAL_LM, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION, Dataset, Example
from peftjax.data.splits import hashed_split
from peftjax.data.text_files import Row, TextFile
from peftjax.errors import UserError, nearest

SPLIT_FILES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}

TEXT_NAMES = ("text", "sentence", "content", "document")
PAIR_NAMES = ("text_pair",)
TOKENS_NAMES = ("tokens", "words")
LABEL_NAMES = ("label", "labels", "category", "class", "intent")
TAGS_NAMES = ("tags", "ner_tags", "labels")


@dataclasses.dataclass(frozen=True)
class Columns:
  """Which columns of a row hold what; an empty name: there is none. `text` is empty where `tokens` is not."""

  text: str
  pair: str
  tokens: str
  label: str

  def names(self) -> list[str]:
    return [name for name in dataclasses.astuple(self) if name]


@dataclasses.dataclass(frozen=True)
class FileSource:
  """A `Source`: some rows of a file, their labels as numbers."""

  file: TextFile
  rows: np.ndarray  # [n] int64
  columns: Columns
  labels: Labels | None

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> Example:
    number = int(self.rows[index])
    row, columns = self.file[number], self.columns
    if columns.tokens:
      example: Example = {"tokens": row[columns.tokens]}
    else:
      example = {"text": row[columns.text]} | ({"text_pair": row[columns.pair]} if columns.pair else {})
    if self.labels is not None:
      name = "tags" if self.labels.kind == TAGS else "label"
      example[name] = self.labels.encode(row[columns.label], self.file.where(number))
    return example


def open_files(kind: str, path: str, text_column: str, label_column: str) -> Dataset:
  """A data set of `kind` ("jsonl" or "csv") files; `open_data` says what `path` may be.

  Raises:
    UserError: see `open_data`.
  """
  files = {part: TextFile(file, kind) for part, file in find_files(kind, path).items()}
  leading = files.get("train") or files[""]
  columns = choose_columns(leading[0], leading.where(0), text_column, label_column)
  contents = {part: [_content(file, row, columns) for row in range(len(file))] for part, file in files.items()}
  labels = _labels(files, contents, columns, from_text=kind == "csv") if columns.label else None
  if "train" in files:
    parts = {split: (file, np.arange(len(file))) for split, file in files.items()}
  else:
    parts = _divided(files[""], [text for text, _ in contents[""]])
  return Dataset(
    name=f"{kind}:{path}",
    task=TOKEN_CLASSIFICATION if columns.tokens else TEXT_CLASSIFICATION if labels else CAUSAL_LM,
    label_names=labels.names if labels else (),
    splits={split: len(rows) for split, (_, rows) in parts.items()},
    columns=tuple(leading[0]),
    identity={"files": {part: file.sha256 for part, file in files.items()}, "columns": dataclasses.astuple(columns)},
    read=lambda split: FileSource(*parts[split], columns, labels),
  )


def find_files(kind: str, path: str) -> dict[str, Path]:
  """Split name -> file; the name is empty for one file that holds all splits.

  Raises:
    UserError: no such file or folder, or no training file.
  """
  if "{split}" not in path and not Path(path).is_dir():
    if not Path(path).is_file():
      near = [one.name for one in Path(path).absolute().parent.glob("*")]
      raise UserError(f"data.name: no file {path!r}; {nearest(Path(path).name, near)}")
    return {"": Path(path)}
  endings = ("csv", "tsv") if kind == "csv" else (kind,)
  patterns = [path] if "{split}" in path else [f"{path}/{{split}}.{ending}" for ending in endings]
  found: dict[str, Path] = {}
  for split, names in SPLIT_FILES.items():
    candidates = [Path(pattern.replace("{split}", name)) for pattern in patterns for name in names]
    for candidate in filter(Path.is_file, candidates):
      found.setdefault(split, candidate)
  if "train" not in found:
    raise UserError(f"data.name: no training file; expected {patterns[0].replace('{split}', 'train')}")
  return found


def choose_columns(row: Row, where: str, text_column: str, label_column: str) -> Columns:
  """The columns to read, from the first row.

  Raises:
    UserError: a named column is not there, or no column looks like text.
  """
  named = text_column.split(",") if text_column else []
  for name in [*named, *([label_column] if label_column else [])]:
    if name not in row:
      raise UserError(f"{where}: no column {name!r}; {nearest(name, row)}")
  if len(named) > 2:
    raise UserError(f"data.text_column={text_column!r}: expected one column or two")
  tokens = _first(named[:1] or TOKENS_NAMES, [name for name in row if isinstance(row[name], list)])
  text = "" if tokens else _first(named or TEXT_NAMES, row)
  if not tokens and not text:
    raise UserError(f"{where}: no column {' or '.join(map(repr, TEXT_NAMES))}; set data.text_column to {_choice(row)}")
  pair = named[1] if len(named) == 2 else "" if named else _first(PAIR_NAMES, row)
  label = label_column or _first(TAGS_NAMES if tokens else LABEL_NAMES, row)
  if tokens and not label:
    raise UserError(f"{where}: no column {' or '.join(map(repr, TAGS_NAMES))}; set data.label_column to {_choice(row)}")
  return Columns(text, "" if tokens else pair, tokens, label)


def _first(names: Iterable[str], present: Iterable[str]) -> str:
  present = set(present)
  return next((name for name in names if name in present), "")


def _choice(row: Row) -> str:
  return "one of " + ", ".join(row)


def _content(file: TextFile, number: int, columns: Columns) -> tuple[str, Any]:
  """(text that the row is known by, raw label), everything in it checked."""
  row, where = file[number], file.where(number)
  for name in columns.names():
    if name not in row:
      raise UserError(f"{where}: no column {name!r}; {nearest(name, row)}")
  label = row[columns.label] if columns.label else None
  if columns.tokens:
    tokens = row[columns.tokens]
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
      raise UserError(f"{where}: column {columns.tokens!r} holds {tokens!r:.60}, expected a list of strings")
    if not isinstance(label, list) or len(label) != len(tokens):
      count = len(label) if isinstance(label, list) else "no list of"
      raise UserError(f"{where}: {len(tokens)} tokens but {count} tags in column {columns.label!r}")
    return " ".join(tokens), label
  texts = [row[name] for name in (columns.text, columns.pair) if name]
  for name, text in zip((columns.text, columns.pair), texts, strict=False):
    if not isinstance(text, str):
      raise UserError(f"{where}: column {name!r} holds {text!r:.60}, expected a string")
  return " ".join(texts), label


def _labels(
  files: Mapping[str, TextFile], contents: Mapping[str, list[tuple[str, Any]]], columns: Columns, from_text: bool
) -> Labels:
  """The labels of the training split (of the whole, where one file holds all), with every other row checked."""
  part = "train" if "train" in files else ""
  wheres = [files[part].where(row) for row in range(len(files[part]))]
  labels = read_labels([label for _, label in contents[part]], wheres, from_text, tags=bool(columns.tokens))
  for part, content in contents.items():
    for row, (_, label) in enumerate(content):
      labels.encode(label, files[part].where(row))
  return labels


def _divided(file: TextFile, texts: list[str]) -> dict[str, tuple[TextFile, np.ndarray]]:
  splits = np.array([hashed_split(text, SHARES) for text in texts])
  parts = {split: (file, np.flatnonzero(splits == split)) for split in SHARES}
  if not len(parts["train"][1]):
    raise UserError(f"{file.path} has too few rows to divide into training, validation and test")
  return {split: (file, rows) for split, (file, rows) in parts.items() if len(rows)}
