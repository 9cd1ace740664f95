"""What a compiled program copies into another order of axes."""

from __future__ import annotations

import math
import re

_COPY = re.compile(
  r"%?([\w.\-]+) = f32\[([\d,]+)\]\{([\d,]+)[^}]*\} copy\((?:\w+\[[\d,]*\](?:\{[^}]*\})? )?%?([\w.\-]+)\)"
)
_LAID = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = f32\[[\d,]+\]\{([\d,]+)")


def transposed_copies(text: str) -> dict[str, int]:
  """Instruction -> elements of each float32 copy into another order of axes in a program's text."""
  found, laid = {}, {}
  for line in text.splitlines():
    if not line.startswith(" "):
      laid = {}  # names are a computation's own
    if copy := _COPY.search(line):
      name, dims, order, operand = copy.groups()
      if laid.get(operand, order) != order:
        found[name] = math.prod(map(int, dims.split(",")))
    if one := _LAID.match(line):
      laid[one[1]] = one[2]
  return found
