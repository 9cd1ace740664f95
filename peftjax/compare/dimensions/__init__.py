"""The study's dimensions, each a file of its own: what is measured of a trial beside its score.

`config.compare.dimensions` names those that a study measures, by their name here or as ``module:NAME`` of one's own. A
measurement is kept in the trial's record and not repeated; a dimension named later is measured from the folders that
are there. Dimensions that measure nothing follow from what every record holds, and are in every study.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

from peftjax.compare.analysis import Summary
from peftjax.compare.dimensions.base import ROW, Dimension, Section, records_with
from peftjax.compare.records import Record
from peftjax.compare.trials import Trial
from peftjax.errors import UserError
from peftjax.registry import resolve

DERIVED = ("data_efficiency", "shift", "convergence", "forgetting")  # from what every record holds

DIMENSIONS = {  # in the order of the report
  name: f"peftjax.compare.dimensions.{name}:DIMENSION"
  for name in (
    *DERIVED[:1],
    "overfitting",
    "flips",
    "confusion",
    "samples",
    "detections",
    *DERIVED[1:],
    "update",
    "memory",
    "inference",
    "switching",
    "energy",
    "sequence",
  )
}


def dimension(name: str) -> Dimension:
  """A dimension by its name in `DIMENSIONS`, or as ``module:NAME``.

  Raises:
    UserError: there is none.
  """
  found: Dimension = resolve("compare.dimensions", name, DIMENSIONS)
  if not isinstance(found, Dimension):
    expected = "expected a peftjax.compare.dimensions.Dimension"
    raise UserError(f"compare.dimensions={name!r} is {type(found).__name__}; {expected}")
  return found


def of_study(names: Iterable[str]) -> list[Dimension]:
  """All that a study has, in the order of the report: those named in `config.compare.dimensions`, and the derived ones.

  Raises:
    UserError: a name that is none.
  """
  wanted = dict.fromkeys(names)
  order = [*(name for name in DIMENSIONS if name in wanted or name in DERIVED), *wanted]
  return [dimension(name) for name in dict.fromkeys(order)]


def stand_for_rows(trials: Iterable[Trial], done: Container[str]) -> set[str]:
  """The run of each row's first finished seed at its largest size, of those in `done`."""
  standing: dict[str, Trial] = {}
  for trial in trials:
    if trial.run in done and (trial.row not in standing or trial.size > standing[trial.row].size):
      standing[trial.row] = trial
  return {trial.run for trial in standing.values()}


def open_ones(record: Record, names: Iterable[str], first: bool) -> list[Dimension]:
  """The dimensions that a trial's record still lacks.

  Args:
    record: of a finished trial.
    names: of `config.compare.dimensions`.
    first: whether the trial stands for its row, as some dimensions are measured of such trials alone.
  """
  return [
    one
    for one in of_study(names)
    if one.measure is not None
    and one.name not in record.dimensions
    and (first or one.per != ROW)
    and (record.steps or one.untrained)
  ]


def conclusions(records: Sequence[Record], summary: Summary, names: Iterable[str]) -> dict[str, Any]:
  """name -> conclusion, of every dimension of the study that any record holds."""
  found = {}
  for one in of_study(names):
    held = records_with(records, one)
    conclusion = one.summarize(held, summary) if held else None
    if conclusion is not None:
      found[one.name] = conclusion
  return found


def sections(summary: Summary, records: Sequence[Record], names: Iterable[str]) -> list[tuple[str, Section]]:
  """(name, section) of every dimension that the summary has a conclusion of."""
  return [
    (one.name, one.section(summary.dimensions[one.name], records_with(records, one), summary))
    for one in of_study(names)
    if one.name in summary.dimensions
  ]
