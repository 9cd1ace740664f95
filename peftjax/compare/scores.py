"""The main metric of every example, packed as JSON: what intervals over examples rest on."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.compare.statistics import linearize_ratio
from peftjax.tasks.metric import Metric


def pack_scores(rows: Mapping[str, np.ndarray], spec: Metric) -> dict[str, Any] | None:
  """A metric of each example from a task's `per_example` rows: bits where it is right or wrong, values of a mean, two
  lists of counts for a ratio.

  None where the metric is no average and no ratio of sums over examples (a correlation, for one), or a row is missing.
  """
  if spec.kind == "per-example" and spec.value in rows:
    values = np.asarray(rows[spec.value], dtype=np.float64)
    if not np.isin(values, (0.0, 1.0)).all():
      return {"kind": "values", "metric": spec.name, "values": _short(values)}
    bits = base64.b64encode(np.packbits(values.astype(bool)).tobytes()).decode()
    return {"kind": "bits", "metric": spec.name, "count": len(values), "bits": bits}
  if spec.kind == "ratio" and spec.numerator and {*spec.numerator, *spec.denominator} <= set(rows):
    above, below = spec.counts(rows)
    return {
      "kind": "ratio",
      "metric": spec.name,
      "numerator": _short(spec.sign * above),
      "denominator": _short(below),
    }
  return None


def averages_to(packed: Mapping[str, Any]) -> str:
  """The metric that packed scores average to; of earlier versions, bits are accuracy."""
  return str(packed.get("metric", "accuracy"))


def unpack_scores(packed: Mapping[str, Any]) -> np.ndarray:
  """One float64 an example, whose average is the metric; the inverse of `pack_scores`."""
  if packed["kind"] == "bits":
    data = np.frombuffer(base64.b64decode(packed["bits"]), dtype=np.uint8)
    return np.unpackbits(data)[: packed["count"]].astype(np.float64)
  if packed["kind"] == "values":
    return np.asarray(packed["values"], dtype=np.float64)
  return linearize_ratio(np.asarray(packed["numerator"]), np.asarray(packed["denominator"]))


def _short(values: np.ndarray) -> list[float]:
  """Seven digits; whole numbers as such."""
  return [int(value) if float(value).is_integer() else float(f"{value:.7g}") for value in values]
