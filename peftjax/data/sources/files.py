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
from peftjax.data.sources.labels import AUTO, TAGS, Labels, read_labels
from peftjax.data.sources.splits import hashed_split
from peftjax.data.sources.text_files import Row, TextFile
from peftjax.data.sources.types import (
  CAUSAL_LM,
  SEQ2SEQ_LM,
  SPEECH_RECOGNITION,
  TEXT_CLASSIFICATION,
  TOKEN_CLASSIFICATION,
  Dataset,
  Example,
  Named,
)
from peftjax.errors import NotHere, UserError, nearest

SPLIT_FILES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}

TEXT_NAMES = ("text", "sentence", "content", "document")
PAIR_NAMES = ("text_pair",)
TOKENS_NAMES = ("tokens", "words")
LABEL_NAMES = ("label", "labels", "category", "class", "intent")
TAGS_NAMES = ("tags", "ner_tags", "labels")
SOURCE_NAMES = ("source", "prompt", "instruction", "question", "input")
TARGET_NAMES = ("target", "response", "output", "answer", "completion")
AUDIO_NAMES = ("audio", "file_name", "audio_path", "filename", "path", "file", "wav")
TRANSCRIPT_NAMES = ("text", "transcription", "transcript", "sentence", "normalized_text")
IMAGE_NAMES = ("image", "file_name", "image_path", "filename", "path", "file")
MESSAGES_NAMES = ("messages", "conversation", "conversations")


@dataclasses.dataclass(frozen=True)
class Columns:
  """Which columns of a row hold what; an empty name: there is none.

  One of `text`, `tokens`, `messages`, `source`, `image` and `audio` is there; `pair` beside `text`, `target` beside
  `source`, and `text` may stand beside `image` and `audio`.
  """

  text: str = ""
  pair: str = ""
  tokens: str = ""
  label: str = ""
  source: str = ""
  target: str = ""
  messages: str = ""
  image: str = ""
  audio: str = ""

  @property
  def medium(self) -> media.Medium | None:
    """What the files are that a column names."""
    return media.IMAGES if self.image else media.AUDIO if self.audio else None

  @property
  def file(self) -> str:
    """The column that names files."""
    return self.image or self.audio

  @property
  def task(self) -> str:
    """The task that the columns are data for."""
    if self.medium is not None:
      is_speech = self.medium is media.AUDIO and self.text
      return self.medium.task if self.label else SPEECH_RECOGNITION if is_speech else ""
    if self.tokens:
      return TOKEN_CLASSIFICATION
    return SEQ2SEQ_LM if self.source else TEXT_CLASSIFICATION if self.label else CAUSAL_LM

  def names(self) -> list[str]:
    return [name for name in dataclasses.astuple(self) if name]

  @property
  def fields(self) -> tuple[str, ...]:
    """What an example of these columns holds."""
    if self.messages:
      return ("messages",)
    if self.medium is not None:
      return (self.medium.field, *(("text",) if self.text else ()), *(("label",) if self.label else ()))
    if self.source:
      return ("source", "target")
    texts = ("tokens",) if self.tokens else ("text", "text_pair") if self.pair else ("text",)
    return (*texts, *(("tags",) if self.tokens else ("label",) if self.label else ()))


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
    notes=(labels.told(columns.label),) if labels else (),
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


