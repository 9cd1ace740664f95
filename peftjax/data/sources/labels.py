"""What the label column of a user's file means, and the number each label gets.

A column of text is read as pandas reads it: numbers with a sign, a point or an exponent are numbers, True and False are
booleans, and a column that holds anything else holds names.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from peftjax.errors import UserError, nearest

CLASS, CLASSES, NUMBER, TAGS = "class", "classes", "number", "tags"
AUTO, MULTI_HOT = "auto", "multi_hot"
ASKED = (AUTO, CLASS, NUMBER, CLASSES, MULTI_HOT)  # what `data.label_kind` may say

_NAMES, _INTEGERS, _BOOLEANS, _HOT = "names", "integers", "booleans", "hot"  # how a row spells its labels
_INTEGER = re.compile(r"\s*[+-]?\d{1,640}\s*", re.ASCII)  # digits that Python converts, whatever its limit is set to
_NUMBER = re.compile(r"\s*[+-]?((\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|inf|infinity)\s*", re.ASCII | re.IGNORECASE)
_MISSING = frozenset(  # how pandas writes and reads what is not there
  ("#N/A", "#N/A N/A", "#NA", "-NaN", "-nan", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null")
)


@dataclasses.dataclass(frozen=True)
class Labels:
  """How labels become numbers.

  Attributes:
    kind: "class" (one of `names`), "classes" (any of them), "number" (nothing to name) or "tags" (one for each token).
    names: the label with number i at place i; empty for numbers.
    spelling: how rows write them: as names, as integers, as True and False, or as a row of zeros and ones ("hot").
  """

  kind: str
  names: tuple[str, ...]
  spelling: str = _NAMES

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    return {name: index for index, name in enumerate(self.names)}

  def encode(self, value: Any, where: str) -> Any:
    """int, [C] float32 of zeros and ones, float, or a list of ints, by `kind`; `where` opens the error's line."""
    if self.kind == NUMBER:
      return _number(value, where)
    if self.kind == CLASS:
      return self._encode_one(value, where)
    if not isinstance(value, list):
      raise UserError(f"{where}: label {value!r:.60}, expected a list as in the rows before")
    if self.spelling == _HOT:
      return self._hot(value, where)
    ids = [self._encode_one(one, where) for one in value]
    if self.kind == TAGS:
      return ids
    found = np.zeros(len(self.names), np.float32)
    found[ids] = 1.0
    return found

  def told(self, column: str) -> str:
    """One line for the log: what the column was taken for."""
    names = ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")
    what = {
      CLASS: f"one of {len(self.names)} classes ({names})",
      CLASSES: f"any of {len(self.names)} labels ({names})",
      NUMBER: "a number to predict",
      TAGS: f"a tag for every word, of {len(self.names)} ({names})",
    }[self.kind]
    return f"column {column!r} holds {what}" + ("; its rows are multi-hot" if self.spelling == _HOT else "")

  def _encode_one(self, value: Any, where: str) -> int:
    index = self._ids.get(_spelt(value, self.spelling) or "")
    if index is not None:
      return index
    raise UserError(
      f"{where}: label {value!r:.60} is none of the {len(self.names)} labels of the training split; "
      f"{nearest(str(value)[:60], self.names[:1000])}"
    )

  def _hot(self, value: list[Any], where: str) -> np.ndarray:
    if len(value) != len(self.names) or not _are_zeros_and_ones(value):
      raise UserError(f"{where}: label {value!r:.60}, expected {len(self.names)} zeros and ones as in the rows before")
    return np.array(value, np.float32)


def _spelt(value: Any, spelling: str) -> str | None:
  """The name of a label that a row spells so; None if it cannot be one."""
  if spelling == _BOOLEANS:
    return str(value).strip().capitalize()
  if spelling == _INTEGERS:
    is_written = isinstance(value, str) and _INTEGER.fullmatch(value)
    return str(int(value)) if is_written or isinstance(value, int) else None
  return value if isinstance(value, str) else None


