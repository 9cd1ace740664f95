"""What a value in a file that others wrote may be: its type and range, said in words where it is something else.

Every reader of such files (config.json, adapter_config.json, peftjax.json, the fields of GGUF, generation_config.json)
checks what it takes by these, so that a value of another type ends in one line.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from peftjax.errors import UserError

MOST_ENTRIES = 2**12  # of a list, where nothing else is said


class Unfit(ValueError):
  """What was expected instead of a value."""


@dataclasses.dataclass(frozen=True)
class Kind:
  """A type with its range.

  Attributes:
    check: value of JSON -> value to use; raises `Unfit`.
    optional: null is a value too.
  """

  check: Callable[[Any], Any]
  optional: bool = False

  def __call__(self, value: Any) -> Any:
    return None if value is None and self.optional else self.check(value)

  @property
  def or_null(self) -> Kind:
    """The same, where null means that there is none."""
    return dataclasses.replace(self, optional=True)


def whole(least: int, most: int) -> Kind:
  """A whole number from `least` to `most`."""

  def check(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
      raise Unfit(f"a whole number from {least} to {most}")
    return value

  return Kind(check)


def number(
  least: float | None = None, most: float | None = None, *, above: float | None = None, below: float | None = None
) -> Kind:
  """A finite number within bounds."""
  bounds = {"of at least": least, "of at most": most, "above": above, "below": below}
  expected = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)

  def check(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) < 1e38:  # float32 holds no larger one
      raise Unfit(f"a finite number {expected}".strip())
    fits = (least is None or value >= least, most is None or value <= most, above is None or value > above)
    if not all(fits) or not (below is None or value < below):
      raise Unfit(f"a number {expected}")
    return float(value)

  return Kind(check)


def _flag(value: Any) -> bool:
  if not isinstance(value, bool):
    raise Unfit("true or false")
  return value


def _name(value: Any) -> str:
  if not isinstance(value, str):
    raise Unfit("a text")
  return value


def list_of(kind: Kind, most: int = MOST_ENTRIES, what: str = "values") -> Kind:
  """A list of values of one kind."""

  def check(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
      raise Unfit(f"a list of {what}")
    if len(value) > most:
      raise Unfit(f"a list of at most {most} {what}")
    try:
      return tuple(kind(one) for one in value)
    except Unfit as error:
      raise Unfit(f"a list, each value {error}") from None

  return Kind(check)


def _settings(value: Any) -> dict[str, Any]:
  if not isinstance(value, Mapping):
    raise Unfit("an object")
  return dict(value)


def mapping_of(kind: Kind) -> Kind:
  """An object whose values are of one kind."""

  def check(value: Any) -> dict[str, Any]:
    try:
      return {name: kind(one) for name, one in _settings(value).items()}
    except Unfit as error:
      raise Unfit(f"an object, each value {error}" if isinstance(value, Mapping) else str(error)) from None

  return Kind(check)


FLAG = Kind(_flag)
NAME = Kind(_name)
SETTINGS = Kind(_settings)


def either(*kinds: Kind) -> Kind:
  """A value of one of several kinds; the first that takes it."""

  def check(value: Any) -> Any:
    expected = []
    for kind in kinds:
      try:
        return kind(value)
      except Unfit as error:
        expected.append(str(error))
    raise Unfit(" or ".join(dict.fromkeys(expected)))

  return Kind(check)


def value_of(where: str, name: str, value: Any, kind: Kind) -> Any:
  """A value of a file, checked.

  Args:
    where: the file, which opens the error's line.
    name: the value's name in it.

  Raises:
    UserError: a value of another kind.
  """
  try:
    return kind(value)
  except Unfit as error:
    raise UserError(f"{where}: {name}={shown(value)}: expected {error}") from None


def whole_of_text(text: str, least: int, most: int) -> int | None:
  """The whole number that a flag of the command line says in digits; None if it says none, or one out of range.

  >>> whole_of_text("12", 0, 99), whole_of_text("²", 0, 99), whole_of_text("100", 0, 99)
  (12, None, None)
  """
  if not (text.isascii() and text.isdigit() and len(text) <= 10):
    return None
  return int(text) if least <= int(text) <= most else None


def shown(value: Any) -> str:
  """A value of JSON for an error's line, shortened."""
  try:
    text = json.dumps(value)
  except (TypeError, ValueError, RecursionError):
    text = type(value).__name__
  return text if len(text) <= 60 else text[:57] + "..."
