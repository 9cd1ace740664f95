"""Convergence: the updates until a run has 95% of what full fine-tuning gains, from the evaluations along the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from peftjax.compare import formatting as fmt
from peftjax.compare.dimensions.base import Dimension, Json, Plot, Record, Section, Summary, groups
from peftjax.compare.statistics import LEVEL

if TYPE_CHECKING:
  from matplotlib.figure import Figure

NAME = "convergence"
SHARE = 0.95  # of the reference's gain
SPLIT = "validation"


def summarize(records: Sequence[Record], summary: Summary) -> Json | None:
  """{"groups", "targets"}; None where runs were not evaluated before and along their way (`train.eval_first`,
  `train.eval_every`), or have no reference.

  A target is the reference's mean score before its first update and 95% of the way to its mean last score. A group
  {"row", "size", "estimate", "low", "high", "by_seed", "reached", "seeds", "runs", "flops"} has the median over seeds
  of the updates to the target; a run that never reached it counts as later than all others. The interval of the median
  is the order statistics' own, without assumptions; it needs six seeds.
  """
  metric, found, targets = summary["metric"], [], {}
  by_kind = groups([record for record in records if _curve(record, metric) is not None], summary)
  for (row, size), own in by_kind.items():
    if row == summary["reference"]:
      curves = [_curve(record, metric) for record in own]
      start, end = (float(np.mean([curve[1][place] for curve in curves if curve])) for place in (0, -1))
      if end > start:
        targets[size] = start + SHARE * (end - start)
  costs = {row["row"]: row["flops_per_step"] for row in summary["rows"]}
  for (row, size), own in by_kind.items():
    if size not in targets or not own:
      continue
    steps = [_reached(_curve(record, metric), targets[size]) for record in own]
    middle, low, high = median(steps)
    found.append(
      {
        "row": row,
        "size": size,
        "estimate": middle,
        "low": low,
        "high": high,
        "by_seed": steps,
        "reached": sum(step is not None for step in steps),
        "seeds": [record["seed"] for record in own],
        "runs": [record["run"] for record in own],
        "flops": None if middle is None or not costs.get(row) else middle * costs[row],
      }
    )
  if not found:
    return None
  return {"groups": found, "targets": [{"size": size, "target": target} for size, target in targets.items()]}


def _curve(record: Record, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
  held = (record.get("trajectory") or {}).get(SPLIT)
  if not held or held["step"][0] != 0 or None in held.get(metric, [None]):
    return None
  return np.array(held["step"], dtype=np.float64), np.array(held[metric], dtype=np.float64)


def _reached(curve: tuple[np.ndarray, np.ndarray] | None, target: float) -> float | None:
  """The first update at which a score is `target`, between evaluations by the straight line; None if it never is."""
  assert curve is not None
  steps, scores = curve
  above = np.flatnonzero(scores >= target)
  if not len(above):
    return None
  first = above[0]
  if first == 0:
    return float(steps[0])
  part = (target - scores[first - 1]) / (scores[first] - scores[first - 1])
  return float(steps[first - 1] + part * (steps[first] - steps[first - 1]))


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
  """Its part of the report."""
  metric, reference = summary["metric"], summary["reference"]
  sentences = []
  for held in found["targets"]:
    own = [one for one in found["groups"] if one["size"] == held["size"]]
    parts = [f"{one['row']} {_shown(one)}" for one in sorted(own, key=lambda one: one["estimate"] or np.inf)]
    at = f" with {fmt.whole(held['size'])} training examples" if held["size"] else ""
    sentences.append(
      f"Updates to {SPLIT} {metric} {fmt.score(held['target'], metric)}, which is {SHARE:.0%} of what {reference} "
      f"gains{at}: {'; '.join(parts)}."
    )
  sentences.append(
    "Medians over seeds; their intervals are order statistics, for which fewer than six seeds do not do."
  )
  lines = [
    (record["run"], *_cells(one, place))
    for one in found["groups"]
    for place, record in enumerate(_of(records, one["runs"]))
  ]
  return Section(
    heading="Convergence",
    sentences=tuple(sentences),
    plots=(
      Plot(
        f"{NAME}-curves",
        f"{SPLIT.capitalize()} {metric} along the updates",
        "Mean over seeds with the band from the lowest to the highest.",
        lambda narrow: _figure(records, found, summary, narrow),
      ),
    ),
    columns=("run", "updates to the target"),
    rows=tuple(lines),
  )


def _of(records: Sequence[Record], runs: Sequence[str]) -> list[Record]:
  by_run = {record["run"]: record for record in records}
  return [by_run[run] for run in runs if run in by_run]


def _cells(one: Mapping[str, Any], place: int) -> tuple[str]:
  step = one["by_seed"][place]
  return ("not reached" if step is None else f"{step:.1f}",)


def _shown(one: Mapping[str, Any]) -> str:
  if one["estimate"] is None:
    return f"not reached by most ({one['reached']} of {len(one['seeds'])} seeds)"
  ends = ""
  if one["low"] is not None:
    ends = f" [{one['low']:.0f}, {'never' if one['high'] is None else format(one['high'], '.0f')}]"
  cost = f", {one['flops'] / 1e12:.2g} TFLOP" if one["flops"] else ""
  return f"{one['estimate']:.0f}{ends}{cost}"


def _figure(records: Sequence[Record], found: Mapping[str, Any], summary: Summary, narrow: bool) -> Figure:
  from peftjax.compare.dimensions.drawing import line_figure, scale_of

  metric = summary["metric"]
  scale, largest = scale_of(metric), max(one["size"] for one in found["groups"])
  lines = {}
  for one in found["groups"]:
    if one["size"] == largest:
      curves = [_curve(record, metric) for record in _of(records, one["runs"])]
      values = scale * np.stack([curve[1] for curve in curves if curve])
      steps = next(curve[0] for curve in curves if curve)
      lines[one["row"]] = [
        (float(step), float(column.mean()), float(column.min()), float(column.max()))
        for step, column in zip(steps, values.T)
      ]
  unit = " in %" if scale == 100 else ""
  return line_figure(lines, summary, "updates", f"{metric}{unit}", narrow)


DIMENSION = Dimension(NAME, None, summarize, section, by_size=True)
