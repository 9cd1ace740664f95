"""Folders of pictures or of recordings: by class, divided or not, or with a table beside them.

D/train/cat/1.jpg  D/train/dog/2.png  D/test/cat/3.jpg      the splits as they lie
D/cat/1.jpg  D/dog/2.png                                    divided 80 / 10 / 10 by a hash of each picture's bytes
D/metadata.csv  D/1.jpg ...                                 a table of file_name and label (metadata.jsonl, labels.csv)
D/train/metadata.csv  D/train/1.jpg ...                     one for each split
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from peftjax.data.sources.files import SHARES, SPLIT_FILES, open_files
from peftjax.data.sources.media import ENDINGS, MEDIA, NOUNS, Medium, check_inside, medium_of, read
from peftjax.data.sources.splits import hashed_split
from peftjax.data.sources.types import Dataset, Example, Named
from peftjax.errors import NotHere, UserError, nearest

TABLES = ("metadata.csv", "metadata.jsonl", "labels.csv", "labels.jsonl", "metadata.tsv", "labels.tsv")
_NO_DATA = ("thumbs.db", "desktop.ini")  # what other systems leave behind
_SPLIT_OF = {name: split for split, names in SPLIT_FILES.items() for name in names} | {
  "training": "train", "testing": "test"}  # fmt: skip
Entry = tuple[str, int]  # path below the folder, label


@dataclasses.dataclass(frozen=True)
class FolderSource:
  """A `Source`: some files below a folder, with their labels."""

  root: Path
  field: str
  entries: tuple[Entry, ...]

  def __len__(self) -> int:
    return len(self.entries)

  def __getitem__(self, index: int) -> Example:
    name, label = self.entries[index]
    path = self.root / name
    check_inside(path, self.root, str(path))
    return {self.field: read(path), "where": str(path), "label": label}


def open_folder(path: str, named: Named) -> Dataset:
  """``folder:PATH``, as the module says.

  Raises:
    UserError: there is no such folder, a folder is empty, a file is neither picture nor recording, or a class of
      another split is none of the training split's, each with the file; a folder is called like a split and read as
      none.
  """
  root = Path(path).expanduser()
  if not root.is_dir():
    near = [one.name for one in root.absolute().parent.glob("*/")] if root.absolute().parent.is_dir() else []
    raise NotHere(f"data.name: no folder {path!r}; {nearest(root.name, near)}")
  if (table := table_of(root)) is not None:
    if "{split}" in table[1]:
      check_splits(root, Path(table[1]).name)
    return dataclasses.replace(open_files(*table, named), name=f"folder:{path}")
  named.check_read(f"folder:{path}", labels="class")
  splits = check_splits(root)
  if "train" in splits:
    files = {split: _by_class(folder, root) for split, folder in splits.items()}
  else:
    files = {"": _by_class(root, root)}
  medium = _medium([name for found in files.values() for names in found.values() for name in names], root)
  leading = files.get("train") or files[""]
  labels = tuple(leading)
  if len(labels) < 2:
    raise UserError(
      f"{splits.get('train', root)} holds the one class {labels[0]!r}; expected a folder for each of several"
    )
  entries = {split: tuple(_labelled(found, labels, root)) for split, found in files.items()}
  identity: dict[str, object] = {"labels": labels, "files": {key: digest_of(root, one) for key, one in entries.items()}}
  if "" in entries:
    entries = _divided(root, entries[""])
  return Dataset(
    name=f"folder:{path}",
    task=medium.task,
    label_names=labels,
    splits={split: len(one) for split, one in entries.items()},
    columns=(medium.field, "label"),
    fields=(medium.field, "label"),
    label_kind="class",
    identity=identity,
    read=lambda split: FolderSource(root, medium.field, entries[split]),
  )


def check_splits(root: Path, table: str = "") -> dict[str, Path]:
  """Split -> its folder in `root`, of those that hold a file called `table` where there is one.

  Raises:
    UserError: a folder is called like a split, such as "Train" or "testing", and is none that is read: its files would
      be left out, or be those of a class.
  """
  candidates = {split: [root / name for name in names] for split, names in SPLIT_FILES.items()}
  is_read = (lambda one: (one / table).is_file()) if table else Path.is_dir
  found = {split: one for split, ones in candidates.items() for one in reversed(ones) if is_read(one)}
  for one in (entry for entry in entries_of(root) if entry.is_dir()):
    split, within = _SPLIT_OF.get(one.name.lower()), [entry for entry in entries_of(one) if entry.is_dir()]
    if split is None:
      inner = next((entry for entry in within if entry.name.lower() in _SPLIT_OF), None)
      if inner is not None and "train" not in found:
        raise UserError(f"{inner} is a split by its name; expected splits in {root} itself, and classes in them")
    elif not (any((one / name).is_file() for name in (table, *TABLES)) if table else within):
      continue
    elif (other := found.get(split)) is None:
      raise UserError(f"{one} is the {split} split by its name; expected {root / split / table}")
    elif not one.samefile(other):
      raise UserError(f"{one} and {other} are both the {split} split by their names; expected one of them")
  if "train" not in found and (held := [one for one in found.values() if any(map(Path.is_dir, entries_of(one)))]):
    raise UserError(f"{held[0]} is a split by its name, and there is no {root / 'train'}")
  return found


def table_of(root: Path, names: Sequence[str] = TABLES) -> tuple[str, str] | None:
  """(kind, path or pattern) of the table that the folder holds under one of some names, as `open_files` takes them."""
  for name in names:
    kind = "jsonl" if name.endswith(".jsonl") else "csv"
    if (root / name).is_file():
      return kind, str(root / name)
    if any((root / split / name).is_file() for split in SPLIT_FILES["train"]):
      return kind, f"{root}/{{split}}/{name}"
  for kind, ending in (("csv", "csv"), ("csv", "tsv"), ("jsonl", "jsonl")):
    if (root / f"train.{ending}").is_file():
      return kind, str(root)
  return None


def _by_class(folder: Path, root: Path) -> dict[str, list[str]]:
  """Class -> paths of its files below `root`, both sorted."""
  found: dict[str, list[str]] = {}
  for entry in entries_of(folder):
    if entry.is_dir():
      files = [str(file.relative_to(root)) for file in _walk(entry, root)]
      if not files:
        raise UserError(f"{entry} holds no {NOUNS}")
      found[entry.name] = files
    elif medium_of(entry.name) is not None:
      raise UserError(
        f"{entry} lies in no class's folder; expected {folder}/CLASS/{entry.name}, or metadata.csv beside it"
      )
  if not found:
    raise UserError(f"{folder} holds no folder of a class; expected {folder}/CLASS/*.jpg or *.wav, or metadata.csv "
                    "and such files")  # fmt: skip
  return found


def _walk(folder: Path, root: Path) -> Iterator[Path]:
  for entry in entries_of(folder):
    check_inside(entry, root, str(entry))
    if entry.is_dir():
      yield from _walk(entry, root)
    elif medium_of(entry.name) is None:
      raise UserError(f"{entry} is no {NOUNS} by its ending; expected {ENDINGS}")
    else:
      yield entry


def entries_of(folder: Path) -> list[Path]:
  """What stands in a folder, sorted, but for hidden files and what other systems leave behind."""
  try:
    entries = sorted(folder.iterdir())
  except OSError as error:
    raise UserError(f"cannot read {folder}: {error.strerror}") from None
  return [one for one in entries if not one.name.startswith(".") and one.name.lower() not in _NO_DATA]


def _medium(names: list[str], root: Path) -> Medium:
  kinds = {medium: name for name in names if (medium := medium_of(name)) is not None}
  if len(kinds) > 1:
    shown = " and ".join(repr(name) for name in list(kinds.values())[:2])
    raise UserError(f"{root} holds {shown}: expected files of one kind")
  return next(iter(kinds), MEDIA[0])


def _labelled(files: dict[str, list[str]], labels: tuple[str, ...], root: Path) -> Iterator[Entry]:
  for label, names in files.items():
    if label not in labels:
      raise UserError(
        f"{root / names[0]}: class {label!r} is none of the {len(labels)} of the training split; "
        f"{nearest(label, labels)}"
      )
    for name in names:
      yield name, labels.index(label)


def digest_of(root: Path, entries: tuple[Entry, ...]) -> str:
  """Of names, labels and sizes: contents would have to be read whole."""
  digest = hashlib.sha256()
  for name, label in entries:
    digest.update(f"{name}\0{label}\0{(root / name).stat().st_size}\0".encode("utf-8", "surrogateescape"))
  return digest.hexdigest()


def _divided(root: Path, entries: tuple[Entry, ...]) -> dict[str, tuple[Entry, ...]]:
  """The splits of a folder without: copies of a file fall together, whatever their names are."""
  sides = [hashed_split(hashlib.sha256(read(root / name)).hexdigest(), SHARES) for name, _ in entries]
  parts = {split: tuple(one for one, side in zip(entries, sides) if side == split) for split in SHARES}
  if not parts["train"]:
    raise UserError(f"{root} has too few files to divide into training, validation and test")
  return {split: one for split, one in parts.items() if one}
