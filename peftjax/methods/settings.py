"""What a method's settings may be: types from its annotations, ranges by the fields' names."""

from __future__ import annotations

import dataclasses
import numbers
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from peftjax import masks
from peftjax.config.checking import shortened
from peftjax.config.field import Field
from peftjax.config.table import COUNT
from peftjax.errors import UserError
from peftjax.methods.base import Method

_SHARE = Field(0.0, "", least=0, below=1)
_POSITIVE = Field(1.0, "", above=0)
_NOT_NEGATIVE = Field(0.0, "", least=0)
_SEED = Field(0, "", least=0, most=2**32 - 1)

# By name, of whichever method has the field; other whole numbers are counts, other numbers need only be finite.
RANGES: dict[str, Field] = {
  "alpha": _POSITIVE,
  "beta1": _SHARE,
  "beta2": _SHARE,
  "d_initial": _POSITIVE,
  "decompose_factor": Field(-1, "", least=1, most=COUNT, also=(-1,)),
  "delora_lambda": _POSITIVE,
  "dropout": _SHARE,
  "encoder_dropout": _SHARE,
  "eps": _POSITIVE,
  "first": Field(-1, "", least=0, most=COUNT, also=(-1,)),
  "init_logits_std": _NOT_NEGATIVE,
  "init_vector_bank_bound": _POSITIVE,
  "lr_ratio": _POSITIVE,
  "module_dropout": _SHARE,
  "orth_reg_weight": _NOT_NEGATIVE,
  "projection_prng_key": _SEED,
  "random_loc_seed": _SEED,
  "random_seed": dataclasses.replace(_SEED, also=(-1,)),
  "rank_dropout": _SHARE,
  "scaling": _POSITIVE,
}
_ITEMS: dict[Any, Field] = {
  str: Field("", "", filled=True),
  int: Field(1, "", least=1, most=COUNT),
  float: _POSITIVE,
}


def check(method: Method) -> None:
  """Checks the types and ranges of a method's settings.

  Raises:
    UserError: a setting of another type, or outside its range.
  """
  hints = typing.get_type_hints(type(method))
  for field in dataclasses.fields(method):
    check_field(f"{method.name}.{field.name}", getattr(method, field.name), hints[field.name], field)


def check_field(what: str, value: Any, hint: Any, field: dataclasses.Field[Any]) -> None:
  """Checks one setting, called `what` in the error, by its annotation; raises as `check` does."""
  expected = _mistake(value, hint, field)
  if not expected:
    return
  such_as = f", such as {field.default!r}" if field.default is not dataclasses.MISSING and field.default != () else ""
  raise UserError(f"{what}={shortened(value)!s}: expected {expected}{such_as}")


def range_of(field: dataclasses.Field[Any], hint: Any) -> Field:
  """The range of a number among a method's fields."""
  if field.name in RANGES:
    return RANGES[field.name]
  if hint is float:
    return Field(0.0, "")
  default = field.default if isinstance(field.default, int) else 0
  least = 1 if default >= 1 and not field.metadata.get("may_be_zero") else min(default, 0)
  return Field(0, "", least=least, most=COUNT)


def _mistake(value: Any, hint: Any, field: dataclasses.Field[Any]) -> str:
  """What was expected; empty if the value is that."""
  origin = typing.get_origin(hint)
  if hint in (int, float):
    wanted = range_of(field, hint)
    return "" if wanted.takes(_python_number(value)) else wanted.expected
  if hint in (bool, str):
    return "" if isinstance(value, hint) else ("True or False" if hint is bool else "a text")
  if hint == masks.Patterns:
    several = isinstance(value, Sequence) and all(isinstance(one, str) and one for one in value)
    return "" if isinstance(value, str) or several else "a tuple of names or patterns, such as ('query', 'value')"
  if origin is Mapping:
    key_ok = isinstance(value, Mapping) and all(isinstance(one, str) and one for one in value)
    wanted = _ITEMS[typing.get_args(hint)[1]]
    values_ok = key_ok and all(wanted.takes(_python_number(one)) for one in value.values())
    return "" if values_ok else f"a dict from pattern to {wanted.expected}"
  if origin is tuple and typing.get_args(hint)[0] in (int, str):
    kind = typing.get_args(hint)[0]
    is_whole = isinstance(value, Sequence) and not isinstance(value, str)
    fits = is_whole and all(isinstance(_python_number(one), kind) and not isinstance(one, bool) for one in value)
    return "" if fits else "a tuple of " + ("whole numbers" if kind is int else "texts")
  return ""


def _python_number(value: Any) -> Any:
  """Numpy's scalars as Python's."""
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    return value
  return int(value) if isinstance(value, numbers.Integral) else float(value)
