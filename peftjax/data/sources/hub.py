"""Data sets of a hub, of the tables that they are kept in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from peftjax.data.sources.files import open_arrow, open_csv, open_json, open_jsonl, open_parquet
from peftjax.data.sources.types import Dataset, Named
from peftjax.errors import UserError
from peftjax.hub import PREFIX, snapshot

_OPENERS: dict[str, Callable[[str, Named], Dataset]] = {
  "parquet": open_parquet,
  "jsonl": open_jsonl,
  "csv": open_csv,
  "json": open_json,
}


def open_hub(rest: str, named: Named) -> Dataset:
  """The data set of a repository's tables: ``hub:OWNER/NAME[@REVISION][:FOLDER]``, the folder one within it.

  Raises:
    UserError: as `snapshot`; it holds no table that can be read.
  """
  spec, _, inner = rest.partition(":")
  folder = snapshot("dataset", spec)
  place = folder / inner if inner else folder
  if ".." in Path(inner).parts or not place.is_dir():
    known = sorted(one.name for one in folder.iterdir() if one.is_dir())
    raise UserError(f"data.name={PREFIX}{rest}: no folder {inner!r} in it; it has {', '.join(known) or 'none'}")
  if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
    return open_arrow(str(place), named)
  for kind, opened in _OPENERS.items():
    for root in (place, place / "data"):
      if any(root.glob(f"*.{kind}")) or any(root.glob(f"*/*.{kind}")):
        return opened(str(place if kind == "parquet" else root), named)
  raise UserError(
    f"data.name={PREFIX}{rest}: it holds no table that is read: {', '.join(_OPENERS)}; programs are not run"
  )
