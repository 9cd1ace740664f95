"""How much one rendering of a chat template may do.

A template comes with a model, so it is a stranger's program. Jinja's sandbox keeps it from objects it must not touch,
but not from going on for ever. So every loop step, call, operator and filter passes here: it is counted, and refused if
it would be too large by itself. The processor time of the whole is bounded, too.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

MAX_SECONDS = 1.5  # of processor time; of all renderings of a conversation, more where it has many messages
MESSAGES = 20  # of a conversation for each MAX_SECONDS
MAX_STEPS = 2_000_000  # of loops, calls and operators
MAX_CHARACTERS = 20_000_000  # made on the way, and 20 for each character of the messages
MAX_WRITTEN = 200_000  # characters of the whole text, and 20 for each character of the messages
MAX_NUMBER = 100_000  # that a template gives to a function or puts into a format
MAX_ITEMS = 200_000  # in one value, however deep


class Bounds:
  """What is left to one rendering.

  Attributes:
    length: characters written so far.
    answers: (first character, the one after the last) of what stands within {% generation %}.
  """

  def __init__(self, characters: int = 0):
    self.length = 0
    self.answers: list[tuple[int, int]] = []
    self._until = min(time.thread_time() + MAX_SECONDS, _RUNNING.until)
    self._steps, self._characters = MAX_STEPS, MAX_CHARACTERS + 20 * characters
    self._written = MAX_WRITTEN + 20 * characters

  def step(self) -> None:
    """Counts one step of a loop or a call; raises `TemplateError` beyond the bounds of steps and seconds."""
    self._steps -= 1
    if self._steps < 0:
      raise TemplateError(f"it takes more than {MAX_STEPS:,} steps")
    if time.thread_time() > self._until:
      raise TemplateError(f"it takes more than {MAX_SECONDS} seconds")

  def wrote(self, characters: int) -> None:
    """Counts what becomes part of the text."""
    self.length += characters
    if self.length > self._written:
      raise TemplateError("it writes more text than a conversation can be")

  def made(self, characters: int) -> None:
    """Counts a step and what it makes."""
    self._characters -= characters
    if self._characters < 0:
      raise TemplateError("it makes more text than a conversation can be")
    self.step()


class _Running(threading.local):
  bounds: Bounds | None = None
  until = float("inf")  # processor time of the thread


_RUNNING = _Running()


def running() -> Bounds:
  """The bounds of the rendering that this thread is in; those of an empty one while a template is compiled."""
  return _RUNNING.bounds or Bounds()


@contextlib.contextmanager
def rendering(characters: int) -> Iterator[Bounds]:
  """Bounds for what follows in this thread."""
  before, _RUNNING.bounds = _RUNNING.bounds, Bounds(characters)
  try:
    yield _RUNNING.bounds
  finally:
    _RUNNING.bounds = before


@contextlib.contextmanager
def conversation(messages: int) -> Iterator[None]:
  """Bounds the time of all renderings in the block, which are of one conversation and its parts."""
  before = _RUNNING.until
  _RUNNING.until = min(before, time.thread_time() + MAX_SECONDS * max(messages / MESSAGES, 1))
  try:
    yield
  finally:
    _RUNNING.until = before


def extent_of(value: Any) -> int:
  """Characters of the texts and items of the lists in a value, counted wherever they stand in it."""
  if isinstance(value, str | bytes):
    return len(value)
  if not isinstance(value, list | tuple | Mapping | set):
    return 1
  total, items, left = 0, 0, [value]
  while left:
    one = left.pop()
    items += 1
    if isinstance(one, str | bytes):
      total += len(one)
    elif isinstance(one, Mapping):
      left.extend(one.values())
      total += sum(len(key) if isinstance(key, str) else 1 for key in one)
    elif isinstance(one, list | tuple | set):
      left.extend(one)
    if items + len(left) > MAX_ITEMS or total > MAX_CHARACTERS:
      raise TemplateError(f"it makes a value of more than {MAX_ITEMS:,} items")
  return total + items


def counted(value: Any) -> Any:
  """The value, after its characters and items were counted against the bound."""
  running().made(extent_of(value))
  return value


def check_operator(operator: str, left: Any, right: Any) -> None:
  """Refuses an operation that alone would take too long or too much memory."""
  numbers = [one for one in (left, right) if isinstance(one, int)]
  if operator == "**" and any(isinstance(one, int | float) and abs(one) > 10_000 for one in (left, right)):
    raise TemplateError("it raises a number to a power without bound")
  if operator == "%" and isinstance(left, str | bytes):
    check_format(left, [right])
  if operator == "*" and len(numbers) == 2 and max(map(abs, numbers)) > 2**64:
    raise TemplateError("it multiplies numbers without bound")
  if operator == "*" and len(numbers) == 1:
    (times,) = numbers
    running().made(max(times, 0) * (extent_of(right if left is times else left)))


def check_call(name: str, subject: Any, arguments: Sequence[Any]) -> None:
  """Refuses a function or filter of this name whose result would be too large.

  Args:
    name: of the function or filter.
    subject: what it is a method of, or what is filtered.
    arguments: the others.
  """
  for one in arguments:
    if isinstance(one, int | float) and not abs(one) <= MAX_NUMBER:
      raise TemplateError(f"it gives the number {one!r:.30} to a function")
  texts = [one for one in arguments if isinstance(one, str | bytes)]
  greatest = max((abs(int(one)) for one in arguments if isinstance(one, int | float)), default=0)
  if name in ("format", "format_map"):
    check_format(subject if isinstance(subject, str | bytes) else "", arguments)
  elif name == "replace" and len(texts) > 1 and isinstance(subject, str | bytes):
    places: int = subject.count(texts[0]) if len(subject) > 1000 else len(subject) + 1  # type: ignore[arg-type]
    running().made(places * len(texts[1]))
  elif name in ("join", "indent", "tojson", "expandtabs", "translate", "pprint", "xmlattr"):
    sizes = [extent_of(one) for one in (subject, *arguments) if isinstance(one, str | bytes | list | tuple | Mapping)]
    running().made(max(sizes, default=0) * max(sorted(sizes)[-2] if len(sizes) > 1 else 1, greatest, 1))
  elif name == "sum" and any(isinstance(one, list | tuple | str) for one in arguments):
    running().made(extent_of(subject) ** 2 // 8)
  running().step()


def check_format(text: str | bytes, arguments: Sequence[Any]) -> None:
  """Refuses a format whose widths or repetitions make too long a text."""
  text = text if isinstance(text, str) else text.decode("latin-1")
  if "*" in text or any(int(digits[:9]) > MAX_NUMBER for digits in re.findall(r"\d{5,}", text)):
    raise TemplateError("it formats to a width without bound")
  running().made((text.count("{") + text.count("%")) * max((extent_of(one) for one in arguments), default=0))
