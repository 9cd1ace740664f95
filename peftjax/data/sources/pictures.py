"""Pictures to be learned as they are: of one subject, or each with a caption; and others that should stay as they are.

pictures:DOG                 every picture below the folder; all of them are trained on
pictures:DOG,DOGS            each with a picture of the second folder beside it (prior preservation, Ruiz et al. 2023)
D/train/1.jpg  D/test/2.jpg  the splits as they lie
D/metadata.csv  D/1.jpg ...  a table of file_name and text, the caption (metadata.jsonl, captions.csv, captions.jsonl)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from peftjax.data.sources.columns import IMAGE_NAMES, Columns
from peftjax.data.sources.files import SPLIT_FILES, open_files
from peftjax.data.sources.folder import FolderSource, digest_of, entries_of, table_of
from peftjax.data.sources.media import IMAGES, check_inside, medium_of
from peftjax.data.sources.text_files import Row
from peftjax.data.sources.types import DENOISING, Dataset, Example, Named, Source
from peftjax.errors import NotHere, UserError, nearest

TABLES = ("metadata.csv", "metadata.jsonl", "captions.csv", "captions.jsonl", "metadata.tsv", "captions.tsv")
CAPTION_NAMES = ("text", "caption", "prompt")
PRIOR = "prior_"


@dataclasses.dataclass(frozen=True)
class PairSource:
  """A `Source`: pictures of one source, each beside one of another; as many as the larger has, the other from its
  beginning again."""

  pictures: Source
  priors: Source

  def __len__(self) -> int:
    return max(len(self.pictures), len(self.priors))

  def __getitem__(self, index: int) -> Example:
    prior = self.priors[index % len(self.priors)]
    return self.pictures[index % len(self.pictures)] | {f"{PRIOR}{name}": value for name, value in prior.items()}


def open_pictures(path: str, named: Named) -> Dataset:
  """``pictures:PATH`` or ``pictures:PATH,PRIOR``, as the module says.

  Raises:
    UserError: there is no such folder, it holds no picture, a file is no picture, or a table's row has no caption.
  """
  first, *more = path.split(",")
  if len(more) > 1 or not all((first, *more)):
    raise UserError(f"data.name=pictures:{path}: expected a folder, or two divided by a comma")
  if more:
    check_apart(Path(first), Path(more[0]))
  found = dataclasses.replace(_open_one(first, named), name=f"pictures:{path}")
  if not more:
    return found
  priors = _open_one(more[0], named)
  pairs = PairSource(found.split("train"), priors.split("train"))
  read = found.read
  return dataclasses.replace(
    found,
    splits={**found.splits, "train": len(pairs)},
    fields=(*found.fields, *(f"{PRIOR}{name}" for name in priors.fields)),
    identity={"pictures": found.identity, "priors": priors.identity},
    read=lambda split: pairs if split == "train" else read(split),
  )


def check_apart(pictures: Path, priors: Path) -> None:
  """Raises a `UserError` if pictures that should stay are, or would be made, among those that are learned, or these
  among them."""
  (own, own_table), (other, other_table) = (_read_below(one.expanduser()) for one in (pictures, priors))
  if own == other or (other in own.parents and not other_table) or (own in other.parents and not own_table):
    raise UserError(f"data.name=pictures:{pictures},{priors}: one folder's pictures are among the other's, so that "
                    "they would be learned and kept at once; expected two folders beside each other")  # fmt: skip


def _read_below(root: Path) -> tuple[Path, bool]:
  """(the folder below which pictures are trained on, whether a table says which)."""
  if table_of(root, TABLES) is not None:
    return root.resolve(), True
  divided = (root / name for name in SPLIT_FILES["train"] if (root / name).is_dir())
  return next(divided, root).resolve(), False


def _open_one(path: str, named: Named) -> Dataset:
  root = Path(path).expanduser()
  if not root.is_dir():
    near = [one.name for one in root.absolute().parent.glob("*/")] if root.absolute().parent.is_dir() else []
    raise NotHere(f"data.name: no folder {path!r}; {nearest(root.name, near)}")
  if (table := table_of(root, TABLES)) is not None:
    found = open_files(*table, named, _columns, divided=False)
    return dataclasses.replace(found, task=DENOISING, notes=(*found.notes, *_left_out(root, found, Path(table[1]))))
  named.check_read(f"pictures:{path}")
  folders = {split: root / name for split, names in SPLIT_FILES.items() for name in names if (root / name).is_dir()}
  if "train" not in folders:
    folders = {"train": root}
  listed = {split: _files(folder, root) for split, folder in folders.items()}
  entries = {split: tuple((str(file.relative_to(root)), 0) for file in files) for split, (files, _) in listed.items()}
  others = [path.name for _, left in listed.values() for path in left]
  return Dataset(
    name=f"pictures:{path}",
    task=DENOISING,
    splits={split: len(one) for split, one in entries.items()},
    columns=("image",),
    fields=("image",),
    identity={"files": {split: digest_of(root, one) for split, one in entries.items()}},
    read=lambda split: FolderSource(root, "image", entries[split]),
    notes=(f"{root}: files that are no pictures are left out: {', '.join(others[:8])}",) if others else (),
  )


def _left_out(root: Path, found: Dataset, table: Path) -> tuple[str, ...]:
  """What there is beside a table and is not read: pictures that no row names, and other tables."""
  others = [name for name in TABLES if (root / name).is_file() and root / name != table]
  notes = [f"{table} is read, and not {', '.join(others)}"] if others else []
  there = sum(medium_of(file.name) is IMAGES for file in root.rglob("*"))
  listed = sum(found.splits.values())
  if there > listed:
    notes.append(f"{table}: {there - listed} of the {there} pictures in {root} have no row and are left out")
  return tuple(notes)


def _files(folder: Path, root: Path) -> tuple[list[Path], list[Path]]:
  """(the pictures below a folder of the data set in `root`, the other files), sorted.

  Raises:
    UserError: there is no picture, or a file leads out of the data set.
  """
  pictures: list[Path] = []
  others: list[Path] = []
  pending = [folder]
  while pending:
    for entry in entries_of(pending.pop()):
      check_inside(entry, root, str(entry))
      if entry.is_dir():
        pending.append(entry)
      else:
        (pictures if medium_of(entry.name) is IMAGES else others).append(entry)
  if not pictures:
    raise UserError(f"{folder} holds no picture; expected {', '.join(IMAGES.endings)}")
  return sorted(pictures), sorted(others)


def _columns(row: Row, where: str, named: Named) -> Columns:
  """The columns of the picture and of its caption.

  Raises:
    UserError: there is none, or not the one that is named.
  """

  def column(what: str, given: str, names: tuple[str, ...]) -> str:
    if found := next((name for name in ([given] if given else names) if name in row), ""):
      return found
    wanted = repr(given) if given else " or ".join(map(repr, names))
    raise UserError(f"{where}: no column {wanted} of {what}; there are {', '.join(row)}")

  if named.label_kind != "auto":
    raise UserError(f"{where}: data.label_kind={named.label_kind!r} is not read: pictures are learned as they are")
  image = column("a picture's path", named.image, IMAGE_NAMES)
  return Columns(image=image, text=column("its caption", named.text, CAPTION_NAMES))
