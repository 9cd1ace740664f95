"""Data by one string: ``packaged:NAME``, ``jsonl:FILE``, ``csv:FILE``, ``folder:PATH``, ``tfds:NAME``, or one's own.

dataset = open_data("csv:reviews/{split}.csv", text_column="review")
dataset.task, dataset.label_names, dataset.splits     # "text_classification", ("bad", "good"), {"train": 900, ...}
dataset.split("train")[17]                            # {"text": "Dull from start to end.", "label": 0}

A source of your own is ``module:Name`` or ``module:Name:REST``: a function ``(rest, named) -> Dataset`` in a file that
stands on the Python path, beside the config file, or where the command runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.config import DEFAULT_DATA
from peftjax.data.sources import own
from peftjax.data.sources.types import Dataset, Header, Named
from peftjax.errors import NotHere, UserError
from peftjax.registry import resolve

Open = Callable[[str, Named], Dataset]

# kind -> what opens ``kind:REST``
SOURCES: dict[str, str] = {
  "packaged": "peftjax.data.sources.tfds:open_packaged",
  "tfds": "peftjax.data.sources.tfds:open_tfds",
  "jsonl": "peftjax.data.sources.files:open_jsonl",
  "csv": "peftjax.data.sources.files:open_csv",
  "json": "peftjax.data.sources.files:open_json",
  "parquet": "peftjax.data.sources.files:open_parquet",
  "arrow": "peftjax.data.sources.files:open_arrow",
  "hub": "peftjax.data.sources.hub:open_hub",
  "folder": "peftjax.data.sources.folder:open_folder",
  "pictures": "peftjax.data.sources.pictures:open_pictures",
  "coco": "peftjax.data.sources.coco:open_coco",
  "phantoms": "peftjax.data.sources.phantoms:open_phantoms",
  "scenes": "peftjax.data.sources.scenes:open_scenes",
  "pairs": "peftjax.data.sources.pairs:open_pairs",
  "squad": "peftjax.data.sources.squad:open_squad",
}

# Of sources that are prepared when they are first opened: what knows the header before.
HEADERS: dict[str, str] = {"packaged": "peftjax.data.sources.tfds:packaged_header"}


def open_data(
  spec: str,
  text_column: str = "",
  label_column: str = "",
  source_column: str = "",
  target_column: str = "",
  label_kind: str = "auto",
  image_column: str = "",
  image_root: str = "",
  audio_column: str = "",
  audio_root: str = "",
) -> Dataset:
  """Opens a data set.

  Args:
    spec: ``packaged:NAME`` (`peftjax.data.sources.packaged`), ``tfds:NAME`` (any prepared TFDS set, or its folder),
      ``jsonl:PATH``, ``csv:PATH``, ``pairs:PATH``, ``squad:PATH``, ``coco:PATH`` (`peftjax.data.sources.coco`),
      ``folder:PATH`` (`peftjax.data.sources.folder`), ``pictures:PATH`` (`peftjax.data.sources.pictures`),
      ``scenes:COUNT`` (`peftjax.data.sources.scenes`), or ``module:Name[:REST]``; empty: the default data. A path is a
      file, which a hash of the text divides 80 / 10 / 10; a folder with ``train.jsonl``, ``validation.jsonl``,
      ``test.jsonl``; or a pattern with ``{split}`` in it.
    text_column: the column of the text, ``a,b`` for a pair, or of a conversation's messages; empty: found by its name.
    label_column: empty: found by its name.
    source_column: of text to text: the prompt, or the text to translate; empty: found by its name.
    target_column: of text to text: what is to come out.
    label_kind: of a file's labels: "class", "number", "classes" or "multi_hot"; "auto": told from the column.
    image_column: of a table, the column of a picture's path; empty: found by its name.
    image_root: the folder that such paths start from; empty: the table's.
    audio_column: of a table, the column of a recording's path; empty: found by its name.
    audio_root: the folder that such paths start from; empty: the table's.

  Raises:
    UserError: whatever is wrong with the string, the files or the labels, with file and line.
  """
  opened, rest, _ = _opener(spec or DEFAULT_DATA)
  more = (label_kind, image_column, image_root, audio_column, audio_root)
  return opened(rest, Named(text_column, label_column, source_column, target_column, *more))


def open_as(spec: str, data: ConfigDict) -> Dataset:
  """The data set of `spec` through the columns that `config.data` names; raises as `open_data`."""
  opened, rest, _ = _opener(spec or DEFAULT_DATA)
  return opened(rest, _named(data))


def header_of(data: ConfigDict) -> Header:
  """The header of `config.data.name`, without preparing what is not there yet; its `splits` are then empty.

  Raises:
    UserError: as `open_data`.
  """
  opened, rest, kind = _opener(data.name or DEFAULT_DATA)
  if kind in HEADERS:
    opened = resolve("data.name", kind, HEADERS)
  return opened(rest, _named(data))


_MORE = (("label_kind", "auto"), ("image_column", ""), ("image_root", ""), ("audio_column", ""), ("audio_root", ""))


def _named(data: ConfigDict) -> Named:
  columns = (data.text_column, data.label_column, data.source_column, data.target_column)
  return Named(*columns, *(data.get(name, default) for name, default in _MORE))


def _opener(spec: str) -> tuple[Open, str, str]:
  """(what opens a data set, the rest of its string, its kind)."""
  kind, _, rest = spec.partition(":")
  if kind in SOURCES and rest:
    return resolve("data.name", kind, SOURCES), rest, kind
  why = ""
  if rest and (kind.endswith(".py") or all(part.isidentifier() for part in kind.split("."))):
    name, _, more = rest.partition(":")
    try:
      return functools.partial(_open_own, spec, resolve("data.name", f"{kind}:{name}", {})), more, ""
    except UserError as error:
      why = f" ({str(error).removeprefix('data.name: ')})"
  named = Path(spec).suffix.removeprefix(".")
  if "folder" if Path(spec).is_dir() else named in SOURCES:
    raise UserError(f"data.name={spec!r}: did you mean '{named if named in SOURCES else 'folder'}:{spec}'?")
  kinds = ", ".join(f"{one}:NAME" for one in SOURCES)
  raise UserError(f"data.name={spec!r}: expected one of {kinds}, or module:Name for your own{why}")


def _open_own(spec: str, opened: Any, rest: str, named: Named) -> Dataset:
  """What the user's own function opens.

  Raises:
    NotHere: a file that it opens is not there.
    UserError: it is no function, a file cannot be read; as `own.checked`.
  """
  if not callable(opened):
    raise UserError(f"data.name={spec!r} is {type(opened).__name__}; expected a function (rest, named) -> Dataset")
  try:
    found, unread = own.opened(opened, rest, named)
  except OSError as error:
    kind = NotHere if isinstance(error, FileNotFoundError) else UserError
    where = f": {error.filename}" if error.filename else ""
    raise kind(f"data.name={spec!r}: {error.strerror or error}{where}") from None
  if unread:
    raise UserError(f"data.name={spec!r}: data.{unread} is not read by it")
  return own.checked(spec, found)
