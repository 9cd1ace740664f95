"""Files of pictures and recordings beside a data set: which they are, where they may lie, and their bytes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeGuard

from peftjax.data.sources.types import AUDIO_CLASSIFICATION, IMAGE_CLASSIFICATION
from peftjax.errors import UserError, nearest
from peftjax.files import can_be_named


@dataclasses.dataclass(frozen=True)
class Medium:
  """A kind of file that examples are.

  Attributes:
    field: of an example, where its bytes stand.
    noun: what one is called.
    task: what examples with a label are data for.
    endings: of the files' names, in lower case.
  """

  field: str
  noun: str
  task: str
  endings: tuple[str, ...]


IMAGES = Medium(
  "image",
  "picture",
  IMAGE_CLASSIFICATION,
  (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"),
)
AUDIO = Medium("audio", "recording", AUDIO_CLASSIFICATION, (".wav", ".flac"))
MEDIA = (IMAGES, AUDIO)
NOUNS = " or ".join(one.noun for one in MEDIA)
ENDINGS = ", ".join(ending for one in MEDIA for ending in one.endings)


def medium_of(name: str) -> Medium | None:
  """What kind of file a name is of; None for none that is known."""
  return next((one for one in MEDIA if name.lower().endswith(one.endings)), None)


def is_within(value: Any) -> TypeGuard[dict[str, Any]]:
  """Whether a table's value holds a file's bytes itself, as Hugging Face's data sets keep pictures and recordings."""
  return isinstance(value, dict) and isinstance(value.get("bytes"), bytes)


def is_inside(path: Path, root: Path) -> bool:
  """Whether a file lies in a folder, links followed, or in the store of Hugging Face's cache that its links lead to."""
  target, folder = path.resolve(), root.resolve()
  snapshots = next((one for one in folder.parents if one.name == "snapshots"), None)
  stores = [folder, *([snapshots.parent / "blobs"] if snapshots is not None else [])]
  return any(target.is_relative_to(store) for store in stores)


def check_inside(path: Path, root: Path, where: str) -> None:
  """Raises `UserError` if a file lies, or a link leads, outside the folder that was asked for."""
  if not is_inside(path, root):
    raise UserError(f"{where} leads out of {root}; a data set's files lie in its own folder")


def named_file(name: str, root: Path, where: str, medium: Medium) -> Path:
  """The file that a table names, from the folder `root`.

  Raises:
    UserError: it is not there, lies elsewhere, or is of no kind that is read; `where` is the table's line.
  """
  if not can_be_named(name):
    raise UserError(f"{where}: {name!r:.80} is a name that no file can have")
  path = root / name
  check_inside(path, root, f"{where}: {name!r:.200}")
  if medium_of(name) is not medium:
    raise UserError(f"{where}: {name!r:.200} is no {medium.noun} by its ending; expected {', '.join(medium.endings)}")
  if not path.is_file():
    siblings = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserError(f"{where}: no file {name!r:.200} in {root}; {nearest(path.name, siblings)}")
  return path


def read(path: Path) -> bytes:
  """The bytes of a file.

  Raises:
    UserError: it cannot be read.
  """
  try:
    return path.read_bytes()
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from None
