"""Convergence: the updates until a run has 95% of what full fine-tuning gains, from the evaluations along the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.dimensions.base import Dimension, Json, Plot, Section, at_size, by_kind, of_largest_size
from peftjax.compare.drawing import lines
from peftjax.compare.records import Record
from peftjax.compare.statistics import LEVEL
from peftjax.stored import Stored

NAME = "convergence"
SHARE = 0.95  # of the reference's gain
SPLIT = "validation"
NEVER = float("inf")

Curve = tuple[np.ndarray, np.ndarray]  # steps, scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Updates(Stored):
  """The updates of a row to the target: the median over seeds; None where most runs never reach it.

  Attributes:
    low, high: the order statistics' own interval of the median, without assumptions; it needs six seeds.
    by_seed: of each run; None where it never got there.
    reached: runs that did.
    flops: of so many updates.
  """

  row: str
  size: int
  estimate: float | None
  low: float | None
  high: float | None
  by_seed: tuple[float | None, ...]
  reached: int
  seeds: tuple[int, ...]
  runs: tuple[str, ...]
  flops: float | None

  @property
  def place(self) -> float:
    """The median; infinite where it is never."""
    return NEVER if self.estimate is None else self.estimate

  @property
  def ends(self) -> tuple[float, float] | None:
    """The interval, where both ends are known."""
    return None if self.low is None or self.high is None else (self.low, self.high)

  @property
  def span(self) -> tuple[float, float] | None:
    """The interval, with infinity for never; None where there are too few seeds."""
    if self.low is None:
      return (NEVER, NEVER) if self.estimate is None and not self.reached else None
    return self.low, NEVER if self.high is None else self.high


def summarize(records: Sequence[Record], summary: Summary) -> Json | None:
  """{"groups": `Updates`, "targets"}; None where runs were not evaluated before and along their way
  (`train.eval_first`, `train.eval_every`), or have no reference.

  A target is the reference's mean score before its first update and 95% of the way to its mean last score.
  """
  direction, targets, found = summary.spec.direction, {}, []
  curves = {record.run: curve for record in records if (curve := _curve(record)) is not None}
  kinds = by_kind([record for record in records if record.run in curves], summary)
  for (row, size), own in kinds.items():
    if row == summary.reference:
      start, end = (float(np.mean([curves[record.run][1][place] for record in own])) for place in (0, -1))
      if direction * end > direction * start:
        targets[size] = start + SHARE * (end - start)
  for (row, size), own in kinds.items():
    if size in targets:
      points = [curves[record.run] for record in own]
      steps = [first_at(direction * targets[size], direction * scores, along) for along, scores in points]
      cost = summary.row(row)
      found.append(_updates(row, size, own, steps, cost.flops_per_step if cost else None))
  if not found:
    return None
  return {"groups": found, "targets": [{"size": size, "target": target} for size, target in targets.items()]}


def _updates(row: str, size: int, own: Sequence[Record], steps: Sequence[float | None], cost: float | None) -> Updates:
  middle, low, high = median(steps)
  return Updates(
    row=row,
    size=size,
    estimate=middle,
    low=low,
    high=high,
    by_seed=tuple(steps),
    reached=sum(step is not None for step in steps),
    seeds=tuple(record.seed for record in own),
    runs=tuple(record.run for record in own),
    flops=middle * cost if middle is not None and cost else None,
  )


def _curve(record: Record) -> Curve | None:
  held = record.trajectory.get(SPLIT)
  if not held or held["step"][0] != 0 or None in held.get(record.metric, [None]):
    return None
  return np.array(held["step"], dtype=np.float64), np.array(held[record.metric], dtype=np.float64)


def first_at(level: float, scores: np.ndarray, along: np.ndarray) -> float | None:
  """The value of `along` where scores first are at `level` or above it, between points by the straight line; None
  where they never are."""
  there = np.flatnonzero(scores >= level)
  if not len(there):
    return None
  first = there[0]
  if first == 0:
    return float(along[0])
  part = (level - scores[first - 1]) / (scores[first] - scores[first - 1])
  return float(along[first - 1] + part * (along[first] - along[first - 1]))


def median(values: Sequence[float | None]) -> tuple[float | None, float | None, float | None]:
  """(median, low, high): the narrowest symmetric pair of order statistics that covers the median at 95%.

  None among the values is later than all; None as a result, too, and as both ends where there are too few values.
  """
  ordered = np.sort([np.inf if value is None else value for value in values])
  count = len(ordered)
  middle = float(np.quantile(ordered, 0.5, method="inverted_cdf"))
  ends: tuple[float, float] = (np.nan, np.nan)
  for rank in range(count // 2, 0, -1):
    if 1 - 2 * stats.binom.cdf(rank - 1, count, 0.5) >= LEVEL:
      ends = float(ordered[rank - 1]), float(ordered[count - rank])
      break
  made = [one if np.isfinite(one) else None for one in (middle, *ends)]
  return made[0], made[1], made[2]


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Updates to full fine-tuning's gain, a row for each, with the curves along the runs."""
  sentences = []
  for held in found["targets"]:
    own = sorted((one for one in found["groups"] if one.size == held["size"]), key=lambda one: one.place)
    sentences.append(
      f"Updates to {SPLIT} {summary.metric} {fmt.score_text(held['target'], summary.spec)}, which is {SHARE:.0%} of "
      f"what {summary.reference} gains{at_size(held['size'])}: {'; '.join(f'{one.row} {_shown(one)}' for one in own)}."
    )
  table = [
    (run, "not reached" if step is None else f"{step:.1f}")
    for one in found["groups"]
    for run, step in zip(one.runs, one.by_seed)
  ]
  plot = Plot(
    f"{NAME}-curves",
    f"{SPLIT.capitalize()} {summary.metric} along the updates",
    "Mean over seeds with the band from the lowest to the highest.",
    lambda narrow: _figure(records, found, summary, narrow),
  )
  return Section(
    heading="Convergence",
    sentences=(
      *sentences,
      "Medians over seeds; their intervals are order statistics, for which fewer than six seeds do not do.",
    ),
    plots=(plot,),
    columns=("run", "updates to the target"),
    rows=tuple(table),
  )


def _shown(one: Updates) -> str:
  if one.estimate is None:
    return f"not reached by most ({one.reached} of {len(one.seeds)} seeds)"
  ends = ""
  if one.low is not None:
    ends = f" [{one.low:.0f}, {'never' if one.high is None else format(one.high, '.0f')}]"
  return f"{one.estimate:.0f}{ends}" + (f", {one.flops / 1e12:.2g} TFLOP" if one.flops else "")


def _figure(records: Sequence[Record], found: Mapping[str, Any], summary: Summary, narrow: bool) -> Figure | None:
  scale, by_run, drawn = fmt.scale(summary.spec), {record.run: record for record in records}, {}
  for one in of_largest_size(found["groups"]):
    curves = [curve for run in one.runs if run in by_run and (curve := _curve(by_run[run])) is not None]
    columns = scale * np.stack([scores for _, scores in curves]).T
    drawn[one.row] = [
      (float(step), float(own.mean()), float(own.min()), float(own.max())) for step, own in zip(curves[0][0], columns)
    ]
  return lines.curves(drawn, summary, "updates", fmt.named(summary.spec), narrow)


DIMENSION = Dimension(NAME, None, summarize, section, by_size=True)
