"""What the label column of a user's file means, and the number each label gets."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from peftjax.errors import UserError, nearest

CLASS, CLASSES, NUMBER, TAGS = "class", "classes", "number", "tags"


@dataclasses.dataclass(frozen=True)
class Labels:
  """How labels become numbers.

  Attributes:
    kind: "class" (one of `names`), "classes" (any of them), "number" (nothing to name) or "tags" (one for each token).
    names: the label with number i at place i; empty for numbers.
    integers: the column holds the numbers themselves.
  """

  kind: str
  names: tuple[str, ...]
  integers: bool = False

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
      raise UserError(f"{where}: label {value!r}, expected a list as in the rows before")
    ids = [self._encode_one(one, where) for one in value]
    if self.kind == TAGS:
      return ids
    found = np.zeros(len(self.names), np.float32)
    found[ids] = 1.0
    return found

  def _encode_one(self, value: Any, where: str) -> int:
    if isinstance(value, bool):
      value = int(value)
    if isinstance(value, int) == self.integers or isinstance(value, str):
      index = self._ids.get(str(value))
      if index is not None:
        return index
    raise UserError(
      f"{where}: label {value!r} is none of the {len(self.names)} labels of the training split; "
      f"{nearest(str(value), self.names)}"
    )


def read_labels(values: Sequence[Any], wheres: Sequence[str], from_text: bool, tags: bool = False) -> Labels:
  """Tells from the training split's values what kind of labels they are.

  Strings are names, sorted. Integers and booleans are the numbers themselves and must be 0 .. n-1 without a gap.
  Numbers with a fraction are predicted as numbers. A list of strings or integers names all labels that hold, or, if
  `tags`, one for each token.

  Args:
    values: one for each row.
    wheres: "FILE:LINE" of each row.
    from_text: the file knows only text (CSV): numbers are recognised by how they look.

  Raises:
    UserError: mixed types, an empty label, a gap, or one label only.
  """
  many = tags or any(isinstance(value, list) for value in values)
  flat = [(one, where) for value, where in zip(values, wheres, strict=True) for one in _members(value, where, many)]
  if not flat:
    raise UserError(f"{wheres[0]}: no row has a label")
  for value, where in flat:
    if value is None or value == "":
      raise UserError(f"{where}: the label is empty")
    if not isinstance(value, (str, int, float)):
      raise UserError(f"{where}: label {value!r}, expected a string or a number")
  kinds = [_looks(value, from_text) for value, _ in flat]
  first = "float" if "float" in kinds and "str" not in kinds else kinds[0]
  if from_text and "str" in kinds:
    first, kinds = "str", ["str"] * len(kinds)
  for (value, where), kind in zip(flat, kinds, strict=True):
    if kind != first and (first, kind) != ("float", "int"):
      raise UserError(f"{where}: label {value!r}, expected {_SAY[first]} as in the rows before")
  if first == "float":
    if many:
      raise UserError(f"{flat[0][1]}: a list of labels holds {flat[0][0]!r}, expected strings or integers")
    return Labels(NUMBER, ())
  kind = TAGS if tags else CLASSES if many else CLASS
  if first == "int":
    return Labels(kind, _without_gap(flat), integers=True)
  names = sorted({value for value, _ in flat}, key=_tag_order if tags else None)
  return Labels(kind, _more_than_one(names, flat[0][1]))


_SAY = {"str": "a string", "int": "an integer", "float": "a number"}


def _members(value: Any, where: str, many: bool) -> Iterable[Any]:
  if not many:
    return [value]
  if not isinstance(value, list):
    raise UserError(f"{where}: label {value!r}, expected a list as in the rows before")
  return value


def _looks(value: Any, from_text: bool) -> str:
  if not isinstance(value, str):
    return "float" if isinstance(value, float) else "int"
  if from_text and re.fullmatch(r"-?\d+", value):
    return "int"
  if from_text and re.fullmatch(r"-?\d*\.\d+(e-?\d+)?", value):
    return "float"
  return "str"


def _number(value: Any, where: str) -> float:
  try:
    return float(value)
  except (TypeError, ValueError):
    raise UserError(f"{where}: label {value!r}, expected a number as in the rows before") from None


def _without_gap(flat: Sequence[tuple[Any, str]]) -> tuple[str, ...]:
  found = sorted({int(value) for value, _ in flat})
  missing = next((number for number in range(found[-1] + 1) if number not in set(found)), None)
  if found[0] < 0 or missing is not None:
    odd = found[0] if found[0] < 0 else next(number for number in found if missing is None or number > missing)
    where = next(where for value, where in flat if int(value) == odd)
    raise UserError(
      f"{where}: integer label {odd}, but labels are numbered 0 .. n-1 and no row has {max(missing or 0, 0)}; "
      f"here are {len(found)} labels from {found[0]} to {found[-1]}: renumber them or write them as strings"
    )
  return _more_than_one([str(number) for number in found], flat[0][1])


def _more_than_one(names: Sequence[str], where: str) -> tuple[str, ...]:
  if len(names) < 2:
    raise UserError(f"{where}: every row has the same label {names[0]!r}; there is nothing to learn")
  return tuple(names)


def _tag_order(tag: str) -> tuple[bool, str, str]:
  """O first, then B-X before I-X for each X."""
  return (tag != "O", tag[2:] if tag[1:2] == "-" else tag, tag)
