"""`peftjax list`: what there is of each kind, with what it is in one line."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from peftjax.compare.dimensions import DIMENSIONS
from peftjax.data.inputs import INPUTS
from peftjax.data.packages import MODELS
from peftjax.data.sources.opening import SOURCES
from peftjax.data.sources.packaged import PACKAGED
from peftjax.errors import UserError, nearest
from peftjax.methods import METHODS
from peftjax.models.registry import FAMILIES
from peftjax.registry import resolve
from peftjax.tasks import TASKS
from peftjax.train.evaluators import EVALUATORS
from peftjax.train.writers import WRITERS


def _named(field: str, table: Mapping[str, str]) -> dict[str, str]:
  return {name: _first_line(resolve(field, name, table)) for name in table}


def _dimensions() -> dict[str, str]:
  """Of a dimension, which is no class, the first line of its file."""
  return {name: _first_line(importlib.import_module(spec.partition(":")[0])) for name, spec in DIMENSIONS.items()}


def _families() -> dict[str, str]:
  packaged = {f"packaged:{name}": "weights from a package" for name in MODELS}
  return packaged | {name: ", ".join(family.architectures) for name, family in FAMILIES.items()}


def _data() -> dict[str, str]:
  packaged = {f"packaged:{name}": "from a package" for name in PACKAGED}
  return packaged | {f"{name}:": _first_line(resolve("data.name", name, SOURCES)) for name in SOURCES}


KINDS: Mapping[str, Callable[[], dict[str, str]]] = {
  "methods": lambda: {name: _first_line(method) for name, method in METHODS.items()},
  "models": _families,
  "tasks": lambda: _named("task.name", TASKS),
  "inputs": lambda: _named("input.name", INPUTS),
  "data": _data,
  "evaluators": lambda: _named("train.evaluators", EVALUATORS),
  "writers": lambda: _named("train.writers", WRITERS),
  "dimensions": _dimensions,
}


SETTINGS = {  # kind -> its table, and where the config has the fields of one
  "tasks": (TASKS, "task"),
  "inputs": (INPUTS, "input"),
  "evaluators": (EVALUATORS, "evaluators.NAME"),
  "writers": (WRITERS, "writers.NAME"),
}


def entries(kind: str) -> dict[str, str]:
  """Name -> what it is, of a kind in `KINDS`.

  Raises:
    UserError: no such kind.
  """
  if kind not in KINDS:
    raise UserError(f"peftjax list {kind}: expected one of {', '.join(KINDS)}; {nearest(kind, KINDS)}")
  return KINDS[kind]()


def entry(kind: str, name: str) -> dict[str, Any]:
  """{"name", "says", "fields": {name: default}} of one, its own fields in the section of the config that has them.

  Raises:
    UserError: no such kind, or nothing of this name in it.
  """
  known = entries(kind)
  if name not in known:
    raise UserError(f"peftjax list {kind}: no {name!r}; {nearest(name, known)}")
  if kind == "methods":
    fields = {f"method.{one.name}": _default(one) for one in dataclasses.fields(METHODS[name])}
    return {"name": name, "says": inspect.getdoc(METHODS[name]) or "", "fields": fields}
  if kind not in SETTINGS:
    return {"name": name, "says": known[name], "fields": {}}
  table, section = SETTINGS[kind]
  found = resolve(kind, name, table)
  settings = {f"{section}.{field}".replace("NAME", name): value for field, value in found.settings.items()}
  return {"name": name, "says": inspect.getdoc(found) or "", "fields": settings}


def methods_with(field: str) -> dict[str, str]:
  """Method -> the default of its field of this name.

  Raises:
    UserError: no method has it.
  """
  found = {
    name: f"method.{field} = {_default(one)!r}"
    for name, method in METHODS.items()
    for one in dataclasses.fields(method)
    if one.name == field
  }
  if not found:
    known = {one.name for method in METHODS.values() for one in dataclasses.fields(method)}
    raise UserError(f"peftjax config: no method has a field {field!r}; {nearest(field, known)}")
  return found


def _default(field: dataclasses.Field[Any]) -> Any:
  if field.default is not dataclasses.MISSING:
    return field.default
  return {} if field.default_factory is not dataclasses.MISSING else None


def _first_line(what: Any) -> str:
  return (inspect.getdoc(what) or "").partition("\n\n")[0].replace("\n", " ")


def show(found: Mapping[str, str], console: Console) -> None:
  """The names in one column, what they are in the other."""
  width = max(map(len, found), default=0)
  for name, text in found.items():
    console.print(f"{name:<{width}}  {text}", highlight=False, markup=False, overflow="ellipsis", no_wrap=True)


def show_entry(one: Mapping[str, Any], console: Console) -> None:
  """What it is, then its fields with their defaults."""
  console.print(one["says"], highlight=False, markup=False)
  for field, default in one["fields"].items():
    console.print(f"  {field} = {default!r}", highlight=False, markup=False)
