"""Overfitting: the main metric on examples that were trained on, less that on validation examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftjax.compare import formatting as fmt
from peftjax.compare.dimensions import drawing
from peftjax.compare.dimensions.base import Dimension, Json, Plot, Record, Section, Summary, Trained, by_group

if TYPE_CHECKING:
  from matplotlib.figure import Figure

NAME = "overfitting"


def measure(trained: Trained) -> Json | None:
  """{"train", "validation", "gap", "train_examples"}: the main metric on both, and the first less the second.

  None where the data has no validation split.
  """
  metric = trained.summary["main_metric"]
  if "validation" not in trained.summary["metrics"] and "validation" not in trained.run.loaders.evals:
    return None
  fitted, rows = trained.scores("train")
  held_out, _ = trained.scores("validation")
  return {
    "train": fitted[metric],
    "validation": held_out[metric],
    "gap": fitted[metric] - held_out[metric],
    "train_examples": len(rows["index"]),
  }


def summarize(records: Sequence[Record], summary: Summary) -> Json:
  """{"groups"}: each row's gap at each size, with its paired difference to the reference."""
  return {"groups": by_group(records, summary, lambda record: record["dimensions"][NAME]["gap"])}


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Its part of the report."""
  metric, reference = summary["metric"], summary["reference"]
  plots = []
  for size in sorted({one["size"] for one in found["groups"]}):

    def draw(narrow: bool, size: int = size) -> Figure | None:
      own = [one for one in found["groups"] if one["size"] == size]
      return drawing.intervals(own, summary, f"training less validation {metric}", narrow)

    trained_on = f", {fmt.whole(size)} training examples" if size else ""
    caption = "Mean over seeds with Student's 95% interval; small strokes are single seeds. At 0 nothing is overfitted."
    plots.append(Plot(f"{NAME}-{size}", f"Training less validation {metric}{trained_on}", caption, draw))
  return Section(
    heading="Overfitting",
    sentences=(
      drawing.told(found["groups"], metric, f"The gap between training and validation {metric}", reference),
      "Both are scored after the last step, training examples with the labels that they were trained on.",
    ),
    plots=tuple(plots),
    columns=("run", f"training {metric}", f"validation {metric}", "gap"),
    rows=tuple(_line(record, metric) for record in records),
  )


def _line(record: Record, metric: str) -> tuple[str, ...]:
  held = record["dimensions"][NAME]
  scores = [fmt.score(held[name], metric) for name in ("train", "validation")]
  return (record["run"], *scores, fmt.signed(held["gap"], metric))


DIMENSION = Dimension(NAME, measure, summarize, section, by_size=True, untrained=True)
