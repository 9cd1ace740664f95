"""Memorised labels: how many training examples with a flipped label (`data.flip_labels`) are learned as given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from peftjax.compare import formatting as fmt
from peftjax.compare.dimensions import drawing
from peftjax.compare.dimensions.base import Dimension, Json, Plot, Record, Section, Summary, Trained, by_group

if TYPE_CHECKING:
  from matplotlib.figure import Figure

NAME = "flips"
METRIC = "accuracy"  # how shares are shown


def measure(trained: Trained) -> Json | None:
  """{"flipped", "memorised", "true"}: the flipped examples among those that were scored, the share of them that is
  predicted as the wrong label that was given, and the share predicted as the true one. None without flips."""
  data = trained.config.data
  if not data.get("flip_labels", 0.0):
    return None
  from peftjax.data import open_data
  from peftjax.data.batching import subset
  from peftjax.data.flipping import flipped_ids

  source = open_data(data.name, data.text_column, data.label_column).split("train")
  wrong = flipped_ids(subset(len(source), data.train_examples), len(source), data.flip_labels)
  _, rows = trained.scores("train")
  chosen = np.isin(rows["index"], wrong)
  if not chosen.any():
    return None
  found, given = rows["prediction"][chosen], rows["label"][chosen]
  true = np.array([source[int(index)]["label"] for index in rows["index"][chosen]])
  return {
    "flipped": int(chosen.sum()),
    "memorised": float((found == given).mean()),
    "true": float((found == true).mean()),
  }


def summarize(records: Sequence[Record], summary: Summary) -> Json:
  """{"memorised", "true"}: both shares by row and size, with their paired difference to the reference."""
  return {
    key: by_group(records, summary, lambda record, key=key: record["dimensions"][NAME][key])  # type: ignore[misc]
    for key in ("memorised", "true")
  }


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Its part of the report."""
  reference, plots = summary["reference"], []
  for size in sorted({one["size"] for one in found["memorised"]}):

    def draw(narrow: bool, size: int = size) -> Figure | None:
      own = [one for one in found["memorised"] if one["size"] == size]
      return drawing.intervals(own, summary, "flipped examples predicted as given, %", narrow, _share, 100.0)

    trained_on = f", {fmt.whole(size)} training examples" if size else ""
    caption = "Mean over seeds with Student's 95% interval; small strokes are single seeds."
    plots.append(Plot(f"{NAME}-{size}", f"Wrong labels that were learned{trained_on}", caption, draw))
  return Section(
    heading="Memorised labels",
    sentences=(
      drawing.told(
        found["memorised"], METRIC, "Flipped examples predicted as the wrong label that was given", reference
      ),
      drawing.told(found["true"], METRIC, "Flipped examples predicted as their true label", reference, _share),
      "The same examples are flipped for every method and seed.",
    ),
    plots=tuple(plots),
    columns=("run", "flipped", "as given", "as true"),
    rows=tuple(
      (
        record["run"],
        fmt.whole(record["dimensions"][NAME]["flipped"]),
        *(fmt.score(record["dimensions"][NAME][key], METRIC) for key in ("memorised", "true")),
      )
      for record in records
    ),
  )


def _share(one: Mapping[str, Any]) -> str:
  return fmt.estimate(one, METRIC) + "%"


DIMENSION = Dimension(NAME, measure, summarize, section, by_size=True, untrained=True)
