"""Memorised labels: how many training examples with a flipped label (`data.flip_labels`) are learned as given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Estimate, Summary
from peftjax.compare.dimensions.base import Dimension, Json, Section, Trained, by_group
from peftjax.compare.dimensions.told import by_size, range_sentence
from peftjax.compare.metrics import SHARE
from peftjax.compare.records import Record
from peftjax.data import open_as
from peftjax.data.batching import subset
from peftjax.data.flipping import flipped_ids

NAME = "flips"


def measure(trained: Trained) -> Json | None:
  """{"flipped", "memorised", "true"}: the flipped examples among those that were scored, the share of them that is
  predicted as the wrong label that was given, and the share predicted as the true one. None without flips."""
  data = trained.config.data
  if not data.get("flip_labels", 0.0):
    return None
  source = open_as(data.name, data).split("train")
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
    key: by_group(records, summary, lambda record, key=key: record.dimensions[NAME][key])  # type: ignore[misc]
    for key in ("memorised", "true")
  }


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Shares of flipped labels that are memorised, and of true ones, by row and size."""
  given = "Flipped examples predicted as the wrong label that was given"
  return Section(
    heading="Memorised labels",
    sentences=(
      range_sentence(found["memorised"], summary, given, _share),
      range_sentence(found["true"], summary, "Flipped examples predicted as their true label", _share),
      "The same examples are flipped for every method and seed.",
    ),
    plots=by_size(
      NAME,
      found["memorised"],
      summary,
      "Wrong labels that were learned",
      "flipped examples predicted as given, %",
      SHARE,
      show=_share,
    ),
    columns=("run", "flipped", "as given", "as true"),
    rows=tuple(
      (record.run, fmt.whole(held["flipped"]), *(fmt.score_text(held[key], SHARE) for key in ("memorised", "true")))
      for record in records
      if (held := record.dimensions[NAME])
    ),
  )


def _share(one: Estimate) -> str:
  return fmt.estimate(one, SHARE) + "%"


DIMENSION = Dimension(NAME, measure, summarize, section, by_size=True, untrained=True)
