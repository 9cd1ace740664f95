"""How ``--config=FILE[:arg]`` and ``--config.a.b=value`` become one `ConfigDict`, and what a config may hold.

A config file is a Python file with ``get_config()`` or ``get_config(arg)`` that returns a `ConfigDict`; it usually
starts from `default()`. The sections in `OPEN` take any field that the chosen method or task (or the section's reader)
knows; every other field must be in the table of `peftjax.config_fields`.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.config_fields import ALIASES, EMPTY, FIELDS, OPEN, SPELLINGS, Field, is_finite
from peftjax.errors import UserError, nearest

__all__ = ["OPEN", "apply", "check", "default", "fill", "load"]

MAX_VALUE = 100_000  # characters of one override
MAX_DEPTH = 20  # of tuples and dicts in each other


def default() -> ConfigDict:
  """The config of a run that nobody configured: LoRA on a packaged encoder and packaged movie reviews."""
  return fill(ConfigDict())


def fill(config: ConfigDict) -> ConfigDict:
  """The config itself, with the default of every field that it lacks."""
  with config.unlocked():
    for name in (*FIELDS, *EMPTY):
      *sections, last = name.split(".")
      section = config
      for one in sections:
        if one not in section:
          section[one] = ConfigDict()
        section = section[one]
      if last not in section:
        section[last] = FIELDS[name].default if name in FIELDS else ConfigDict()
  return config


def of_json(fields: Mapping[str, Any]) -> ConfigDict:
  """The config that nested dicts with texts as names describe.

  Raises:
    UserError: a name that no field can have, or a value in place of a section.
  """
  made = ConfigDict()
  for name, value in fields.items():
    _put(made, name, value, name)
  return made


def _put(section: ConfigDict, name: str, value: Any, path: str) -> None:
  if not _may_name(name) or "." in name:
    raise UserError(f"{shortened(path)}: no field can have this name")
  if _is_section(path) and not isinstance(value, Mapping):
    raise UserError(f"{path}={shortened(value)}: expected a section, with the fields of it")
  if not isinstance(value, Mapping):
    section[name] = value
    return
  if path.count(".") > MAX_DEPTH:
    raise UserError(f"{shortened(path)}: sections in each other more than {MAX_DEPTH} deep")
  section[name] = ConfigDict()
  for inner, one in value.items():
    _put(section[name], inner, one, f"{path}.{inner}")


def check(config: ConfigDict) -> None:
  """Checks the names, types and ranges of all fields.

  Raises:
    UserError: a field that there is not, a value of another type, or outside the field's range.
  """
  for name, value in _leaves(config):
    if name in FIELDS:
      check_value(name, value, FIELDS[name])
    elif _is_section(name):
      raise UserError(f"{name}={shortened(value)}: expected a section, with the fields of it")
    elif not _is_open(name.rpartition(".")[0]):
      raise UserError(f"config.{name}: no such field; {_hint(name, FIELDS)}")
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


def _check_method_field(name: str) -> None:
  field = name.removeprefix("method.")
  meant = ALIASES.get(field, "")
  if meant and meant != name:
    raise UserError(f"{name}: did you mean {meant!r}?")


def _leaves(section: ConfigDict, prefix: str = "") -> Iterable[tuple[str, Any]]:
  for key, value in section.items():
    if isinstance(value, ConfigDict) and f"{prefix}{key}" not in FIELDS:
      yield from _leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def load(spec: str = "", overrides: Sequence[str] = ()) -> ConfigDict:
  """The config of ``--config=spec`` with ``a.b=value`` overrides applied.

  Raises:
    UserError: no such file, no `get_config`, a field that does not exist, a value of the wrong type or out of range.
  """
  config = _from_file(spec) if spec else default()
  for override in overrides:
    apply(config, override)
  check(config)
  return config


def _from_file(spec: str) -> ConfigDict:
  name, _, argument = spec.partition(":")
  path = Path(name)
  if not path.is_file():
    here = path.parent if path.parent.is_dir() else Path(".")
    raise UserError(f"--config: no file {name!r}; {nearest(path.name, [p.name for p in here.glob('*.py')])}")
  sys.path.insert(0, str(path.parent.resolve()))  # a config names functions of files beside it
  module_spec = importlib.util.spec_from_file_location(path.stem, path)
  if module_spec is None or module_spec.loader is None:
    raise UserError(f"--config: {name} is no Python file; expected one with a function get_config()")
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
      raise UserError(f"--config: {name} has no function get_config()")
    takes_argument = bool(inspect.signature(get_config).parameters)
    if argument and not takes_argument:
      raise UserError(f"--config: get_config() of {name} takes no argument, but {argument!r} was given")
    config = get_config(argument) if argument else get_config()
  except UserError:
    raise
  except Exception as error:  # of the user's own program
    raise UserError(f"--config: {_where(error, path)}: {type(error).__name__}: {error}") from None
  if not isinstance(config, ConfigDict):
    raise UserError(f"--config: get_config() of {name} returned {type(config).__name__}; expected a ConfigDict")
  return fill(config)


def _where(error: Exception, path: Path) -> str:
  lines = [one.lineno for one in traceback.extract_tb(error.__traceback__) if Path(one.filename) == path]
  if isinstance(error, SyntaxError) and error.filename == str(path):
    lines.append(error.lineno)
  return f"{path}, line {lines[-1]}" if lines else str(path)


def apply(config: ConfigDict, override: str) -> None:
  """Applies one ``a.b=value`` to a config; raises as `load` does."""
  key, equals, text = override.partition("=")
  if not equals:
    raise UserError(f"--config.{shortened(override)}: expected --config.{shortened(key)}=value")
  if len(text) > MAX_VALUE:
    raise UserError(f"--config.{key}: {len(text):,} characters; expected {MAX_VALUE:,} at most, or a config file")
  if not _is_text(override):
    raise UserError(f"--config.{key}={text!r}: expected UTF-8 without zero bytes".encode("ascii", "replace").decode())
  section, field = _section_of(config, key)
  known, where, old = FIELDS.get(key), f"--config.{shortened(key)}", section.get(field)
  if isinstance(old, ConfigDict):
    raise UserError(f"{where} is a section; set one of its fields: {', '.join(old.keys()) or 'it has none yet'}")
  if known is None and not (_is_open(key.rpartition(".")[0]) and _may_name(field)):
    raise UserError(f"{where}: no field {field!r}; {_hint(key, section.keys())}")
  value = _literal(key, text)
  if known is not None:
    value = _as_type(value, text, known)
    check_value(key, value, known)
  else:
    check_open(key, value)
    if isinstance(value, dict):
      value = tuple(value.items())  # patterns hold dots, which a ConfigDict refuses as keys: they travel as pairs
  with section.unlocked(), section.ignore_type():
    section[field] = value


def _section_of(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
  """(the section that a field lies in, the field's own name); sections of open ones are made."""
  *sections, field = key.split(".")
  section = config
  for depth, name in enumerate(sections):
    if not isinstance(section.get(name), ConfigDict):
      if name in section:
        raise UserError(f"--config.{shortened(key)}: {'.'.join(sections[: depth + 1])} is a field, not a section")
      if not (_is_open(".".join(sections[:depth])) and _may_name(name)):
        known = [one for one, value in section.items() if isinstance(value, ConfigDict)]
        raise UserError(f"--config.{shortened(key)}: no section {name!r}; {_hint(key, known, name)}")
      with section.unlocked():
        section[name] = ConfigDict()
    section = section[name]
  return section, field


def _is_open(section: str) -> bool:
  return any(section == one or section.startswith(one + ".") for one in OPEN)


def _is_section(name: str) -> bool:
  return name in EMPTY or any(one.startswith(name + ".") for one in (*FIELDS, *EMPTY))


def _may_name(name: str) -> bool:
  """Whether a ConfigDict can hold a field of this name."""
  return bool(name) and not hasattr(ConfigDict, name)


def _hint(key: str, near: Iterable[str], part: str = "") -> str:
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


def _literal(key: str, text: str) -> Any:
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", SyntaxWarning)  # of texts that are no literals
    try:
      value = ast.literal_eval(text)
    except (MemoryError, RecursionError):
      raise UserError(f"--config.{key}: parentheses in {shortened(text)} stand too deep in each other") from None
    except (ValueError, SyntaxError, TypeError):
      return {"true": True, "false": False}.get(text.lower(), text)
  return tuple(value) if isinstance(value, list) else value


def _as_type(value: Any, text: str, field: Field) -> Any:
  """The value of a literal as the field wants it: texts as they were given, one item as a tuple of it."""
  if isinstance(field.default, str):
    return value if field.or_several and isinstance(value, tuple) else text
  if field.item is not None:
    if isinstance(value, tuple):
      return value
    return (text if isinstance(field.item.default, str) else value,)
  if isinstance(field.default, float) and isinstance(value, int) and not isinstance(value, bool):
    return float(value) if is_finite(value) else value
  return value


def _is_text(text: str) -> bool:
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return "\0" not in text


def shortened(value: Any) -> str:
  """A value as an error shows it."""
  try:
    text = value if isinstance(value, str) else repr(value)
  except ValueError:  # Python writes no longer integers
    return f"a whole number of more than {sys.get_int_max_str_digits()} digits"
  return text if len(text) <= 80 else text[:76] + " ..."
