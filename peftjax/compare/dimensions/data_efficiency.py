"""Data efficiency: the score against the number of training examples, and where two methods' curves cross."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from peftjax.compare import analysis
from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Difference, SeedEstimate, Summary
from peftjax.compare.dimensions.base import Dimension, Json, Plot, Section
from peftjax.compare.drawing import lines
from peftjax.compare.records import Record
from peftjax.compare.statistics import LEVEL

NAME = "data_efficiency"
DRAWS = 4000


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtSize(SeedEstimate):
  """A row's score at one size, and its difference to the reference there, corrected over the rows of the size."""

  row: str
  runs: tuple[str, ...]
  seeds: tuple[int, ...]
  difference: Difference | None = None


def summarize(records: Sequence[Record], summary: Summary) -> Json | None:
  """{"sizes": [{"size", "rows": `AtSize`}], "crossovers": [...]}; None for a study of one size.

  The rows of a size are judged as those of the study's table are; see `crossover`.
  """
  sizes = sorted({record.size for record in records})
  if len(sizes) < 2:
    return None
  question = analysis.Question(summary.reference or "", summary.baseline or "", summary.margin, summary.split)
  curves = []
  for size in sizes:
    rows = analysis.summarize([one for one in records if one.size == size], question).rows
    kept = [{field.name: getattr(row, field.name) for field in dataclasses.fields(AtSize)} for row in rows]
    curves.append({"size": size, "rows": [AtSize(**one) for one in kept]})
  found = [crossover(row.row, curves, summary.spec.direction) for row in summary.rows if row.row != summary.reference]
  return {"sizes": curves, "crossovers": [one for one in found if one is not None]}


def crossover(name: str, curves: Sequence[Mapping[str, Any]], direction: float = 1.0) -> Json | None:
  """Where a row's curve crosses the reference's, between sizes interpolated in the logarithm of the examples.

  If the row's lead over the reference falls with more data, this is the number of examples up to which it is ahead
  ("ahead": "below"), else that from which on it is ("above"). The interval is the bootstrap's over paired seeds; an end
  that is None lies outside the sizes of the study.

  Args:
    name: of the row.
    curves: {"size", "rows"} by size.
    direction: of the metric.

  Returns:
    {"row", "ahead", "estimate", "low", "high", "ahead_at", "runs"}; None where fewer than two seeds are paired at every
    size.
  """
  differences, runs = [], []
  for curve in curves:
    row = next((one for one in curve["rows"] if one.row == name), None)
    if row is None or row.difference is None:
      return None
    differences.append(dict(zip(row.difference.seeds, row.difference.by_seed)))
    runs += row.runs
  seeds = sorted(set.intersection(*(set(one) for one in differences)))
  if len(seeds) < 2:
    return None
  leads = direction * np.array([[one[seed] for seed in seeds] for one in differences])  # [sizes, seeds]
  logs = np.log([curve["size"] for curve in curves])
  falls = leads[0].mean() >= leads[-1].mean()
  drawn = np.random.default_rng(0).integers(len(seeds), size=(DRAWS, len(seeds)))
  means = leads[:, drawn].mean(-1).T  # [draws, sizes]
  places = np.array([_place(one if falls else -one, logs) for one in means])
  low, high = np.quantile(places, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), method="nearest")
  estimate = _place(leads.mean(-1) * (1 if falls else -1), logs)
  ends = [float(f"{np.exp(one):.4g}") if np.isfinite(one) else None for one in (estimate, low, high)]
  outside = None if np.isfinite(estimate) else ("all" if (estimate > 0) == falls else "none")
  return {
    "row": name,
    "ahead": "below" if falls else "above",
    **dict(zip(("estimate", "low", "high"), ends)),
    "ahead_at": outside,
    "runs": runs,
  }


def _place(falling: np.ndarray, logs: np.ndarray) -> float:
  """The logarithm of the size up to which a falling difference is positive; infinite where that is all or none."""
  if falling[-1] > 0:
    return float("inf")
  ahead = np.flatnonzero(falling > 0)
  if not len(ahead):
    return float("-inf")
  last = ahead[-1]
  part = falling[last] / (falling[last] - falling[last + 1])
  return float(logs[last] + part * (logs[last + 1] - logs[last]))


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Scores by number of training examples, a row for each method, and where curves cross."""
  spec, reference, sentences = summary.spec, summary.reference or "", []
  for curve in found["sizes"]:
    ranked: list[AtSize] = sorted(curve["rows"], key=lambda row: -spec.direction * row.estimate)
    shown = [ranked[0], *(row for row in ranked[1:] if row.row == reference)]
    best = ", ".join(f"{one.row} {fmt.estimate(one, spec)}" for one in shown)
    judged = ", ".join(f"{one.row} {one.difference.verdict}" for one in ranked if one.difference)
    sentences.append(f"With {fmt.whole(curve['size'])} examples: best {best}; against {reference}: {judged}.")
  sentences.append(" ".join(_crossing(one, reference) for one in found["crossovers"]))
  plot = Plot(
    f"{NAME}-curves",
    f"{summary.split.capitalize()} {summary.metric} against training examples",
    f"{summary.location.capitalize()} over seeds with 95% intervals over new seeds and new examples. Every run of a "
    "row makes the same number of updates unless the config counts epochs.",
    lambda narrow: _figure(found, summary, narrow),
  )
  table = [(one.run, fmt.whole(one.size), fmt.score_text(one.score(summary.split), spec)) for one in records]
  return Section(
    heading="Data efficiency",
    sentences=tuple(sentences),
    plots=(plot,),
    columns=("run", "examples", f"{summary.split} {summary.metric}"),
    rows=tuple(table),
  )


def _crossing(one: Mapping[str, Any], reference: str) -> str:
  if one["low"] is None and one["high"] is None and one["estimate"] is None:
    return f"{one['row']} is {'ahead of' if one['ahead_at'] == 'all' else 'behind'} {reference} at every size."
  place = f"at {fmt.whole(one['estimate'])} examples" if one["estimate"] else "outside these sizes"
  ends = [fmt.whole(one["low"]) if one["low"] else "below", fmt.whole(one["high"]) if one["high"] else "above"]
  side = "ahead with fewer" if one["ahead"] == "below" else "ahead with more"
  return f"{one['row']} crosses {reference} {place} [{ends[0]}, {ends[1]}], {side}."


def _figure(found: Mapping[str, Any], summary: Summary, narrow: bool) -> Figure | None:
  scale, drawn = fmt.scale(summary.spec), {}
  for row in summary.rows:
    own = [(curve["size"], one) for curve in found["sizes"] for one in curve["rows"] if one.row == row.row]
    drawn[row.row] = [
      (float(size), *(scale * value for value in (one.estimate, *(one.ends or (one.estimate,) * 2))))
      for size, one in own
    ]
  across, sizes = "training examples (log scale)", [curve["size"] for curve in found["sizes"]]
  return lines.curves(drawn, summary, across, fmt.named(summary.spec), narrow, ticks=sizes, apart=True, marks="all")


DIMENSION = Dimension(NAME, None, summarize, section, by_size=True)
