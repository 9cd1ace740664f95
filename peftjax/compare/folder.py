"""A study's folder: which files in it a study writes over, and whether those that are there are its own."""

from __future__ import annotations

import os
from pathlib import Path

from peftjax import outputs
from peftjax.compare import records
from peftjax.errors import UserError
from peftjax.files import read_json
from peftjax.train.folder import is_run

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
  there = [name for name in _WRITTEN if os.path.lexists(workdir / name)]
  for name in there:
    if (workdir / name).is_symlink() or not (workdir / name).is_file():
      raise UserError(f"{workdir / name} is no file, and would be replaced; choose another folder")
  if "config.json" not in there:  # of a study that is still searching
    there = [name for name in there if name not in ("search.json", "budget.json") or not (workdir / "leases").is_dir()]
  elif "compare" in read_json(workdir / "config.json"):
    there = []
    if (workdir / "results.jsonl").is_file():
      records.read_results(workdir / "results.jsonl")
  if there:
    raise UserError(f"{workdir / there[0]} is no study's, and would be replaced; choose another folder")
  outputs.check_as_written(workdir, CONCLUSIONS)
