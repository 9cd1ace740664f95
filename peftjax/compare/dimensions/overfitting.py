"""Overfitting: how much better the main metric is on examples that were trained on than on validation examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.dimensions.base import Dimension, Json, Section, Trained, by_group
from peftjax.compare.dimensions.told import INTERVALS, by_size, range_sentence
from peftjax.compare.metrics import spec_of, specs_in
from peftjax.compare.records import Record

NAME = "overfitting"


def measure(trained: Trained) -> Json | None:
  """{"train", "validation", "gap", "train_examples"}: the main metric on both, and how much better the first is.

  None where the data has no validation split.
  """
  metric = trained.summary["main_metric"]
  if "validation" not in trained.summary["metrics"] and "validation" not in trained.run.loaders.evals:
    return None
  fitted, rows = trained.scores("train")
  held_out, _ = trained.scores("validation")
  direction = spec_of(metric, specs_in(trained.summary, metric)).direction
  return {
    "train": fitted[metric],
    "validation": held_out[metric],
    "gap": direction * (fitted[metric] - held_out[metric]),
    "train_examples": len(rows["index"]),
  }


def summarize(records: Sequence[Record], summary: Summary) -> Json:
  """{"groups"}: each row's gap at each size, with its paired difference to the reference."""
  return {"groups": by_group(records, summary, lambda record: record.dimensions[NAME]["gap"])}


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """The gap between training and validation scores, by row and size."""
  spec, metric = summary.spec, summary.metric
  less = f"training less validation {metric}" if spec.higher_is_better else f"validation less training {metric}"
  return Section(
    heading="Overfitting",
    sentences=(
      range_sentence(
        found["groups"],
        summary,
        f"The gap between training and validation {metric}",
        lambda one: fmt.difference(one, spec) + fmt.unit(spec),
      ),
      "Both are scored after the last step, training examples with the labels that they were trained on.",
    ),
    plots=by_size(
      NAME,
      found["groups"],
      summary,
      less[0].upper() + less[1:],
      less + fmt.counted_in(spec),
      spec,
      caption=f"{INTERVALS} At 0 nothing is overfitted.",
    ),
    columns=("run", f"training {metric}", f"validation {metric}", "gap"),
    rows=tuple(
      (
        record.run,
        *(fmt.score_text(held[name], spec) for name in ("train", "validation")),
        fmt.signed(held["gap"], spec),
      )
      for record in records
      if (held := record.dimensions[NAME])
    ),
  )


DIMENSION = Dimension(NAME, measure, summarize, section, by_size=True, untrained=True)
