"""Step times of several methods, taken in turns: a machine that slows down for a while slows all of them.

Runs timed one after the other differ by what else the machine did in the meantime, often by more than methods do. Here
every round takes one step of each row in a random order; ratios are formed within a round, and their median and its
interval over rounds are reported.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping

import numpy as np
from scipy import stats

from peftjax.stored import Stored

Step = Callable[[], object]  # takes one optimizer step and returns when it is done


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTimes(Stored):
  """Seconds of a row's steps, their median and its 95% interval; the same of their ratio to the reference's, if any."""

  seconds: tuple[float, ...]
  median: float
  low: float
  high: float
  ratio: float | None = None
  ratio_low: float | None = None
  ratio_high: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing(Stored):
  """What ``timing.json`` holds: the steps of all rows; step i of each row is round i."""

  rounds: int
  rows: Mapping[str, StepTimes]


def interleaved(steps: Mapping[str, Step], reference: str, rounds: int = 20, warmup: int = 2) -> Timing:
  """Seconds a step of each row, and their ratio to the reference row's, by turns.

  Args:
    steps: a row's name -> its step. The first calls compile and do not count.
    reference: the row that ratios refer to; rows have no ratio if it is not among them.
    rounds: times that each row takes a step.
    warmup: steps of each row before the clock counts.
  """
  for step in steps.values():
    for _ in range(warmup):
      step()
  seconds: dict[str, list[float]] = {row: [] for row in steps}
  rng = np.random.default_rng(0)
  names = list(steps)
  for _ in range(rounds):
    for index in rng.permutation(len(names)):
      start = time.perf_counter()
      steps[names[index]]()
      seconds[names[index]].append(time.perf_counter() - start)
  return timing_of(seconds, reference)


def timing_of(seconds: Mapping[str, list[float]], reference: str) -> Timing:
  """Medians, ratios and their intervals from the seconds of each row's steps."""
  rows = {}
  for row, taken in seconds.items():
    low, median, high = median_interval(np.asarray(taken))
    ratio: tuple[float | None, ...] = (None, None, None)
    if reference in seconds:
      ratio = median_interval(np.asarray(taken) / np.asarray(seconds[reference]))
    rows[row] = StepTimes(
      seconds=tuple(round(value, 6) for value in taken),
      median=median,
      low=low,
      high=high,
      ratio_low=ratio[0],
      ratio=ratio[1],
      ratio_high=ratio[2],
    )
  return Timing(rounds=len(next(iter(seconds.values()), [])), rows=rows)


def median_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
  """(low, median, high) of ``values [n]``, the ends from order statistics: exact for any distribution.

  With fewer than six values no two of them enclose the median at 95%; the smallest and the largest are returned.
  """
  ordered = np.sort(values)
  skipped = max(int(stats.binom.ppf((1 - level) / 2, len(ordered), 0.5)) - 1, 0)
  return float(ordered[skipped]), float(np.median(ordered)), float(ordered[len(ordered) - 1 - skipped])
