"""What a method costs at inference: its forward pass as trained and merged, against the base's.

FLOPs are those of the matrix products of the traced forward pass; times are taken in turns in random order, with ratios
within rounds (`peftjax.compare.timing`). A merged model is the base's own program with other weights, so what its ratio
differs from 1 is the clock's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from peftjax import adapters
from peftjax.compare import formatting as fmt
from peftjax.compare import timing
from peftjax.compare.analysis import Summary
from peftjax.compare.dimensions.base import ROW, Dimension, Json, Plot, Section, Trained, by_row
from peftjax.compare.dimensions.told import refusal
from peftjax.compare.drawing.rows import Line, marked
from peftjax.compare.records import Record
from peftjax.compare.trainer import Step
from peftjax.errors import UserError
from peftjax.model import Model
from peftjax.train.flops import count_flops

NAME = "inference"
ROUNDS = 15
ROWS = 8  # of the batch


def overhead(model: Model, inputs: Mapping[str, Any], rounds: int = ROUNDS) -> Json:
  """A trained model's forward pass, as it is and merged, against its base's.

  Args:
    model: with its adapter beside the base.
    inputs: arrays by name.

  Returns:
    "flops" {"base", "unmerged", "merged"}; "seconds" and "ratio" {"unmerged", "merged"}, the latter {"estimate", "low",
    "high"} against the base; "rounds"; "difference", the largest of the merged model's outputs from the unmerged one's,
    over the largest output; "reason" why it cannot be merged, with None in place of its figures, or why there is
    nothing to merge.
  """
  models: dict[str, Model | None] = {"base": adapters.disabled(model), "unmerged": model, "merged": None}
  reason = ""
  if not model.adapter_paths():
    reason = "it adds no leaves, so that its model is the base with other weights: there is nothing to merge"
    models["merged"] = model
  else:
    try:
      models["merged"] = model.merge()
    except UserError as error:
      reason = str(error)
  there = {name: one for name, one in models.items() if one is not None}

  def flops(one: Model | None) -> int | None:
    return None if one is None else count_flops(lambda params, given: one.forward(params, given), one.params, inputs)

  def step(one: Model) -> Step:
    return lambda: jax.block_until_ready(one(**inputs))

  times = timing.interleaved({name: step(one) for name, one in there.items()}, "base", rounds).rows
  return {
    "flops": {name: flops(one) for name, one in models.items()},
    "seconds": {name: times[name].median if name in times else None for name in models},
    "ratio": {
      name: {"estimate": one.ratio, "low": one.ratio_low, "high": one.ratio_high} if (one := times.get(name)) else None
      for name in ("unmerged", "merged")
    },
    "rounds": rounds,
    "rows": int(next(iter(inputs.values())).shape[0]),
    "length": max((int(one.shape[1]) for one in inputs.values() if one.ndim == 2), default=0),
    "difference": _difference(model(**inputs), there["merged"](**inputs)) if "merged" in there else None,
    "reason": reason,
  }


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
  """The largest difference of the first output (the logits, where there are any), over its largest value."""
  name = "logits" if "logits" in one else next(iter(one))
  first, second = np.asarray(one[name], np.float64), np.asarray(other[name], np.float64)
  return float(f"{np.abs(first - second).max() / max(np.abs(first).max(), 1e-30):.3g}")


# The dimension ----------------------------------------------------------------------------------------------------


def measure(trained: Trained) -> Json:
  """As `overhead`, on the first training examples."""
  return overhead(trained.model, {name: array[:ROWS] for name, array in trained.batch.items()})


def summarize(records: Sequence[Record], summary: Summary) -> Json:
  """{"rows": {"row", "run", "flops" {"unmerged", "merged"} over the base's, "ratio", "seconds", "reason"}}."""
  rows = by_row(records, summary, NAME)
  for one in rows:
    base = one["flops"]["base"]
    one["flops"] = {name: one["flops"][name] / base if one["flops"][name] else None for name in ("unmerged", "merged")}
  return {"rows": rows}


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Its part of the report."""
  rows = found["rows"]
  shape = f"{rows[0]['rows']} examples" + (f" of length {rows[0]['length']}" if rows[0]["length"] else "")
  sentences = [
    (
      f"Forward passes over {shape}, taken in turns over {rows[0]['rounds']} rounds; ratios to the base's within "
      "rounds, medians with 95% intervals. A merged model is the base's own program."
    ),
    "As trained: "
    + "; ".join(f"{one['row']} {_noted(one, 'unmerged')}" for one in rows)
    + f" (runs {fmt.runs([one['run'] for one in rows])}).",
    *(refusal(one["row"], one["reason"]) for one in rows if one["ratio"]["merged"] is None),
  ]

  def draw(kind: str, narrow: bool) -> Figure | None:
    drawn = [
      Line(one["row"], _noted(one, kind), (ratio["estimate"], one["flops"][kind]), (ratio["low"], ratio["high"]))
      for one in rows
      if (ratio := one["ratio"][kind])
    ]
    across = "over the base's: filled time, hollow FLOPs"
    return marked(drawn, summary, across, narrow, at=1.0, from_zero=lambda value: f"{value:g}")

  return Section(
    heading="Inference",
    sentences=tuple(sentences),
    plots=(
      Plot(f"{NAME}-unmerged", "The forward pass as trained", "Beside the base.", lambda n: draw("unmerged", n)),
      Plot(f"{NAME}-merged", "The forward pass merged", "Of the methods that merge.", lambda n: draw("merged", n)),
    ),
    columns=("run", "base", "as trained", "merged", "FLOPs as trained", "FLOPs merged", "merged outputs differ by"),
    rows=tuple(
      (
        one["run"],
        *(fmt.seconds(one["seconds"][kind]) for kind in ("base", "unmerged", "merged")),
        *(fmt.ratio(one["flops"][kind]) for kind in ("unmerged", "merged")),
        fmt.NONE if one["difference"] is None else f"{one['difference']:.1e}",
      )
      for one in rows
    ),
  )


def _noted(one: Mapping[str, Any], kind: str) -> str:
  ratio = one["ratio"][kind]
  return f"time {ratio['estimate']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] · FLOPs {one['flops'][kind]:.2f}"


DIMENSION = Dimension(NAME, measure, summarize, section, per=ROW)
