"""Figures whose SVG takes its colours and its font from the page that holds it.

Colours in a figure are stand-ins that `svg` turns into CSS variables, so that one drawing serves light and dark. Series
colours are those of Okabe and Ito (2008) less yellow, which is too light on white.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from peftjax.compare.analysis import Summary

VARIABLES = {  # a stand-in colour -> the page's variable
  "#0a0b01": "--ink",
  "#0a0b02": "--muted",
  "#0a0b03": "--grid",
  "#0a0b04": "--band",
  "#0a0b05": "--paper",
  **{f"#0a0c{number:02d}": f"--series-{number}" for number in range(1, 7)},
}
INK, MUTED, GRID, BAND, PAPER = list(VARIABLES)[:5]
SERIES = list(VARIABLES)[5:]
MARKERS = ("s", "D", "^", "v", "h", "<", ">", "p", "8")  # of all but the reference and the baseline
LINES = ("-", "--", ":", "-.")
WIDTHS = (8.6, 3.7)  # of a figure in inches: on a wide page, and where it is narrow

STYLE: dict[Any, Any] = {
  "font.family": "DejaVu Sans",
  "text.color": INK,
  "axes.labelcolor": MUTED,
  "axes.edgecolor": GRID,
  "axes.linewidth": 0.8,
  "xtick.color": MUTED,
  "ytick.color": INK,
  "xtick.major.size": 0,
  "xtick.minor.size": 0,
  "ytick.major.size": 0,
  "ytick.minor.size": 0,
  "axes.unicode_minus": True,
  "figure.facecolor": "none",
  "axes.facecolor": "none",
  "svg.fonttype": "none",
}


@dataclasses.dataclass(frozen=True)
class Look:
  """How one row is drawn: its colour, its marker and its line, as matplotlib takes them."""

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


def svg(figure: Figure, name: str, label: str) -> str:
  """The figure as an inline ``<svg>``: no size of its own, no metadata, no address, ids that begin with `name`."""
  text = io.StringIO()
  with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
  body = text.getvalue()
  view = re.search(r'viewBox="([^"]+)"', body)
  assert view is not None
  body = body[body.index(">", body.index("<svg")) + 1 : body.rindex("</svg>")]
  body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
  body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
  body = re.sub(r'\bid="', f'id="{name}-', body)
  body = re.sub(r'xlink:href="#', f'href="#{name}-', body)
  body = re.sub(r"url\(#", f"url(#{name}-", body)
  body = re.sub(r"(font: *[^;\"]*?px )[^;\"]+", r"\1var(--font)", body)
  body = re.sub(r"font-family: *[^;\"]+", "font-family: var(--font)", body)
  for stand_in, variable in VARIABLES.items():
    body = body.replace(stand_in, f"var({variable})")
  body = re.sub(r"\n\s*", "\n", body)
  return f'<svg class="plot" viewBox="{view[1]}" role="img" aria-label="{label}">{body}</svg>'


def font_size(narrow: bool) -> float:
  """In points of the figure; the page scales it to about 12 pixels."""
  return 8.5 if narrow else 9.0


def new_figure(narrow: bool, height: float, wide_height: float | None = None) -> tuple[Figure, Axes]:
  """A figure of the page's width, in inches; fonts are sized so that the page's scale makes them readable."""
  with mpl.rc_context({**STYLE, "font.size": font_size(narrow)}):
    figure = Figure(figsize=(WIDTHS[narrow], height if narrow else wide_height or height), dpi=72)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
  for side in ("top", "right", "left"):
    axes.spines[side].set_visible(False)
  axes.grid(color=GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  return figure, axes


def text_size(figure: Figure, text: str, size: float) -> tuple[float, float]:
  """(width, height) in points."""
  drawn = figure.text(0, 0, text, fontsize=size)
  box = drawn.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
  drawn.remove()
  return box.width, box.height


def frame(figure: Figure, axes: Axes, left: float, right: float, top: float, bottom: float) -> None:
  """Sets the margins around the axes, in points."""
  width, height = figure.get_size_inches() * 72
  axes.set_position((left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height))


def rows_figure(
  names: Sequence[str], notes: Sequence[str], narrow: bool, legend: bool = False
) -> tuple[Figure, Axes, list[float]]:
  """Axes with a line for each name, from the top: its name at the left and its note at the right, or on a phone both
  above the line."""
  pitch = 40 if narrow else 25
  top, bottom = (26 if legend else 8), 34
  height = (pitch * len(names) + top + bottom) / 72
  figure, axes = new_figure(narrow, height)
  size = font_size(narrow)
  left = 14 if narrow else 12 + max(text_size(figure, name, size)[0] for name in names)
  right = 14 if narrow else 14 + max(text_size(figure, note, size)[0] for note in notes)
  frame(figure, axes, left, right, top, bottom)
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.grid(visible=False, axis="y")
  positions = [float(index) for index in range(len(names))]
  if narrow:
    axes.set_yticks([])
    positions = [index + 0.14 for index in positions]
    cover = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}  # hides the grid behind the words
    for index, (name, note) in enumerate(zip(names, notes)):
      where = ("axes fraction", "data")
      style: dict[str, Any] = {"fontsize": size, "va": "center", "annotation_clip": False, "bbox": cover, "zorder": 9}
      axes.annotate(name, (0, index - 0.25), xycoords=where, ha="left", color=INK, fontweight="bold", **style)
      axes.annotate(note, (1, index - 0.25), xycoords=where, ha="right", color=INK, **style)
  else:
    axes.set_yticks(positions, names, fontsize=size)
    for position, note in zip(positions, notes):
      axes.annotate(
        note, (1, position), (8, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=size, color=INK
      )
  return figure, axes, positions


def log_ticks(axes: Axes, text: Callable[[float | None], str]) -> None:
  """A label at every power of ten, grid lines at the same places."""
  axes.set_xscale("log")
  low, high = axes.get_xlim()
  decades = np.log10(high / low)
  axes.xaxis.set_major_locator(LogLocator(base=10, numticks=4 if decades > 8 else 12))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
  axes.xaxis.set_minor_locator(NullLocator())