def read_labels(
  values: Sequence[Any], wheres: Sequence[str], from_text: bool, tags: bool = False, asked: str = AUTO
) -> Labels:
  """Tells from the training split's values what kind of labels they are.

  Strings are names, sorted. Integers and booleans are the numbers themselves and must be 0 .. n-1 without a gap.
  Numbers with a fraction or an exponent are predicted as numbers. A list of strings or integers names all labels that
  hold, or, if `tags`, one for each token; lists of zeros and ones of one length are multi-hot.

  Args:
    values: one for each row.
    wheres: "FILE:LINE" of each row.
    from_text: the file knows only text (CSV): numbers are recognised by how they look.
    tags: one label for each token.
    asked: what the user says they are, one of `ASKED`.

  Raises:
    UserError: mixed types, an empty label, a gap, or one label only; values that are not what was asked for.
  """
  many = tags or asked in (CLASSES, MULTI_HOT) or any(isinstance(value, list) for value in values)
  if many and asked in (CLASS, NUMBER):
    raise UserError(f"data.label_kind={asked}: the labels are lists")
  if many and not tags and asked != CLASSES and (found := _multi_hot(values, wheres, asked)) is not None:
    return found
  flat = [(one, where) for value, where in zip(values, wheres, strict=True) for one in _members(value, where, many)]
  if not flat:
    raise UserError(f"{wheres[0]}: no row has a label")
  for value, where in flat:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
      raise UserError(f"{where}: the label is empty")
    if not isinstance(value, (str, int, float)):
      raise UserError(f"{where}: label {value!r:.60}, expected a string or a number")
  if asked == NUMBER:
    return _numbers(flat)
  if asked == CLASS:
    return _any_classes(flat)
  return _of_one_kind(flat, from_text, TAGS if tags else CLASSES if many else CLASS)


def _of_one_kind(flat: Sequence[tuple[Any, str]], from_text: bool, kind: str) -> Labels:
  if from_text and all(str(value).strip().lower() in ("true", "false") for value, _ in flat):
    return Labels(kind, _more_than_one(sorted({_spelt(value, _BOOLEANS) or "" for value, _ in flat}), flat), _BOOLEANS)
  kinds = [_looks(value, from_text) for value, _ in flat]
  if from_text and "str" in kinds:
    _check_names(flat, kinds)
    kinds = ["str"] * len(kinds)
  first = "float" if "float" in kinds and "str" not in kinds else kinds[0]
  for (value, where), one in zip(flat, kinds, strict=True):
    if one != first and (first, one) != ("float", "int"):
      raise UserError(f"{where}: label {value!r:.60}, expected {_SAY[first]} as in the rows before")
  if first == "float":
    if kind != CLASS:
      raise UserError(f"{flat[0][1]}: a list of labels holds {flat[0][0]!r:.60}, expected strings or integers")
    found = _numbers(flat)
    _check_exact(flat, kinds)
    return found
  if first == "int":
    return Labels(kind, _without_gap(flat), _INTEGERS)
  names = sorted({value for value, _ in flat}, key=_tag_order if kind == TAGS else None)
  return Labels(kind, _more_than_one(names, flat))


_SAY = {"str": "a string", "int": "an integer", "float": "a number"}


def _check_names(flat: Sequence[tuple[Any, str]], kinds: Sequence[str]) -> None:
  """Refuses a column of numbers that single rows would turn into one of names."""
  odd = [(value, where) for (value, where), kind in zip(flat, kinds, strict=True) if kind == "str"]
  if len(odd) < len(flat) and all(value.strip() in _MISSING for value, _ in odd):
    raise UserError(
      f"{odd[0][1]}: label {odd[0][0]!r:.60} is missing in a column of numbers; leave the row out, "
      "or set data.label_kind=class if it is a name"
    )
  if 2 * kinds.count("float") > len(kinds):
    raise UserError(
      f"{odd[0][1]}: label {odd[0][0]!r:.60}, expected a number as in most rows; "
      "data.label_kind=class takes them all for names"
    )


def _check_exact(flat: Sequence[tuple[Any, str]], kinds: Sequence[str]) -> None:
  """Refuses ids among numbers: whole numbers that no float holds."""
  for (value, where), kind in zip(flat, kinds, strict=True):
    if kind == "int" and int(float(value)) != int(value):
      raise UserError(
        f"{where}: label {str(value)[:60]!r} is a whole number that no float holds, and other rows have numbers with a "
        "fraction; set data.label_kind to number if it may be rounded, or to class with strings or integers alone"
      )


