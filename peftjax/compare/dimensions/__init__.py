"""The study's dimensions, each a file of its own: what is measured of a trial beside its score.

`config.compare.dimensions` names those that a study measures. A measurement is kept in the trial's record and not
repeated; a dimension named later is measured from the folders that are there.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

from peftjax.compare.dimensions import (
  base,
  convergence,
  data_efficiency,
  energy,
  flips,
  forgetting,
  inference,
  memory,
  overfitting,
  sequence,
  shift,
  switching,
  update,
)
from peftjax.compare.dimensions.base import ROW, Dimension, Record, Section, Summary, Trained
from peftjax.compare.trials import Trial
from peftjax.errors import UserError, nearest

DIMENSIONS: tuple[Dimension, ...] = (
  data_efficiency.DIMENSION,
  overfitting.DIMENSION,
  flips.DIMENSION,
  shift.DIMENSION,
  convergence.DIMENSION,
  forgetting.DIMENSION,
  update.DIMENSION,
  memory.DIMENSION,
  inference.DIMENSION,
  switching.DIMENSION,
  energy.DIMENSION,
  sequence.DIMENSION,
)

BY_NAME = {one.name: one for one in DIMENSIONS if one.measure is not None}


def chosen(names: Iterable[str]) -> tuple[Dimension, ...]:
  """The dimensions of `config.compare.dimensions`.

  Raises:
    UserError: a name that is none.
  """
  for name in names:
    if name not in BY_NAME:
      raise UserError(f"compare.dimensions: no dimension {name!r}; {nearest(name, BY_NAME)}")
  return tuple(BY_NAME[name] for name in dict.fromkeys(names))


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
    names: of the study's dimensions.
    first: whether the trial stands for its row, as some dimensions are measured of such trials alone.
  """
  held, trains = record.get("dimensions") or {}, record.get("steps") != 0
  return [
    one for one in chosen(names) if one.name not in held and (first or one.per != ROW) and (trains or one.untrained)
  ]


def measure(dimension: Dimension, trained: Trained) -> dict[str, Any] | None:
  """What one dimension measures of a trial."""
  assert dimension.measure is not None
  return dimension.measure(trained)


def summarize(records: Sequence[Record], summary: Summary) -> dict[str, Any]:
  """name -> conclusion, of every dimension that any record holds."""
  found = {}
  for one in DIMENSIONS:
    held = base.measured(records, one)
    conclusion = one.summarize(held, summary) if held else None
    if conclusion is not None:
      found[one.name] = conclusion
  return found


def sections(summary: Summary, records: Sequence[Record]) -> list[tuple[str, Section]]:
  """(name, section) of every dimension that the summary has a conclusion of."""
  conclusions = summary.get("dimensions") or {}
  return [
    (one.name, one.section(conclusions[one.name], base.measured(records, one), summary))
    for one in DIMENSIONS
    if one.name in conclusions
  ]
