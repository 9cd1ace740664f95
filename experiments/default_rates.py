"""Where the default learning rates come from: the searches of the kept studies, read once more.

python -m experiments.default_rates        prints the table of docs/learning_rates.md

Two studies classify packaged texts with MiniLM (experiments/studies): 77 intents from 770 questions in 90 updates, and
two sentiments from 512 sentences in 96 updates. Each method was tried at four rates or more, and with other rates of
the head beside it. A score between two tried rates is read from the line between them, over the logarithm of the rate;
a loss is what a rate gives away on a data set against the best that was tried there, in points of validation accuracy.
Defaults are from the series 1, 2, 5, 10, within what was tried on both:

    head       one rate for all methods that train something beside it: the lowest whose mean loss, over methods and
               data sets, is within 2.2 points of the least; lower rates are safer in longer runs
    a method   the same, over data sets

One run stands for each setting: a score of 300 or 200 examples has a standard error of 2.7 and 3.5 points, and the mean
of two data sets of 2.2.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

STUDIES = Path(__file__).parent / "studies"
DATA = {"banking77": 1e-1, "movie_reviews": 3e-2}  # -> the head's rate where no other one is named
METHODS = ("full", "head", "bitfit", "lora", "ia3", "houlsby")
KNOB = "optim.groups.head.learning_rate"
SERIES = tuple(float(f"{digit}e{power}") for power in range(-6, 1) for digit in (1, 2, 5))
WITHIN = 2.2  # points

Curve = Sequence[tuple[float, float]]  # (rate, accuracy in points), ascending


def tried(data: str, method: str) -> list[dict[str, Any]]:
  """The settings of one method in a kept search: {"learning_rate", "knobs", "scores"}."""
  rows = json.loads((STUDIES / data / "record" / "search.json").read_text(encoding="utf-8"))
  return next(row["tried"] for row in rows if row["row"] == method)


def of_rates(data: str, method: str) -> Curve:
  """Accuracy along the method's own rate, the head's as it is without a knob."""
  return sorted((one["learning_rate"], 100 * one["scores"][0]) for one in tried(data, method) if not one["knobs"])


def of_heads(data: str, method: str) -> Curve:
  """Accuracy along the head's rate, at the own rate at which most of them were tried."""
  settings = tried(data, method)
  rates = [one["learning_rate"] for one in settings if one["knobs"]]
  own = statistics.mode(rates)
  found = [(one["knobs"].get(KNOB, DATA[data]), 100 * one["scores"][0]) for one in settings
           if one["learning_rate"] == own]  # fmt: skip
  return sorted(found)


def losses(curve: Curve) -> Callable[[float], float]:
  """rate -> what it gives away, in points; NaN outside of what was tried."""
  rates, scores = np.log([rate for rate, _ in curve]), np.array([score for _, score in curve])
  return lambda rate: float(scores.max() - np.interp(np.log(rate), rates, scores, np.nan, np.nan))


def chosen(curves: Sequence[Curve]) -> tuple[float, float]:
  """(the default, its mean loss) by the rule above."""
  each = [losses(curve) for curve in curves]
  means = {rate: statistics.fmean(one(rate) for one in each) for rate in SERIES}
  known = {rate: mean for rate, mean in means.items() if np.isfinite(mean)}
  least = min(known.values())
  rate = min(rate for rate, mean in known.items() if mean <= least + WITHIN)
  return rate, known[rate]


def defaults() -> Mapping[str, tuple[float, float, Sequence[float]]]:
  """Method, or "beside" for the head beside any -> (default, its mean loss, its loss on each data set)."""
  heads = [[of_heads(data, method) for method in METHODS if _has_heads(data, method)] for data in DATA]
  rate, mean = chosen([curve for curves in heads for curve in curves])
  found = {"beside": (rate, mean, [statistics.fmean(losses(curve)(rate) for curve in curves) for curves in heads])}
  for method in METHODS:
    curves = [of_rates(data, method) for data in DATA]
    rate, mean = chosen(curves)
    found[method] = (rate, mean, [losses(curve)(rate) for curve in curves])
  return found


def _has_heads(data: str, method: str) -> bool:
  return any(KNOB in one["knobs"] for one in tried(data, method))


def table() -> str:
  """The page's table."""
  lines = ["| | default rate | " + " | ".join(f"gives away on {data}" for data in DATA) + " |"]
  lines.append("|---|---:|" + "---:|" * len(DATA))
  for name, (rate, _, each) in defaults().items():
    what = "the head beside a method" if name == "beside" else name
    lines.append(f"| {what} | {rate:g} | " + " | ".join(f"{loss:.1f}" for loss in each) + " |")
  return "\n".join(lines)


if __name__ == "__main__":
  print(table())
