"""A study's folder: which files in it a study writes over, and whether those that are there are its own."""

from __future__ import annotations

import os
from pathlib import Path

from peftjax import outputs
from peftjax.compare import records
from peftjax.errors import UserError
from peftjax.files import read_json
from peftjax.train.folder import is_run

KIND = "study"  # of output
CONCLUSIONS = ("summary.json", "claims.json", "report.html", "report.md", "report.tex")
_WRITTEN = ("config.json", "results.jsonl", "search.json", "budget.json", "timing.json", *CONCLUSIONS)


def check(workdir: Path) -> None:
  """Checks, before anything is trained, that a study may write into a folder.

  Raises:
    UserError: a file of a name that a study writes is not a study's, or was changed since it was written; the folder
      is a training run's.
  """
  if is_run(workdir):
    raise UserError(f"{workdir} holds a training run, which a study would write over; choose another folder")
  begun = _begun(workdir)
  outputs.check_own(workdir, _WRITTEN, whose="study's", kind=KIND, is_own=lambda path: _is_own(path, begun))


def check_conclusions(workdir: Path) -> None:
  """Checks that a study of the folder may conclude.

  Raises:
    UserError: one of its conclusions was changed since it was written.
  """
  outputs.check_own(workdir, CONCLUSIONS, whose="study's", kind=KIND, is_own=lambda path: _is_own(path, _WRITTEN))


def _begun(workdir: Path) -> tuple[str, ...]:
  """The files that are a study's own in a folder, by how far it has come."""
  config = workdir / "config.json"
  if not os.path.lexists(config):
    return ("search.json", "budget.json") if (workdir / "leases").is_dir() else ()
  if not config.is_file() or "compare" not in read_json(config):
    return ()
  if (workdir / "results.jsonl").is_file():
    records.read_results(workdir / "results.jsonl")
  return _WRITTEN


def _is_own(path: Path, begun: tuple[str, ...]) -> bool:
  """Whether a file that is not listed is a study's; of conclusions, earlier versions listed none."""
  is_listed = path.name in CONCLUSIONS and (path.parent / outputs.LIST).is_file()
  return path.name in begun and path.is_file() and not path.is_symlink() and not is_listed