def choose_columns(row: Row, where: str, named: Named) -> Columns:
  """The columns to read, from the first row.

  Raises:
    UserError: a named column is not there, or no column looks like text.
  """
  texts = named.text.split(",") if named.text else []
  for name in filter(None, [*texts, named.label, named.source, named.target, named.image, named.audio]):
    if name not in row:
      raise UserError(f"{where}: no column {name!r}; {nearest(name, row)}")
  if len(texts) > 2:
    raise UserError(f"data.text_column={named.text!r}: expected one column or two")
  if audio := named.audio or _audio_column(row, named):
    text = texts[0] if texts else _first(TRANSCRIPT_NAMES, row)
    label = named.label or ("" if text else _first(LABEL_NAMES, row))
    return Columns(audio=audio, text=text, label=label)
  if (columns := _text_to_text(row, where, named)) is not None:
    return columns
  if image := named.image or _image_column(row, texts):
    text = texts[0] if texts else _first(TEXT_NAMES, row)
    return Columns(image=image, text=text, label=named.label or _first(LABEL_NAMES, row))
  lists = [name for name in row if isinstance(row[name], list)]
  odd = _first(texts[:1] or MESSAGES_NAMES, [name for name in lists if _have_roles(row[name])])
  if odd and not _are_messages(row[odd]):
    raise UserError(f"{where}: column {odd!r}: {_MESSAGES}")
  if messages := _first(texts[:1] or MESSAGES_NAMES, [name for name in lists if _are_messages(row[name])]):
    return Columns(messages=messages)
  tokens = _first(texts[:1] or TOKENS_NAMES, lists)
  text = "" if tokens else _first(texts or TEXT_NAMES, row)
  if not tokens and not text:
    raise UserError(
      f"{where}: no column {' or '.join(map(repr, TEXT_NAMES))}; set data.text_column to {_choice(row)}, "
      "or data.source_column and data.target_column"
    )
  pair = texts[1] if len(texts) == 2 else "" if texts else _first(PAIR_NAMES, row)
  label = named.label or _first(TAGS_NAMES if tokens else LABEL_NAMES, row)
  if tokens and not label:
    raise UserError(f"{where}: no column {' or '.join(map(repr, TAGS_NAMES))}; set data.label_column to {_choice(row)}")
  return Columns(text, "" if tokens else pair, tokens, label)


def _audio_column(row: Row, named: Named) -> str:
  """The column that names a recording; a text beside it is what is said in it."""
  if named.image or named.source or named.target:
    return ""
  held = media.AUDIO.field if media.is_within(row.get(media.AUDIO.field)) else ""
  return held or _first(AUDIO_NAMES, [name for name in row if media.medium_of(str(row[name])) is media.AUDIO])


def _image_column(row: Row, texts: Iterable[str]) -> str:
  """The column that names a picture, in a table that is not one of texts."""
  if texts or _first((*TEXT_NAMES, *TOKENS_NAMES, *MESSAGES_NAMES), row):
    return ""
  return _first(IMAGE_NAMES, [name for name in row if _is_picture(row[name])])


def _is_picture(value: Any) -> bool:
  """Whether it names a picture, or holds one as Hugging Face's data sets do."""
  return media.is_within(value) or (isinstance(value, str) and media.medium_of(value) is media.IMAGES)


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


def _text_to_text(row: Row, where: str, named: Named) -> Columns | None:
  """The columns of a source and a target, if both are named or, with no text beside them, have usual names."""
  asked = bool(named.source or named.target)
  if not asked and (named.text or named.label or _first((*TEXT_NAMES, *TOKENS_NAMES), row)):
    return None
  source, target = named.source or _first(SOURCE_NAMES, row), named.target or _first(TARGET_NAMES, row)
  if source and target:
    return Columns(source=source, target=target)
  if asked:
    missing = "target" if source else "source"
    raise UserError(f"{where}: which column is the {missing}? Set data.{missing}_column to {_choice(row)}")
  return None


_MESSAGES = "expected a list of objects with role and content, both texts"


def _have_roles(value: Any) -> bool:
  return bool(value) and all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in value)


def _are_messages(value: Any) -> bool:
  return bool(value) and all(
    isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str) for one in value
  )


def _first(names: Iterable[str], present: Iterable[str]) -> str:
  present = set(present)
  return next((name for name in names if name in present), "")


def _choice(row: Row) -> str:
  return "one of " + ", ".join(row)


def _content(file: Table, number: int, columns: Columns, filled: bool) -> tuple[str, Any]:
  """(text that the row is known by, raw label), everything in it checked."""
  row, where = file[number], file.where(number)
  for name in columns.names():
    if name not in row:
      raise UserError(f"{where}: no column {name!r}; {nearest(name, row)}")
  label = row[columns.label] if columns.label else None
  if columns.messages:
    messages = row[columns.messages]
    if not isinstance(messages, list) or not _are_messages(messages):
      raise UserError(f"{where}: column {columns.messages!r} holds {messages!r:.60}, {_MESSAGES}")
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
