"""Data sets made of tables: JSON lines, CSV, JSON arrays, Parquet, Arrow."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from peftjax.data.sources import media
from peftjax.data.sources.column_files import ColumnFile, JsonFile, saved_splits
from peftjax.data.sources.columns import MESSAGES, Columns, are_messages, choose_columns, told_read
from peftjax.data.sources.labels import AUTO, TAGS, Labels, read_labels
from peftjax.data.sources.splits import hashed_split
from peftjax.data.sources.text_files import Row, TextFile
from peftjax.data.sources.types import Dataset, Example, Named
from peftjax.errors import NotHere, UserError, nearest

SPLIT_FILES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}

_BEFORE_FILES = [field.name for field in dataclasses.fields(Columns)].index("image")
Choose = Callable[[Row, str, Named], Columns]


class Table(Protocol):
  """Rows of a file by number; `where` opens the line of an error about one."""

  path: Path
  sha256: str

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Row: ...

  def where(self, index: int) -> str: ...


Parts = dict[str, tuple[Table, Sequence[int] | np.ndarray]]  # split -> a file and the numbers of its rows


@dataclasses.dataclass(frozen=True)
class FileSource:
  """A `Source`: some rows of a file, their labels as numbers."""

  file: Table
  rows: Sequence[int] | np.ndarray
  columns: Columns
  labels: Labels | None
  root: Path = Path()  # of pictures and recordings

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> Example:
    number = int(self.rows[index])
    row, columns = self.file[number], self.columns
    if columns.source:
      return {"source": row[columns.source], "target": row[columns.target]}
    if columns.messages:
      return {"messages": row[columns.messages]}
    example: Example
    if columns.medium is not None:
      held, where, field = row[columns.file], self.file.where(number), columns.medium.field
      if media.is_within(held):
        example = {field: held["bytes"], "where": where}
      else:
        path = media.named_file(held, self.root, where, columns.medium)
        example = {field: media.read(path), "where": str(path)}
      example |= {"text": row[columns.text]} if columns.text else {}
    elif columns.tokens:
      example = {"tokens": row[columns.tokens]}
    else:
      example = {"text": row[columns.text]} | ({"text_pair": row[columns.pair]} if columns.pair else {})
    if self.labels is not None:
      name = "tags" if self.labels.kind == TAGS else "label"
      example[name] = self.labels.encode(row[columns.label], self.file.where(number))
    return example


def open_jsonl(path: str, named: Named) -> Dataset:
  """A data set of JSON-lines files; see `open_files`."""
  return open_files("jsonl", path, named)


def open_csv(path: str, named: Named) -> Dataset:
  """A data set of CSV files; see `open_files`."""
  return open_files("csv", path, named)


def open_json(path: str, named: Named) -> Dataset:
  """A data set of JSON arrays of objects; see `open_files`."""
  return dataset_of("json", path, {part: JsonFile(file) for part, file in find_files("json", path).items()}, named)


def open_parquet(path: str, named: Named) -> Dataset:
  """A data set of Parquet files, or of a folder of such shards as hubs keep them."""
  parts = find_parts("parquet", path)
  return dataset_of("parquet", path, {part: ColumnFile(one, "parquet") for part, one in parts.items()}, named)


def open_arrow(path: str, named: Named) -> Dataset:
  """A data set of Arrow files, or of a folder that ``save_to_disk`` of Hugging Face's data sets wrote."""
  folder = Path(path)
  is_saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
  found = saved_splits(folder) if is_saved else find_parts("arrow", path)
  ours = {name: split for split, names in SPLIT_FILES.items() for name in names}
  parts = {ours.get(part, part): one for part, one in found.items()}
  if "" not in parts and "train" not in parts:
    raise UserError(f"data.name: {path} has no split 'train'; it has {', '.join(found) or 'none'}")
  return dataset_of("arrow", path, {part: ColumnFile(one, "arrow") for part, one in parts.items()}, named)


def open_files(kind: str, path: str, named: Named, *how: Any, **more: Any) -> Dataset:
  """A data set of `kind` ("jsonl" or "csv") files; for other arguments see `dataset_of`."""
  files = {part: TextFile(file, kind) for part, file in find_files(kind, path).items()}
  return dataset_of(kind, path, files, named, *how, **more)


