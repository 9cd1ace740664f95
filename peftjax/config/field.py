"""One field of the config: its default, what it means, and which values it takes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Field:
  """One field.

  Attributes:
    default: its value where nobody sets it; its type is the field's.
    meaning: what it decides, with its unit.
    least, most: smallest and greatest number.
    above, below: bounds that are not reached.
    also: numbers outside the bounds that have a meaning of their own.
    choices: the texts there are; () where anything may be one.
    filled: a text, or each text of a tuple, that may not be empty.
    item: of a tuple: what its items are like.
    or_several: a text in whose place a tuple of them may stand.
  """

  default: Any
  meaning: str
  _: dataclasses.KW_ONLY
  least: float = -math.inf
  most: float = math.inf
  above: float = -math.inf
  below: float = math.inf
  also: tuple[float, ...] = ()
  choices: tuple[str, ...] = ()
  filled: bool = False
  item: Field | None = None
  or_several: bool = False

  @property
  def expected(self) -> str:
    """Which values it takes, as an error says it.

    >>> Field(0.0, "", least=0, below=1).expected
    'a number from 0 to below 1'
    >>> Field(-1, "", least=1, also=(-1,)).expected
    'a whole number of at least 1, or -1'
    """
    if self.item is not None:
      return f"a tuple, each item {self.item.expected}"
    kind = type(self.default)
    if kind is bool:
      return "True or False"
    if kind is str:
      several = ", or a tuple of them" if self.or_several else ""
      if self.choices:
        return "one of " + ", ".join(repr(one) for one in self.choices)
      return ("a text that is not empty" if self.filled else "a text") + several
    what = "a whole number" if kind is int else "a number"
    if kind is float and min(self.most, self.below) == math.inf:
      what = "a finite number"
    low, high = max(self.least, self.above), min(self.most, self.below)
    start = f"above {_short(low)}" if self.above >= self.least else f"at least {_short(low)}"
    end = f"below {_short(high)}" if self.below <= self.most else f"at most {_short(high)}"
    if math.isfinite(low) and math.isfinite(high):
      if self.above < self.least:
        what += f" from {_short(low)} to {end.removeprefix('at most ')}"
      else:
        what += f" {start} and {end}"
    elif math.isfinite(low):
      what += f" {start}" if start.startswith("above") else f" of {start}"
    elif math.isfinite(high):
      what += f" {end}" if end.startswith("below") else f" of {end}"
    return what + "".join(f", or {_short(one)}" for one in self.also)

  def takes(self, value: Any) -> bool:
    """Whether a value is of the field's type and within its bounds."""
    if self.item is not None:
      return isinstance(value, tuple | list) and all(self.item.takes(one) for one in value)
    kind = type(self.default)
    if kind is bool:
      return isinstance(value, bool)
    if kind is str:
      if self.or_several and isinstance(value, tuple | list):
        return all(isinstance(one, str) for one in value)
      return isinstance(value, str) and (not self.filled or bool(value)) and value in (self.choices or (value,))
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
      return False
    if kind is float and not is_finite(value):
      return False
    within = self.least <= value <= self.most and self.above < value < self.below
    return within or value in self.also


def is_finite(number: int | float) -> bool:
  """Whether a number is finite as a float."""
  try:
    return math.isfinite(float(number))
  except OverflowError:
    return False


def _short(number: float) -> str:
  return f"{number:g}" if abs(number) < 1e6 else f"{number:,.0f}"
