"""What a task says of each of its metrics, so that the study and its report need no table of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

Kind = Literal["per-example", "ratio", "corpus"]


@dataclasses.dataclass(frozen=True)
class Metric:
  """One metric of a task.

  Attributes:
    name: its key in the task's `metrics`.
    kind: how it follows from the rows of `per_example`: "per-example", the mean of the row `value`; "ratio", the sum
      of the rows `numerator` over the sum of the rows `denominator`; "corpus", from all examples at once in a way that
      no sum gives (a correlation, BLEU, mAP).
    unit: "nats a token", "words"; empty for shares and pure numbers.
    share: lies in [0, 1] and is shown as per cent; see `highest`.
    higher_is_better: whether more is better.
    value: of "per-example", the row whose mean it is.
    numerator, denominator: of "ratio", rows that are summed first over names, then over examples.
    sign: of "ratio", -1.0 where the metric is less the ratio (a log-likelihood of a sum of losses).
  """

  name: str
  kind: Kind
  unit: str = ""
  share: bool = False
  higher_is_better: bool = True
  value: str = ""
  numerator: tuple[str, ...] = ()
  denominator: tuple[str, ...] = ()
  sign: float = 1.0

  def counts(self, rows: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Of "ratio": what each example adds above and below the line, two float64[examples], without the `sign`."""
    above, below = (
      np.sum([np.asarray(rows[name]).astype(np.float64) for name in names], axis=0)
      for names in (self.numerator, self.denominator)
    )
    return above, below

  @property
  def highest(self) -> float:
    """What it cannot exceed: 1 for a share, but no number for an error rate, which is a share of what was wanted and
    may be more than all of it, unless it is a mean of such."""
    is_rate = self.kind != "per-example" and not self.higher_is_better
    return 1.0 if self.share and not is_rate else float("inf")

  def within(self, value: float) -> float:
    """The value, or of a share the nearest one that it can have: intervals of a mean know no ends.

    >>> Metric("accuracy", "per-example", share=True).within(1.25), Metric("mcc", "corpus").within(1.25)
    (1.0, 1.25)
    """
    return min(max(value, 0.0), self.highest) if self.share else value

  @property
  def direction(self) -> float:
    """1.0 where more is better, else -1.0."""
    return 1.0 if self.higher_is_better else -1.0