def dataset_of(
  kind: str,
  path: str,
  files: Mapping[str, Table],
  named: Named,
  choose: Choose | None = None,
  filled: bool = False,
  divided: bool = True,
) -> Dataset:
  """A data set of the rows of some files; `open_data` says what `path` may be.

  Args:
    files: split -> its rows; the name is empty for one file that holds all splits.
    choose: the first row, where it stands and the named columns -> those to read; `choose_columns` without.
    filled: texts of white space alone are a mistake.
    divided: one file is divided; otherwise it is the training split.

  Raises:
    UserError: see `open_data`.
  """
  leading = files.get("train") or files[""]
  columns = (choose or choose_columns)(leading[0], leading.where(0), named)
  roots_read = [f"{one}_root" for one in ("image", "audio") if getattr(columns, one)]
  kinds = named.label_kind if choose is not None or (columns.label and not columns.tokens) else ""
  named.check_read(leading.where(0), columns.names(), roots_read, kinds)
  roots: dict[str, Path] = {}
  sizes: dict[str, str] = {}
  if columns.medium is not None:
    given = named.image_root if columns.image else named.audio_root
    root = Path(given).expanduser() if given else None
    roots = {part: root or file.path.parent for part, file in files.items()}
    sizes = {part: _sizes(file, columns, roots[part]) for part, file in files.items()}
  contents = {
    part: [_content(file, row, columns, filled) for row in range(len(file))]
    for part, file in files.items()
    if filled or not _is_checked(file, columns)
  }
  labels = _labels(files, contents, columns, kind == "csv", named.label_kind) if columns.label else None
  if "train" in files:
    parts: Parts = {split: (file, range(len(file))) for split, file in files.items()}
  elif not divided:
    parts = {"train": (files[""], range(len(files[""])))}
  else:
    known = contents.get("") or (_content(files[""], row, columns, filled) for row in range(len(files[""])))
    parts = _divided(files[""], (text for text, _ in known))
  folders = {split: roots.get(split, roots.get("", Path())) for split in parts}
  return Dataset(
    name=f"{kind}:{path}",
    task=columns.task,
    label_names=labels.names if labels else (),
    splits={split: len(rows) for split, (_, rows) in parts.items()},
    columns=tuple(leading[0]),
    fields=columns.fields,
    label_kind=labels.kind if labels else "",
    identity={
      "files": {part: file.sha256 for part, file in files.items()},
      "columns": dataclasses.astuple(columns)[:_BEFORE_FILES],
      **({columns.medium.field: columns.file, "images": sizes} if columns.medium is not None else {}),
      **({} if named.label_kind == AUTO else {"label_kind": named.label_kind}),
    },
    read=lambda split: FileSource(*parts[split], columns, labels, folders[split]),
    notes=(labels.told(columns.label),) if labels else told_read(leading[0], columns),
  )


def find_files(kind: str, path: str) -> dict[str, Path]:
  """Split name -> file of `kind`, which its name ends with; the name is empty for one file that holds all splits.

  Raises:
    UserError: no such file or folder, or no training file.
  """
  if "{split}" not in path and not Path(path).is_dir():
    if not Path(path).is_file():
      near = [one.name for one in Path(path).absolute().parent.glob("*")]
      raise NotHere(f"data.name: no file {path!r}; {nearest(Path(path).name, near)}")
    return {"": Path(path)}
  endings = ("csv", "tsv") if kind == "csv" else (kind,)
  patterns = [path] if "{split}" in path else [f"{path}/{{split}}.{ending}" for ending in endings]
  found: dict[str, Path] = {}
  for split, names in SPLIT_FILES.items():
    candidates = [Path(pattern.replace("{split}", name)) for pattern in patterns for name in names]
    for candidate in filter(Path.is_file, candidates):
      _check_link(candidate)
      found.setdefault(split, candidate)
  if "train" not in found:
    raise UserError(f"data.name: no training file; expected {patterns[0].replace('{split}', 'train')}")
  return found


def find_parts(kind: str, path: str) -> dict[str, list[Path]]:
  """Split name -> its files of `kind`, which their names end with; the name is empty for files that hold all splits.

  Raises:
    UserError: no such file or folder, or no training file.
  """
  if "{split}" not in path and not Path(path).is_dir():
    return {"": list(find_files(kind, path).values())}
  found: dict[str, list[Path]] = {}
  patterns = [f"{{split}}.{kind}", f"{{split}}-*.{kind}", f"{{split}}/*.{kind}", f"data/{{split}}-*.{kind}"]
  root, patterns = (Path(), [path]) if "{split}" in path else (Path(path), patterns)
  for split, names in SPLIT_FILES.items():
    for pattern in (pattern.replace("{split}", name) for pattern in patterns for name in names):
      place = Path(pattern)
      files = sorted((root / place.parent).glob(place.name))
      if files and split not in found:
        found[split] = files
  if not found and (files := sorted(root.glob(f"*.{kind}"))):
    found[""] = files
  for file in (file for files in found.values() for file in files):
    _check_link(file)
  if not {"train", ""} & found.keys():
    raise UserError(f"data.name: no training file; expected {path if '{split}' in path else f'{path}/train.{kind}'}")
  return found


