"""Regular expressions of other people's files, matched in bounded time.

Python's matcher tries one way after another, of which `(([a-z])+)+!` has 2ⁿ on n letters. What may have many is matched
here by the set of places that can be reached, all ways at once (Thompson 1968), in steps that are counted; the rest by
`re`. Both say the same: whether a text matches; what groups hold is not asked.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from peftjax.errors import UserError

MAX_CHARACTERS = 2**20
MAX_STEPS = 50_000  # of one text: hundredths of a second
_FREE_REPEATS = 2  # that `re` may try: at most n² ways
_REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT)
_CATEGORIES = {
  codes.CATEGORY_DIGIT: r"\d",
  codes.CATEGORY_NOT_DIGIT: r"\D",
  codes.CATEGORY_SPACE: r"\s",
  codes.CATEGORY_NOT_SPACE: r"\S",
  codes.CATEGORY_WORD: r"\w",
  codes.CATEGORY_NOT_WORD: r"\W",
}

Places = frozenset[int]


def full_match(pattern: str, text: str) -> bool:
  """Whether a regular expression matches a whole text.

  Raises:
    UserError: it is none, or it has too many ways to match.

  >>> full_match(r".*layer\\.[01]\\..*query", "encoder.layer.1.attention.self.query")
  True
  >>> full_match("(([a-z])+)+!", "a" * 60)
  False
  """
  return _compiled(pattern)(text)


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> Callable[[str], bool]:
  if len(pattern) > MAX_CHARACTERS:
    raise UserError(f"the pattern {_short(pattern)} has {len(pattern):,} characters, and at most 1 Mi are read")
  try:
    tree = parser.parse(pattern)
    if _repeats(tree) <= _FREE_REPEATS:
      compiled = re.compile(pattern)
      return lambda text: compiled.fullmatch(text) is not None
    found = _Sets(pattern, tree)
  except (re.error, OverflowError) as error:
    raise UserError(f"the pattern {_short(pattern)} is no regular expression: {error}") from None
  except RecursionError:
    raise UserError(f"the pattern {_short(pattern)} has too many groups in each other") from None
  return functools.lru_cache(maxsize=2**14)(found.full_match)


def _short(pattern: str) -> str:
  return repr(pattern if len(pattern) <= 80 else pattern[:76] + " ...")


def _repeats(tree: Any) -> float:
  """How many repeats may share out a text among them; ∞ where one lies in another."""
  count = 0.0
  for code, given in tree:
    inner = sum(_repeats(part) for part in _parts(code, given))
    if code in _REPEATS and int(given[1]) > 1:
      count += 1 if not inner else float("inf")
    count += inner
  return count


def _parts(code: Any, given: Any) -> Iterable[Any]:
  if code in (*_REPEATS, codes.POSSESSIVE_REPEAT):
    return (given[2],)
  if code is codes.SUBPATTERN:
    return (given[3],)
  if code is codes.BRANCH:
    return tuple(given[1])
  if code in (codes.ASSERT, codes.ASSERT_NOT):
    return (given[1],)
  if code is codes.ATOMIC_GROUP:
    return (given,)
  if code is codes.GROUPREF_EXISTS:
    return tuple(part for part in given[1:] if part is not None)
  return ()


class _Sets:
  """A pattern, and the places in a text that it reaches."""

  def __init__(self, pattern: str, tree: Any):
    self._pattern, self._tree, self._flags = pattern, tree, int(tree.state.flags)

  def full_match(self, text: str) -> bool:
    self._text, self._steps = text, 0
    return len(text) in self._sequence(self._tree, frozenset({0}), self._flags)

  def _sequence(self, tree: Any, places: Places, flags: int) -> Places:
    for code, given in tree:
      if not places:
        break
      self._steps += len(places)
      if self._steps > MAX_STEPS:
        raise UserError(f"the pattern {_short(self._pattern)} needs more than {MAX_STEPS:,} steps on {self._text!r}")
      places = self._one(code, given, places, flags)
    return places

  def _one(self, code: Any, given: Any, places: Places, flags: int) -> Places:
    if code in _REPEATS:
      least, most, part = given
      return self._repeated(int(least), int(most), part, places, flags)
    if code is codes.BRANCH:
      return frozenset().union(*(self._sequence(part, places, flags) for part in given[1]))
    if code is codes.SUBPATTERN:
      _, added, removed, part = given
      return self._sequence(part, places, (flags | added) & ~removed)
    if code in (codes.ASSERT, codes.ASSERT_NOT):
      direction, part = given
      wanted = code is codes.ASSERT
      return frozenset(one for one in places if self._looks(direction, part, one, flags) == wanted)
    if code is codes.AT:
      return frozenset(one for one in places if _is_at(given, self._text, one, flags))
    if code in (codes.LITERAL, codes.NOT_LITERAL, codes.ANY, codes.IN):
      fits = _character(code, given if code is not codes.IN else tuple(given), flags)
      return frozenset(one + 1 for one in places if one < len(self._text) and fits(self._text[one]))
    raise UserError(
      f"the pattern {_short(self._pattern)}: with more than {_FREE_REPEATS} repeats, or one in another, "
      f"{str(code).lower().replace('_', ' ')} is not taken"
    )

  def _repeated(self, least: int, most: int, part: Any, places: Places, flags: int) -> Places:
    for _ in range(min(least, len(self._text) + 2)):  # by then nothing changes any more
      places = self._sequence(part, places, flags)
    reached, new = places, places
    for _ in range(min(most - least, len(self._text) + 2)):
      new = self._sequence(part, new, flags) - reached
      if not new:
        break
      reached |= new
    return reached

  def _looks(self, direction: int, part: Any, place: int, flags: int) -> bool:
    if direction > 0:
      return bool(self._sequence(part, frozenset({place}), flags))
    start = place - part.getwidth()[0]  # lookbehind has one width
    return start >= 0 and place in self._sequence(part, frozenset({start}), flags)


@functools.lru_cache(maxsize=4096)
def _character(code: Any, given: Any, flags: int) -> Callable[[str], bool]:
  """Whether a character is one that a node takes."""
  one = {
    codes.LITERAL: lambda: re.escape(chr(given)),
    codes.NOT_LITERAL: lambda: f"[^{re.escape(chr(given))}]",
    codes.ANY: lambda: ".",
    codes.IN: lambda: _set(given),
  }[code]()
  kept = flags & (re.IGNORECASE | re.DOTALL | re.ASCII)
  return functools.lru_cache(maxsize=256)(lambda text: re.fullmatch(one, text, kept) is not None)


def _set(entries: Iterable[tuple[Any, Any]]) -> str:
  written = ""
  for code, given in entries:
    if code is codes.NEGATE:
      written += "^"
    elif code is codes.RANGE:
      written += "-".join(re.escape(chr(end)) for end in given)
    else:
      written += _CATEGORIES[given] if code is codes.CATEGORY else re.escape(chr(given))
  return f"[{written}]"


def _is_at(kind: Any, text: str, place: int, flags: int) -> bool:
  lines = bool(flags & re.MULTILINE)
  if kind in (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING):
    starts_line = lines and kind is codes.AT_BEGINNING and text[place - 1 : place] == "\n"
    return place == 0 or starts_line
  if kind in (codes.AT_END, codes.AT_END_STRING):
    is_last = kind is codes.AT_END and (text[place:] == "\n" or (lines and text[place : place + 1] == "\n"))
    return place == len(text) or is_last
  word = _character(codes.IN, ((codes.CATEGORY, codes.CATEGORY_WORD),), flags & re.ASCII)
  before, behind = (bool(one) and word(one) for one in (text[max(place - 1, 0) : place], text[place : place + 1]))
  return (before != behind) == (kind is codes.AT_BOUNDARY)
