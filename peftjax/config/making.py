"""Where a config comes from: the defaults, a config file, or a run's ``config.json``."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.config.checking import MAX_DEPTH, check, is_section, may_name, shortened
from peftjax.config.overriding import apply
from peftjax.config.table import EMPTY, FIELDS
from peftjax.errors import UserError, nearest


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
  if not may_name(name) or "." in name:
    raise UserError(f"{shortened(path)}: no field can have this name")
  if is_section(path) and not isinstance(value, Mapping):
    raise UserError(f"{path}={shortened(value)}: expected a section, with the fields of it")
  if not isinstance(value, Mapping):
    section[name] = value
    return
  if path.count(".") > MAX_DEPTH:
    raise UserError(f"{shortened(path)}: sections in each other more than {MAX_DEPTH} deep")
  section[name] = ConfigDict()
  for inner, one in value.items():
    _put(section[name], inner, one, f"{path}.{inner}")


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
  place = path.resolve()
  lines = [one.lineno for one in traceback.extract_tb(error.__traceback__) if Path(one.filename).resolve() == place]
  if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == place:
    lines.append(error.lineno)
  return f"{path}, line {lines[-1]}" if lines else str(path)
