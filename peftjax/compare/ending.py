"""Whether training had converged: what the loss still did in the last fifth of the updates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from peftjax.compare import statistics
from peftjax.compare.records import Record
from peftjax.stored import Stored

LAST = 0.2  # of the updates
SMALL = 0.05  # of a loss's whole fall, below which a fall counts as none
CONVERGED, LEARNING, OPEN = "converged", "still learning", "not known"
VALIDATION, TRAINING = "validation", "training"
_POINTS = 3  # of a curve, at least, that a slope is read from


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ending(Stored):
  """How a row's training ended, under its schedule: a rate that decays to nothing flattens any curve.

  Attributes:
    word: "still learning" if the loss's fall over the last fifth is above zero and above 5% of its whole fall,
      "converged" if its interval lies below 5% of the whole fall, else "not known".
    loss: which one: "validation" where runs were evaluated along the way, else "training".
    fall: of the loss over the last fifth of the updates; the mean over runs. Between evaluations validation loss is
      taken by the straight line; of the training loss it is the slope of the least-squares line.
    low, high: its Student's 95% interval; None with one run.
    whole: the fall from the first loss to the last.
  """

  word: str
  loss: str
  fall: float
  low: float | None = None
  high: float | None = None
  whole: float

  @property
  def share(self) -> float | None:
    """Of the whole fall; None where there was none."""
    return self.fall / self.whole if self.whole > 0 else None


def ending_of(records: Sequence[Record]) -> Ending | None:
  """Of one row's runs; None where their curves are too short."""
  for loss, falls_of in ((VALIDATION, _of_validation), (TRAINING, _of_training)):
    found = [falls_of(record) for record in records]
    if all(found):
      return _judged(loss, np.array(found, dtype=np.float64))
  return None


def _judged(loss: str, found: np.ndarray) -> Ending:
  falls, wholes = found.T
  interval = statistics.seed_interval(falls)
  fall, whole = float(interval.estimate), float(wholes.mean())
  if len(falls) < 2:
    return Ending(word=OPEN, loss=loss, fall=fall, whole=whole)
  low, high, few = float(interval.low), float(interval.high), SMALL * max(whole, 0.0)
  word = LEARNING if low > 0 and fall > few else CONVERGED if high < few else OPEN
  return Ending(word=word, loss=loss, fall=fall, low=low, high=high, whole=whole)


def _of_validation(record: Record) -> tuple[float, float] | None:
  """(fall over the last fifth, whole fall) of a run's validation loss; None where it was seen less than three times, or
  not at the end."""
  held = record.trajectory.get(VALIDATION, {})
  steps, losses = held.get("step", []), held.get("loss", [])
  if len(steps) < _POINTS or steps[-1] < record.steps or None in losses:
    return None
  before = float(np.interp((1 - LAST) * record.steps, steps, losses))
  return before - losses[-1], losses[0] - losses[-1]


def _of_training(record: Record) -> tuple[float, float] | None:
  """The same of the training loss; None where fewer than twice three points were kept."""
  if len(record.curve) < 2 * _POINTS:
    return None
  steps, losses = np.array(record.curve).T
  late = steps >= min(steps[-1] - LAST * record.steps, steps[-_POINTS])
  slope, end = np.polyfit(steps[late] - steps[-1], losses[late], 1)
  return float(-slope * LAST * record.steps), float(losses[0] - end)
