"""How a method is drawn in every plot: it keeps its colour, its marker and its line."""

from __future__ import annotations

import dataclasses

from peftjax.compare.analysis import Summary
from peftjax.compare.drawing.svg import INK, MUTED, SERIES

MARKERS = ("s", "D", "^", "v", "h", "<", ">", "p", "8")  # of all but the reference and the baseline
LINES = ("-", "--", ":", "-.")


@dataclasses.dataclass(frozen=True)
class Look:
  """Of one row."""

  color: str
  marker: str
  line: str


def looks(summary: Summary) -> dict[str, Look]:
  """The reference is ink, the baseline grey, the others have the palette's colours in the order of the rows."""
  found, number = {}, 0
  for row in summary.rows:
    if row.row == summary.reference:
      found[row.row] = Look(INK, "o", "-")
    elif row.row == summary.baseline:
      found[row.row] = Look(MUTED, "o", "--")
    else:
      turn, color = divmod(number, len(SERIES))
      found[row.row] = Look(SERIES[color], MARKERS[number % len(MARKERS)], LINES[turn % len(LINES)])
      number += 1
  return found