def _check_link(file: Path) -> None:
  """Raises a `UserError` if a file of a folder is a link out of it, except to the store of Hugging Face's cache."""
  if not media.is_inside(file, file.parent):
    raise UserError(f"{file} is a link out of the data set's folder; name the file that is meant")


def _sizes(file: Table, columns: Columns, root: Path) -> str:
  """Hex digest of the sizes of the files that a table names, each of which must be there, or that stand in it."""
  assert columns.medium is not None
  digest = hashlib.sha256()
  for number in range(len(file)):
    name, where = file[number].get(columns.file), file.where(number)
    if media.is_within(name):
      digest.update(f"{len(name['bytes'])} ".encode())
      continue
    if not isinstance(name, str):
      raise UserError(
        f"{where}: column {columns.file!r} holds {name!r:.60}, expected the path of a {columns.medium.noun}"
      )
    digest.update(f"{media.named_file(name, root, where, columns.medium).stat().st_size} ".encode())
  return digest.hexdigest()


def _content(file: Table, number: int, columns: Columns, filled: bool) -> tuple[str, Any]:
  """(text that the row is known by, raw label), everything in it checked."""
  row, where = file[number], file.where(number)
  for name in columns.names():
    if name not in row:
      raise UserError(f"{where}: no column {name!r}; {nearest(name, row)}")
  label = row[columns.label] if columns.label else None
  if columns.messages:
    messages = row[columns.messages]
    if not isinstance(messages, list) or not are_messages(messages):
      raise UserError(f"{where}: column {columns.messages!r} holds {messages!r:.60}, {MESSAGES}")
    for name in ("tools", "documents"):
      if row.get(name):
        raise UserError(f"{where}: column {name!r}: chat templates are not given {name} here; train without the column")
    return " ".join(one["content"] for one in messages if one["role"] != "assistant"), None
  if columns.tokens:
    tokens = row[columns.tokens]
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
      raise UserError(f"{where}: column {columns.tokens!r} holds {tokens!r:.60}, expected a list of strings")
    if not isinstance(label, list) or len(label) != len(tokens):
      count = len(label) if isinstance(label, list) else "no list of"
      raise UserError(f"{where}: {len(tokens)} tokens but {count} tags in column {columns.label!r}")
    return " ".join(tokens), label
  names = [name for name in (columns.file, columns.text, columns.pair, columns.source, columns.target) if name]
  if columns.file and media.is_within(row[columns.file]):
    names.remove(columns.file)
  for name in names:
    if not isinstance(row[name], str):
      raise UserError(f"{where}: column {name!r} holds {row[name]!r:.60}, expected a string")
    if filled and not row[name].strip():
      raise UserError(f"{where}: column {name!r} is empty, expected a text")
  known_by = " ".join(row[name] for name in names if name != columns.target)
  return known_by or hashlib.sha256(repr(row.get(columns.file)).encode()).hexdigest(), label


def _is_checked(file: Table, columns: Columns) -> bool:
  """Whether reading the file has shown that every row holds what is wanted, so that no row need be parsed for it."""
  is_plain = columns.medium is None and not (columns.label or columns.tokens or columns.messages)
  return is_plain and set(columns.names()) <= getattr(file, "texts", frozenset())


def _labels(
  files: Mapping[str, Table],
  contents: Mapping[str, list[tuple[str, Any]]],
  columns: Columns,
  from_text: bool,
  asked: str,
) -> Labels:
  """The labels of the training split (of the whole, where one file holds all), with every other row checked."""
  part = "train" if "train" in files else ""
  wheres = [files[part].where(row) for row in range(len(files[part]))]
  labels = read_labels([label for _, label in contents[part]], wheres, from_text, bool(columns.tokens), asked)
  known = getattr(files[part], "label_names", {}).get(columns.label, ())
  if labels.names and set(labels.names) <= set(known):  # numbered as the file's schema numbers them
    labels = dataclasses.replace(labels, names=known)
  for part, content in contents.items():
    for row, (_, label) in enumerate(content):
      labels.encode(label, files[part].where(row))
  return labels


def _divided(file: Table, texts: Iterable[str]) -> Parts:
  names = list(SHARES)
  splits = np.fromiter((names.index(hashed_split(text, SHARES)) for text in texts), np.int8)
  rows = {split: np.flatnonzero(splits == number) for number, split in enumerate(names)}
  if not len(rows["train"]):
    raise UserError(f"{file.path} has too few rows to divide into training, validation and test")
  return {split: (file, found) for split, found in rows.items() if len(found)}
