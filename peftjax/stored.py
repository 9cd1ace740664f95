"""Frozen dataclasses as JSON objects and back: what a study writes down has one each, and its fields are the keys."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Self

import numpy as np


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
    """
    one: Self = made(cls, found)
    return one


def plain(value: Any) -> Any:
  """A value as JSON gives it back: dataclasses and mappings as dicts, sequences as lists, numbers as Python's own, and
  None for those that are not finite, which JSON does not have."""
  if dataclasses.is_dataclass(value):
    return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
  if isinstance(value, Mapping):
    return {str(name): plain(one) for name, one in value.items()}
  if isinstance(value, list | tuple):
    return [plain(one) for one in value]
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
    given = {name: made(one, found[name]) for name, one, needed in _fields(kind) if needed or name in found}
    return kind(**given)
  origin, inner = typing.get_origin(kind), typing.get_args(kind)
  if origin in (types.UnionType, typing.Union):
    return None if found is None else made(next(one for one in inner if one is not type(None)), found)
  if origin is tuple and found is not None:
    each = inner[:1] * len(found) if inner[-1:] == (...,) else inner
    return tuple(made(one, value) for one, value in zip(each, found, strict=True))
  if origin in (dict, collections.abc.Mapping) and found is not None:
    return {name: made(inner[1], value) for name, value in found.items()}
  return found
