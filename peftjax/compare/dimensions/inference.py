"""What a method costs at inference: its forward pass as trained and merged, against the base's.

FLOPs are those of the matrix products of the traced forward pass; times are taken in turns in random order, with ratios
within rounds (`peftjax.compare.timing`). A merged model is the base's own program with other weights, so what its ratio
differs from 1 is the clock's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from peftjax.compare import formatting as fmt
from peftjax.compare import timing
from peftjax.compare.dimensions import charts
from peftjax.compare.dimensions.base import ROW, Dimension, Json, Plot, Record, Section, Summary, Trained, size_of
from peftjax.errors import UserError

if TYPE_CHECKING:
  from matplotlib.figure import Figure

  from peftjax.model import Model

NAME = "inference"
ROUNDS = 15
ROWS, LENGTH = 8, 64  # of the batch; the length at most that of the data


def inputs_of(model: Model, rows: int, length: int) -> dict[str, Any]:
  """Arrays for a forward pass: random tokens, nothing padded; where a model takes no tokens, zeros of its shapes."""
  import jax.numpy as jnp

  rng, vocabulary = np.random.default_rng(0), int(model.hf_config.get("vocab_size", 2))
  found: dict[str, Any] = {}
  for name, example in model.example_inputs.items():
    shape = (rows, length) if example.ndim == 2 else (rows, *example.shape[1:])
    values = np.zeros(shape, example.dtype)
    if name.endswith("input_ids"):
      values = rng.integers(1, vocabulary, shape)
    elif name.endswith("mask"):
      values = np.ones(shape)
    found[name] = jnp.asarray(values, example.dtype)
  return found


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
  import jax

  from peftjax import adapters
  from peftjax.train.flops import count_flops

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

  def step(one: Model) -> timing.Step:
    return lambda: jax.block_until_ready(one(**inputs))

  times = timing.interleaved({name: step(one) for name, one in there.items()}, "base", rounds)["rows"]
  return {
    "flops": {name: flops(one) for name, one in models.items()},
    "seconds": {name: times[name]["median"] if name in times else None for name in models},
    "ratio": {
      name: {"estimate": one["ratio"], "low": one["ratio_low"], "high": one["ratio_high"]}
      if (one := times.get(name))
      else None
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
  """As `overhead`, on a batch of random tokens."""
  model = trained.run.model.with_params(trained.params)
  return overhead(model, inputs_of(model, ROWS, min(LENGTH, trained.config.data.max_length)))


def summarize(records: Sequence[Record], summary: Summary) -> Json:
  """{"rows": {"row", "run", "flops" {"unmerged", "merged"} over the base's, "ratio", "seconds", "reason"}}."""
  held = {record["row"]: record for record in sorted(records, key=size_of)}
  rows = []
  for row in summary["rows"]:
    if row["row"] not in held:
      continue
    one = held[row["row"]]["dimensions"][NAME]
    base = one["flops"]["base"]
    flops = {name: one["flops"][name] / base if one["flops"][name] else None for name in ("unmerged", "merged")}
    kept = {name: one[name] for name in ("ratio", "seconds", "reason", "difference", "rows", "length", "rounds")}
    rows.append({"row": row["row"], "run": held[row["row"]]["run"], "flops": flops, **kept})
  return {"rows": rows}


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Its part of the report."""
  rows = found["rows"]
  shape = f"{rows[0]['rows']} × {rows[0]['length']} tokens"
  kept = [one for one in rows if one["ratio"]["merged"] is None]
  sentences = [
    (
      f"Forward passes over {shape}, taken in turns over {rows[0]['rounds']} rounds; ratios to the base's within "
      "rounds, medians with 95% intervals. A merged model is the base's own program."
    ),
    "As trained: "
    + "; ".join(f"{one['row']} {_noted(one, 'unmerged')}" for one in rows)
    + f" (runs {fmt.runs([one['run'] for one in rows])}).",
  ]
  sentences += [charts.refusal(one["row"], one["reason"]) for one in kept]

  def draw(kind: str, narrow: bool) -> Figure | None:
    lines = [
      {
        "row": one["row"],
        "note": _noted(one, kind),
        "marks": [one["ratio"][kind]["estimate"], one["flops"][kind]],
        "interval": [one["ratio"][kind]["low"], one["ratio"][kind]["high"]],
      }
      for one in rows
      if one["ratio"][kind]
    ]
    return charts.marks(lines, summary, "over the base's: filled time, hollow FLOPs", narrow, _two, at=1.0)

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
        fmt.seconds(one["seconds"]["base"]),
        fmt.seconds(one["seconds"]["unmerged"]),
        fmt.seconds(one["seconds"]["merged"]),
        fmt.ratio(one["flops"]["unmerged"]),
        fmt.ratio(one["flops"]["merged"]),
        fmt.NONE if one["difference"] is None else f"{one['difference']:.1e}",
      )
      for one in rows
    ),
  )


def _noted(one: Mapping[str, Any], kind: str) -> str:
  ratio = one["ratio"][kind]
  return f"time {ratio['estimate']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] · FLOPs {one['flops'][kind]:.2f}"


def _two(value: float) -> str:
  return f"{value:g}"


DIMENSION = Dimension(NAME, measure, summarize, section, per=ROW)
