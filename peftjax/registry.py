"""One way from a name in a config to what it names: a table's entry, or ``module:Name`` of a user's own file."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftjax.errors import UserError, nearest


def resolve(field: str, name: str, table: Mapping[str, Any]) -> Any:
  """What `name` stands for.

  Args:
    field: the config field that holds the name, for errors.
    name: a key of `table`, or ``module:Name``; the module stands on the Python path, beside the config file, or where
      the command runs.
    table: name -> object, or -> ``"module:Name"`` of what is imported when it is first asked for.

  Raises:
    UserError: no such name, module or attribute.

  >>> resolve("a.b", "one", {"one": "math:pi"})
  3.141592653589793
  """
  if name in table:
    found = table[name]
    return _imported(field, found) if isinstance(found, str) else found
  if ":" not in name:
    raise UserError(f"{field}: unknown {name!r}; {nearest(name, table)}, or module:Name for your own")
  if str(Path.cwd()) not in sys.path:
    sys.path.insert(0, str(Path.cwd()))  # a user's module stands beside where the command runs
  return _imported(field, name)


def _imported(field: str, spec: str) -> Any:
  module_name, _, attribute = spec.partition(":")
  if not all(part.isidentifier() for part in module_name.split(".")):
    hint = module_name.removeprefix("./").removesuffix(".py").replace("/", ".")
    raise UserError(f"{field}: {module_name!r} is no module name; write {hint}:{attribute}")
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    raise UserError(f"{field}: cannot import {module_name!r} ({error}); it must be on the Python path") from None
  if not hasattr(module, attribute):
    raise UserError(f"{field}: {module_name} has no {attribute!r}; {nearest(attribute, dir(module))}")
  return getattr(module, attribute)
