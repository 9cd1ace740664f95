"""``--config.a.b=value``: from the text of a value to a field of the config."""

from __future__ import annotations

import ast
import warnings
from typing import Any

from ml_collections import ConfigDict

from peftjax.config.checking import check_open, check_value, hint, is_open, may_name, shortened
from peftjax.config.field import Field, is_finite
from peftjax.config.table import FIELDS
from peftjax.errors import UserError

MAX_VALUE = 100_000  # characters of one override


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
  if known is None and not (is_open(key.rpartition(".")[0]) and may_name(field)):
    raise UserError(f"{where}: no field {field!r}; {hint(key, section.keys())}")
  value = _literal(key, text)
  if known is None and isinstance(value, bool) and isinstance(old, float):  # which a ConfigDict would make 1.0 of
    raise UserError(f"{where}={value}: expected a number")
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
      if not (is_open(".".join(sections[:depth])) and may_name(name)):
        known = [one for one, value in section.items() if isinstance(value, ConfigDict)]
        raise UserError(f"--config.{shortened(key)}: no section {name!r}; {hint(key, known, name)}")
      with section.unlocked():
        section[name] = ConfigDict()
    section = section[name]
  return section, field


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
