"""Holding a config against the table of its fields."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from peftjax import own_digest
from peftjax.config.field import Field, is_finite
from peftjax.config.table import ALIASES, EMPTY, FIELDS, OPEN, SPELLINGS
from peftjax.errors import UserError, nearest

MAX_DEPTH = 20  # of tuples and dicts in each other


def check(config: ConfigDict) -> None:
  """Checks the names, types and ranges of all fields.

  Raises:
    UserError: a field that there is not, a value of another type, or outside the field's range.
  """
  for name, value in _leaves(config):
    if name in FIELDS:
      check_value(name, value, FIELDS[name])
    elif is_section(name):
      raise UserError(f"{name}={shortened(value)}: expected a section, with the fields of it")
    elif not is_open(name.rpartition(".")[0]):
      raise UserError(f"config.{name}: no such field; {_hint(name)}")
    else:
      check_open(name, value)
      if name.startswith("method.") and ":" not in str(config.method.get("name", "")):
        _check_method_field(name)


def check_value(name: str, value: Any, field: Field) -> None:
  """Raises `UserError` unless the field of this name takes the value."""
  if field.takes(value):
    return
  what = f"{name}={shortened(value) if not isinstance(value, str) else repr(shortened(value))}"
  if field.choices and isinstance(value, str):
    near = nearest(SPELLINGS.get(value.lower(), value), [one for one in field.choices if one])
    if "did you mean" in near:
      raise UserError(f"{what}: {near}")
  raise UserError(f"{what}: expected {field.expected}")


def check_open(name: str, value: Any, depth: int = 0) -> None:
  """Raises `UserError` unless the value of an open field is made of what ``config.json`` holds."""
  if depth > MAX_DEPTH:
    raise UserError(f"{name}: values in each other more than {MAX_DEPTH} deep")
  if isinstance(value, tuple | list):
    for one in value:
      check_open(name, one, depth + 1)
  elif isinstance(value, Mapping | ConfigDict):
    for key, one in value.items():
      if not isinstance(key, str):
        raise UserError(f"{name}: expected a text as a key, got {shortened(key)}")
      check_open(name, one, depth + 1)
  elif isinstance(value, int | float) and not isinstance(value, bool):
    if not is_finite(value) or (isinstance(value, int) and abs(value) >= 2**63):
      raise UserError(f"{name}={shortened(value)}: expected a finite number")
  elif value is not None and not isinstance(value, bool | str):
    raise UserError(f"{name}={shortened(value)}: expected a number, a text, True, False, or a tuple or dict of them")


def own_settings(
  section: str,
  given: Mapping[str, Any],
  settings: Mapping[str, Any],
  owner: type,
  whose: str = "",
  others: Iterable[str] = (),
) -> ConfigDict:
  """The settings of a task, an input, an evaluator or a writer, with what a section of the config says.

  Args:
    section: its name, for errors.
    given: what it holds.
    settings: field -> default.
    owner: the class that has them.
    whose: what errors call it; its name without.
    others: fields that the section may hold beside, which are left out.

  Raises:
    UserError: a field that there is not, or of a class outside this package one of another type than its default.
  """
  if not isinstance(settings, Mapping):
    raise UserError(f"{owner.__name__} has settings={shortened(settings)}; expected a dict from fields to defaults")
  known = (*settings, *others)
  for field, value in given.items():
    if field not in known:
      what = nearest(field, known) or "it has no settings"
      raise UserError(f"{section}.{field}: no such field of {whose or owner.__name__}; {what}")
    if field in settings:
      check_own(f"{section}.{field}", value, settings[field], owner)
  return ConfigDict({**settings, **{field: value for field, value in given.items() if field in settings}})


def check_own(name: str, value: Any, default: Any, owner: type) -> None:
  """Raises `UserError` as `check_like`, unless the class whose setting it is, `owner`, is of this package: those say
  themselves what is wrong, with ranges and choices.
  """
  if not own_digest.is_packaged(owner):
    check_like(name, value, default)


def check_like(name: str, value: Any, default: Any) -> None:
  """Raises `UserError` unless a setting that is not in the table is of its default's type; a default that is no number,
  text, True, False or tuple says none.
  """
  if isinstance(default, tuple | list):
    if not isinstance(value, tuple | list):
      like = f" such as {tuple(default)}" if default else ""
      raise UserError(f"{name}={shortened(value)}: expected a tuple{like}")
    if default and isinstance(default[0], bool | int | float | str):
      check_value(name, value, Field((), "", item=Field(default[0], "")))
  elif isinstance(default, bool | int | float | str):
    check_value(name, value, Field(default, ""))


def _check_method_field(name: str) -> None:
  field = name.removeprefix("method.")
  meant = ALIASES.get(field, "")
  if meant and meant != name:
    raise UserError(f"{name}: did you mean {meant!r}?")


def _hint(name: str) -> str:
  """What a field of a config file may have meant: any field of this name, else one beside it."""
  found, (section, _, last) = hint(name, FIELDS), name.rpartition(".")
  beside = [one.rpartition(".")[2] for one in FIELDS if one.rpartition(".")[0] == section]
  return found if "did you mean" in found or not beside else nearest(last, beside)


def _leaves(section: ConfigDict, prefix: str = "") -> Iterable[tuple[str, Any]]:
  for key, value in section.items():
    if isinstance(value, ConfigDict) and f"{prefix}{key}" not in FIELDS:
      yield from _leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def is_open(section: str) -> bool:
  """Whether a section takes fields beside those in the table."""
  return any(section == one or section.startswith(one + ".") for one in OPEN)


def is_section(name: str) -> bool:
  """Whether the config has a section of this name."""
  return name in EMPTY or any(one.startswith(name + ".") for one in (*FIELDS, *EMPTY))


def may_name(name: str) -> bool:
  """Whether a ConfigDict can hold a field of this name."""
  return bool(name) and not hasattr(ConfigDict, name)


def hint(key: str, near: Iterable[str], part: str = "") -> str:
  """What a field that there is not may have meant: what another trainer calls so, a field of this name elsewhere, or a
  name like its own (or `part` of it) among `near`.
  """
  last = key.rpartition(".")[2]
  if last in ALIASES:
    return f"did you mean {ALIASES[last]!r}?"
  elsewhere = [name for name in FIELDS if name.rpartition(".")[2] == last]
  if elsewhere:
    return "did you mean " + " or ".join(repr(one) for one in elsewhere[:3]) + "?"
  return nearest(part or last, near)


def shortened(value: Any) -> str:
  """A value as an error shows it."""
  try:
    text = value if isinstance(value, str) else repr(value)
  except ValueError:  # Python writes no longer integers
    return f"a whole number of more than {sys.get_int_max_str_digits()} digits"
  return text if len(text) <= 80 else text[:76] + " ..."
