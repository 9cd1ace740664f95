"""The table of a wrapped model's leaves, and a model in a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftjax import masks
from peftjax.wrap.finding import Row, names_of
from peftjax.wrap.program import Program

if TYPE_CHECKING:
  from peftjax.model import Model

SHOWN = 24
_HEADER = ("leaf", "kind", "in", "out", "stack", "uses", "")


def rows_of(model: Model) -> tuple[Row, ...]:
  """The table of a wrapped model; () of any other."""
  return model.module.found.rows if isinstance(model.module, Program) else ()


def uses_of(model: Model) -> dict[str, str]:
  """Name of each leaf of a wrapped model, of a stack one for each layer -> how its program uses it."""
  return {
    name: f"{row.kind}, {row.note}" if row.note else row.kind
    for row in rows_of(model)
    for name in names_of(row.path, row.stack, model.stacks)
  }


def lines_of(rows: Sequence[Row]) -> list[str]:
  """The table as aligned lines, the header first."""
  cells = [_HEADER, *(_cells(row) for row in rows)]
  widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADER))]
  return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in cells]


def _cells(row: Row) -> tuple[str, ...]:
  stack = "×".join(map(str, row.stack))
  return (row.path, row.kind, str(row.size_in or ""), str(row.size_out or ""), stack, str(row.uses), row.note)


def summary(model: Model) -> str:
  """A model on one screen: what it is, what acts, what trains, and the first leaves of a wrapped model's table."""
  flat, groups = masks.flatten(model.params), masks.flatten(model.labels())
  trainable = masks.count([leaf for path, leaf in flat.items() if groups[path] != masks.FROZEN]).parameters
  methods = ", ".join(method.name for method in model.methods) or "no method"
  total = masks.count(model.params).parameters
  first = f"Model({_what(model)}: {methods}; {trainable:,} of {total:,} parameters train)"
  lines = lines_of(rows_of(model)) if rows_of(model) else []
  more = len(lines) - 1 - SHOWN
  return "\n".join(
    [first, *(f"  {line}" for line in lines[: SHOWN + 1]), *([f"  ... {more} more"] if more > 0 else [])]
  )


def _what(model: Model) -> str:
  return getattr(getattr(model.family, "parts", None), "kind", "") or model.architecture
