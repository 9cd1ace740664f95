"""Data efficiency: the score against the number of training examples, and where two methods' curves cross."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from peftjax.compare import analysis
from peftjax.compare import formatting as fmt
from peftjax.compare.dimensions.base import Dimension, Json, Plot, Record, Section, Summary, size_of
from peftjax.compare.statistics import LEVEL

if TYPE_CHECKING:
  from matplotlib.figure import Figure

NAME = "data_efficiency"
DRAWS = 4000
KEPT = ("row", "runs", "seeds", "estimate", "low", "high", "by_seed", "difference")


def summarize(records: Sequence[Record], summary: Summary) -> Json | None:
  """{"sizes": [{"size", "rows"}], "crossovers": [...]}; None for a study of one size.

  The rows of a size are judged as those of the study's table are. A crossover is where the curve of a row crosses the
  reference's; see `crossover`.
  """
  sizes = sorted({size_of(record) for record in records})
  if len(sizes) < 2:
    return None
  names = ("reference", "baseline")
  question = analysis.Question(
    **{name: summary[name] or "" for name in names}, margin=summary["margin"], split=summary["split"]
  )
  curves = []
  for size in sizes:
    rows = analysis.summarize([dict(one) for one in records if size_of(one) == size], question)["rows"]
    curves.append({"size": size, "rows": [{key: row[key] for key in KEPT} for row in rows]})
  found = [crossover(row["row"], curves) for row in summary["rows"] if row["row"] != summary["reference"]]
  return {"sizes": curves, "crossovers": [one for one in found if one is not None]}


def crossover(row: str, curves: Sequence[Mapping[str, Any]]) -> Json | None:
  """Where a row's curve crosses the reference's, between sizes interpolated in the logarithm of the examples.

  If the row's difference to the reference falls with more data, this is the number of examples up to which it is ahead
  ("ahead": "below"), else that from which on it is ("above"). The interval is the bootstrap's over paired seeds; an end
  that is None lies outside the sizes of the study.

  Returns:
    {"row", "ahead", "estimate", "low", "high", "runs"}; None where fewer than two seeds are paired at every size.
  """
  differences, runs, sizes = [], [], []
  for curve in curves:
    own = {one["row"]: one for one in curve["rows"]}.get(row)
    if own is None or not own["difference"]:
      return None
    differences.append(dict(zip(own["difference"]["seeds"], own["difference"]["by_seed"])))
    sizes.append(curve["size"])
    runs += own["runs"]
  seeds = sorted(set.intersection(*(set(one) for one in differences)))
  if len(seeds) < 2:
    return None
  values = np.array([[one[seed] for seed in seeds] for one in differences])  # [sizes, seeds]
  falls = values[0].mean() >= values[-1].mean()
  drawn = np.random.default_rng(0).integers(len(seeds), size=(DRAWS, len(seeds)))
  means = values[:, drawn].mean(-1).T  # [draws, sizes]
  places = np.array([_place(one if falls else -one, np.log(sizes)) for one in means])
  low, high = np.quantile(places, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), method="nearest")
  estimate = _place(values.mean(-1) * (1 if falls else -1), np.log(sizes))
  ends = [float(f"{np.exp(one):.4g}") if np.isfinite(one) else None for one in (estimate, low, high)]
  outside = None if np.isfinite(estimate) else ("all" if (estimate > 0) == falls else "none")
  return {
    "row": row,
    "ahead": "below" if falls else "above",
    "estimate": ends[0],
    "low": ends[1],
    "high": ends[2],
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
  """Its part of the report."""
  metric, reference = summary["metric"], summary["reference"]
  sentences = []
  for curve in found["sizes"]:
    rows = sorted(curve["rows"], key=lambda row: -row["estimate"])
    best = rows[0]
    base = [row for row in rows if row["row"] == reference and row is not best]
    parts = [f"{one['row']} {fmt.estimate(one, metric)}" for one in (best, *base)]
    judged = [f"{one['row']} {one['difference']['verdict']}" for one in rows if one["difference"]]
    sentences.append(
      f"With {fmt.whole(curve['size'])} examples: best {', '.join(parts)}; against {reference}: {', '.join(judged)}."
    )
  sentences.append(" ".join(_crossing(one, reference) for one in found["crossovers"]))
  return Section(
    heading="Data efficiency",
    sentences=tuple(sentences),
    plots=(
      Plot(
        f"{NAME}-curves",
        f"{summary['split'].capitalize()} {metric} against training examples",
        "Mean over seeds with 95% intervals over new seeds and new examples. Every run of a row makes the same number "
        "of updates unless the config counts epochs.",
        lambda narrow: curves_figure(found, summary, narrow),
      ),
    ),
    columns=("run", "examples", f"{summary['split']} {metric}"),
    rows=tuple(
      (
        record["run"],
        fmt.whole(size_of(record)),
        fmt.score(record["metrics"].get(summary["split"], {}).get(metric), metric),
      )
      for record in records
    ),
  )


def _crossing(one: Mapping[str, Any], reference: str) -> str:
  if one["low"] is None and one["high"] is None and one["estimate"] is None:
    return f"{one['row']} is {'ahead of' if one['ahead_at'] == 'all' else 'behind'} {reference} at every size."
  place = f"at {fmt.whole(one['estimate'])} examples" if one["estimate"] else "outside these sizes"
  ends = [fmt.whole(one["low"]) if one["low"] else "below", fmt.whole(one["high"]) if one["high"] else "above"]
  side = "ahead with fewer" if one["ahead"] == "below" else "ahead with more"
  return f"{one['row']} crosses {reference} {place} [{ends[0]}, {ends[1]}], {side}."


def curves_figure(found: Mapping[str, Any], summary: Summary, narrow: bool) -> Figure:
  """One line a row over a logarithmic axis of examples; points are set apart so that intervals do not overlap."""
  from peftjax.compare.dimensions.drawing import line_figure, scale_of

  scale = scale_of(summary["metric"])
  lines = {}
  for row in summary["rows"]:
    own = [(curve["size"], one) for curve in found["sizes"] for one in curve["rows"] if one["row"] == row["row"]]
    lines[row["row"]] = [
      (
        float(size),
        *(scale * (one["estimate"] if one[key] is None else one[key]) for key in ("estimate", "low", "high")),
      )
      for size, one in own
    ]
  unit = " in %" if scale == 100 else ""
  sizes = [curve["size"] for curve in found["sizes"]]
  return line_figure(lines, summary, "training examples (log scale)", f"{summary['metric']}{unit}", narrow, sizes)


DIMENSION = Dimension(NAME, None, summarize, section, by_size=True)