def _multi_hot(values: Sequence[Any], wheres: Sequence[str], asked: str) -> Labels | None:
  """Labels of rows of zeros and ones, one for each label; None if the rows are sets.

  Raises:
    UserError: `asked` says multi-hot, or integers stand twice in a row, and the rows are not.
  """
  rows = [value for value in values if isinstance(value, list)]
  lengths = {len(row) for row in rows}
  is_hot = len(rows) == len(values) and len(lengths) == 1 and all(map(_are_zeros_and_ones, rows))
  if is_hot and (asked == MULTI_HOT or max(lengths) > 1):
    return Labels(CLASSES, tuple(str(number) for number in range(max(lengths))), _HOT)
  for value, where in zip(values, wheres, strict=True):
    numbers = [one for one in value if isinstance(one, int | float)] if isinstance(value, list) else []
    if asked == MULTI_HOT or len(set(numbers)) < len(numbers):
      raise UserError(
        f"{where}: label {value!r:.60} is no set of labels, and rows that are multi-hot "
        "are all of one length and hold zeros and ones"
      )
  return None


def _are_zeros_and_ones(value: list[Any]) -> bool:
  return bool(value) and all(isinstance(one, int | float) and one in (0, 1) for one in value)


def _members(value: Any, where: str, many: bool) -> Iterable[Any]:
  if not many:
    return [value]
  if not isinstance(value, list):
    raise UserError(f"{where}: label {value!r:.60}, expected a list as in the rows before")
  return value


def _looks(value: Any, from_text: bool) -> str:
  if not isinstance(value, str):
    return "float" if isinstance(value, float) else "int"
  if from_text and _INTEGER.fullmatch(value):
    return "int"
  return "float" if from_text and _NUMBER.fullmatch(value) else "str"


def _numbers(flat: Sequence[tuple[Any, str]]) -> Labels:
  for value, where in flat:
    _number(value, where)
  return Labels(NUMBER, ())


def _number(value: Any, where: str) -> float:
  try:
    found = float(value) if not isinstance(value, str) or _NUMBER.fullmatch(value) else math.nan
  except (TypeError, OverflowError):
    found = math.nan
  if not abs(found) <= float(np.finfo(np.float32).max):
    raise UserError(f"{where}: label {str(value)[:60]!r}, expected a finite number as in the rows before")
  return found


def _any_classes(flat: Sequence[tuple[Any, str]]) -> Labels:
  """Every value a class of its own, numbers in their order."""
  if all(_looks(value, from_text=True) == "int" for value, _ in flat):
    return Labels(
      CLASS, _more_than_one([str(one) for one in sorted({int(value) for value, _ in flat})], flat), _INTEGERS
    )
  wrong = next(((value, where) for value, where in flat if not isinstance(value, str)), None)
  if wrong is not None:
    raise UserError(f"{wrong[1]}: label {wrong[0]!r:.60}: data.label_kind=class takes strings or integers")
  return Labels(CLASS, _more_than_one(sorted({value for value, _ in flat}), flat))


def _without_gap(flat: Sequence[tuple[Any, str]]) -> tuple[str, ...]:
  found = sorted({int(value) for value, _ in flat})
  present = set(found)
  missing = next((number for number in range(len(found)) if number not in present), None)
  if found[0] < 0 or missing is not None:
    odd = found[0] if found[0] < 0 else next(number for number in found if missing is None or number > missing)
    where = next(where for value, where in flat if int(value) == odd)
    raise UserError(
      f"{where}: integer label {str(odd)[:40]}, but labels are numbered 0 .. n-1 and no row has "
      f"{max(missing or 0, 0)}; here are {len(found)} labels from {str(found[0])[:40]} to {str(found[-1])[:40]}: "
      "renumber them, or set data.label_kind to class or number"
    )
  return _more_than_one([str(number) for number in found], flat)


def _more_than_one(names: Sequence[str], flat: Sequence[tuple[Any, str]]) -> tuple[str, ...]:
  if len(names) < 2:
    raise UserError(f"{flat[0][1]}: every row has the same label {names[0]!r:.60}; there is nothing to learn")
  return tuple(names)


def _tag_order(tag: str) -> tuple[bool, str, str]:
  """O first, then B-X before I-X for each X."""
  return (tag != "O", tag[2:] if tag[1:2] == "-" else tag, tag)
