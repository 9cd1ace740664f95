"""Frozen dataclasses as JSON objects and back: what a study writes down has one each, and its fields are the keys."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from peftjax.errors import UserError
from peftjax.files import read_json
from peftjax.kinds import shown


class Stored:
  """A frozen dataclass that is a JSON object."""

  def to_json(self) -> dict[str, Any]:
    """The object, ready for `json.dumps`."""
    found: dict[str, Any] = plain(self)
    return found

  @classmethod
  def from_json(cls, found: Mapping[str, Any]) -> Self:
    """What `to_json` gave; a key that is missing has its field's default, and keys of other versions are passed over.

    Raises:
      KeyError: a field without a default is missing.
      TypeError, ValueError: a value of another type.
    """
    one: Self = made(cls, found)
    return one

  @classmethod
  def read(cls, path: Path) -> Self:
    """What `to_json` gave, from a file.

    Raises:
      UserError: the file cannot be read, a field is missing or of another type.
    """
    return cls.checked(read_json(path), str(path))

  @classmethod
  def checked(cls, found: Any, where: str) -> Self:
    """As `from_json`, of JSON that anybody may have written; `where` opens the error's line."""
    try:
      if not isinstance(found, Mapping):
        raise TypeError(f"expected an object, got {shown(found)}")
      return cls.from_json(found)
    except KeyError as error:
      raise UserError(f"{where}: no {error}; another version wrote it, or it is damaged") from None
    except (TypeError, ValueError, AttributeError) as error:
      raise UserError(f"{where}: {error}") from None


def plain(value: Any) -> Any:
  """A value as JSON gives it back: dataclasses and mappings as dicts, sequences as lists, numbers as Python's own, and
  None for those that are not finite, which JSON does not have."""
  if dataclasses.is_dataclass(value):
    return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
  if isinstance(value, Mapping):
    return {str(name): plain(one) for name, one in value.items()}
  if isinstance(value, list | tuple):
    return [plain(one) for one in value]
  if isinstance(value, np.ndarray):
    return plain(value.tolist())
  value = value.item() if isinstance(value, np.generic) else value
  return None if isinstance(value, float) and not math.isfinite(value) else value


@functools.cache
def _fields(cls: type) -> list[tuple[str, Any, bool]]:
  """(name, type, whether it must be given) of a dataclass's fields."""
  types_of = typing.get_type_hints(cls)
  return [
    (
      field.name,
      types_of[field.name],
      field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
    )
    for field in dataclasses.fields(cls)
  ]


def made(kind: Any, found: Any) -> Any:
  """A value of a type, from JSON: dataclasses, tuples, mappings and optional ones of these; any other as it is."""
  if dataclasses.is_dataclass(kind) and isinstance(kind, type):
    _check(found, Mapping, "an object")
    given = {name: _part(name, one, found[name]) for name, one, needed in _fields(kind) if needed or name in found}
    return kind(**given)
  origin, inner = typing.get_origin(kind), typing.get_args(kind)
  if origin in (types.UnionType, typing.Union):
    return None if found is None else made(next(one for one in inner if one is not type(None)), found)
  if origin is tuple and found is not None:
    _check(found, list | tuple, "a list")
    each = inner[:1] * len(found) if inner[-1:] == (...,) else inner
    return tuple(made(one, value) for one, value in zip(each, found, strict=True))
  if origin in (dict, collections.abc.Mapping) and found is not None:
    _check(found, Mapping, "an object")
    return {name: made(inner[1], value) for name, value in found.items()}
  if kind in _PLAIN and found is not None:  # null also stands for a number that is not finite
    _check(found, *_PLAIN[kind])
    if isinstance(found, bool) and kind is not bool:
      raise TypeError(f"{shown(found)}: expected {_PLAIN[kind][1]}")
  return found


_PLAIN: dict[Any, tuple[Any, str]] = {
  bool: (bool, "true or false"),
  float: (int | float, "a number"),
  int: (int, "a whole number"),
  str: (str, "a text"),
}


def _check(found: Any, kind: Any, expected: str) -> None:
  if not isinstance(found, kind):
    raise TypeError(f"{shown(found)}: expected {expected}")


def _part(name: str, kind: Any, found: Any) -> Any:
  try:
    return made(kind, found)
  except (TypeError, ValueError) as error:
    raise type(error)(f"{name}={error}") from None
