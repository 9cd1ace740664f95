"""What is said at the end of a run whose loss has barely moved: that it has, and what would move it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LEAST = 0.05  # share of the first losses by which the last ones should lie lower
_PART = 5  # the first and the last fifth of the losses that were logged
_POINTS = 6  # logged losses, below which nothing is said
_STEP = 3  # times the rate that is proposed


def hint_of(rows: Sequence[Mapping[str, Any]], rates: Mapping[str, float]) -> str:
  """One line; "" where the loss has moved, or too few of it are known.

  Args:
    rows: of metrics.jsonl.
    rates: group -> its peak learning rate.

  >>> hint_of([{"step": step, "loss": 2.0 - 0.001 * step} for step in range(10, 101, 10)], {"adapter": 5e-4})
  'the training loss has barely moved: 1.985 to 1.905, 4.0 % less; if that is too little, try
  --config.optim.learning_rate=0.0015 or more train.epochs'
  >>> hint_of([{"step": step, "loss": 2.0 - 0.01 * step} for step in range(10, 101, 10)], {"adapter": 5e-4})
  ''
  """
  losses = [row["loss"] for row in rows if "split" not in row and isinstance(row.get("loss"), float)]
  if len(losses) < _POINTS or not rates:
    return ""
  count = max(len(losses) // _PART, 1)
  first, last = sum(losses[:count]) / count, sum(losses[-count:]) / count
  if first <= 0 or last < (1 - LEAST) * first:
    return ""
  moved = f"{100 * (1 - last / first):.1f} % less" if last <= first else f"{100 * (last / first - 1):.1f} % more"
  higher = _STEP * rates.get("adapter", max(rates.values()))
  return (
    f"the training loss has barely moved: {first:.4g} to {last:.4g}, {moved}; if that is too little, try "
    f"--config.optim.learning_rate={higher:.2g} or more train.epochs"
  )
