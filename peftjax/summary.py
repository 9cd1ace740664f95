"""`Model.summary`: a model's parts on one screen: how many parameters each has, in what dtype, and how many train."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from peftjax import masks
from peftjax.methods.base import Method
from peftjax.quantities import prefixed
from peftjax.quantize import kind_of, tree_bytes

if TYPE_CHECKING:
  from peftjax.model import Model

DEPTH = 2  # names that a part is told by, where it is no stack of layers
SHOWN = 24  # parts


@dataclasses.dataclass
class _Part:
  parameters: int = 0
  trainable: int = 0
  bytes: int = 0
  kinds: dict[str, None] = dataclasses.field(default_factory=dict)
  groups: dict[str, None] = dataclasses.field(default_factory=dict)


def summary(model: Model) -> str:
  """A line for the model, one for each method, and a table of its parts."""
  groups, parts = masks.flatten(model.labels()), dict[str, _Part]()
  for path, leaf in masks.flatten(model.params).items():
    part = parts.setdefault(_part_of(path, model), _Part())
    size = int(np.prod(leaf.shape, dtype=np.int64))
    part.parameters += size
    part.trainable += size * (groups[path] != masks.FROZEN)
    part.bytes += tree_bytes(leaf)
    part.kinds[kind_of(leaf)] = None
    if groups[path] != masks.FROZEN:
      part.groups[groups[path]] = None
  total, trainable = (sum(getattr(one, name) for one in parts.values()) for name in ("parameters", "trainable"))
  share = f"{100 * trainable / total:.3g} %" if total else "0 %"
  whole = prefixed(sum(one.bytes for one in parts.values()), "B")
  lines = [f"{model.architecture or 'a model'}: {total:,} parameters, {whole}; {trainable:,} train ({share})"]
  for one in model.bound:
    places = sum(len(site.names) for site in one.sites)
    lines.append(f"  {said(one.method)}" + (f" at {places} modules" if places else ""))
  shown = [(name, *_cells(name, one, model)) for name, one in list(parts.items())[:SHOWN]]
  rows = [("part", "layers", "dtype", "parameters", "trains", "groups"), *shown]
  widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
  numbers = (1, 3, 4)
  for row in rows:
    pairs = enumerate(zip(row, widths))
    cells = [cell.rjust(width) if at in numbers else cell.ljust(width) for at, (cell, width) in pairs]
    lines.append("  ".join(["", *cells]).rstrip())
  more = len(parts) - SHOWN
  return "\n".join([*lines, *([f"  ... {more} more"] if more > 0 else [])])


def _part_of(path: str, model: Model) -> str:
  """The stack of layers that a leaf lies in, or else the first names of its path."""
  stack = max((one for one in model.stacks if path.startswith(one + ".")), key=len, default="")
  return stack or ".".join(path.split(".")[:-1][:DEPTH]) or path


def _cells(name: str, part: _Part, model: Model) -> tuple[str, ...]:
  layers = str(model.stacks[name]) if name in model.stacks else ""
  return (layers, "/".join(part.kinds), f"{part.parameters:,}", f"{part.trainable:,}", ", ".join(part.groups))


def said(method: Method) -> str:
  """A method with the settings that are not its defaults.

  >>> from peftjax.methods import LoRA
  >>> said(LoRA(rank=4, targets=("query",)))
  "lora(targets=('query',), rank=4)"
  >>> from peftjax.methods import MaskMethod
  >>> said(MaskMethod(function=max))
  'mask(function=max)'
  """
  fields: dict[str, Any] = {}
  for one in dataclasses.fields(method):
    value = getattr(method, one.name)
    empty = one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default
    if value != empty:
      fields[one.name] = value
  shown = (f"{name}={getattr(value, '__qualname__', None) or repr(value)}" for name, value in fields.items())
  return f"{method.name}({', '.join(shown)})"
