"""What a method costs at inference: its forward pass as trained and merged, against the base's
(`peftjax.train.serving`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.dimensions.base import ROW, Dimension, Json, Plot, Section, Trained, by_row
from peftjax.compare.dimensions.told import refusal
from peftjax.compare.drawing.rows import Line, marked
from peftjax.compare.records import Record
from peftjax.train.serving import overhead

NAME = "inference"
ROWS = 8  # of the batch


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
  """FLOPs and time of a forward pass by row, unmerged and merged, over the base's."""
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
