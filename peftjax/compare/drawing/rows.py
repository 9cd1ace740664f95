"""Figures with one line a row: its name at the left, its figures in words at the right, marks between."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import SeedEstimate, Summary
from peftjax.compare.drawing.svg import BAND, MUTED, PAPER, font_size, log_ticks, looks, rows_figure

Show = Callable[[float], str]


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of a figure.

  Attributes:
    row: gives colour and marker, and the name where there is no `label`.
    note: at the line's end.
    marks: values: the first filled, the second a hollow circle, the third a stroke; None where there is none.
    ends: of an interval around the first.
    seeds: small strokes.
  """

  row: str
  note: str
  marks: tuple[float | None, ...]
  ends: tuple[float, float] | None = None
  seeds: tuple[float, ...] = ()
  label: str = ""


def estimated(row: str, one: SeedEstimate, note: str, scale: float = 1.0, label: str = "") -> Line:
  """The line of a mean over seeds with its interval, times `scale`."""
  ends = (scale * one.ends[0], scale * one.ends[1]) if one.ends else None
  return Line(row, note, (scale * one.estimate,), ends, tuple(scale * value for value in one.by_seed), label)


def marked(
  lines: Sequence[Line],
  summary: Summary,
  across: str,
  narrow: bool,
  *,
  at: float | None = None,
  band: float = 0.0,
  from_zero: Show | None = None,
  log: Show | None = None,
) -> Figure | None:
  """One line a row with its marks; None without lines.

  Args:
    summary: the study's; its rows give colours and markers.
    across: what the axis shows.
    at: where a vertical line stands, such as 0 for a difference or 1 for a ratio.
    band: half the width of a shaded band around it.
    from_zero, log: how a value of an axis that begins at zero, or of a logarithmic one, is written; without, the axis
      goes from the lowest to the highest value.
  """
  values = [value for one in lines for value in (*one.marks, *(one.ends or ())) if value is not None]
  if not values:
    return None
  figure, axes, positions = rows_figure([one.label or one.row for one in lines], [one.note for one in lines], narrow)
  style, size = looks(summary), font_size(narrow)
  if at is not None:
    axes.axvspan(at - band, at + band, color=BAND, zorder=0, linewidth=0)
    axes.axvline(at, color=MUTED, linewidth=1, zorder=1)
  for one, position in zip(lines, positions):
    color, marker = style[one.row].color, style[one.row].marker
    if one.ends:
      axes.plot(one.ends, [position] * 2, color=color, linewidth=2, solid_capstyle="round", zorder=2)
    axes.plot(one.seeds, [position] * len(one.seeds), "|", color=color, markersize=9, markeredgewidth=1, zorder=2)
    kinds: tuple[dict[str, Any], ...] = (
      {"marker": marker, "markersize": 7, "markeredgecolor": PAPER, "zorder": 3},
      {"marker": "o", "markersize": 8, "markerfacecolor": "none", "markeredgewidth": 1.4, "zorder": 2},
      {"marker": "|", "markersize": 12, "markeredgewidth": 1.8, "zorder": 2},
    )
    for value, kind in zip(one.marks, kinds):
      if value is not None:
        axes.plot(value, position, color=color, **kind)
  if log:
    positive = [value for value in values if value > 0]
    axes.set_xlim(min(positive) / 2, max(positive) * 2)
    log_ticks(axes, lambda value: fmt.trimmed(log(value or 0.0)))
  elif from_zero:
    axes.set_xlim(0, 1.06 * max(*values, at or 0.0))
    _ticks(axes, 4 if narrow else 7, lambda value: fmt.trimmed(from_zero(value)) if value else "0")
  else:
    _ticks(axes, 5 if narrow else 9, lambda value: f"{value:+g}".replace("-", fmt.MINUS).replace("+0", "0"))
  axes.tick_params(axis="x", labelsize=size, pad=4)
  axes.set_xlabel(across, fontsize=size)
  return figure


def _ticks(axes: Axes, count: int, show: Show) -> None:
  axes.xaxis.set_major_locator(MaxNLocator(count))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))


def stacked_bars(parts: Mapping[str, Sequence[float]], colors: Mapping[str, str], show: Show, narrow: bool) -> Figure:
  """One bar a row, of parts that add up; a legend names them.

  Args:
    parts: row -> the size of each part, in the order of `colors`.
    colors: part -> colour.
    show: how a sum is written.
  """
  totals = [sum(sizes) for sizes in parts.values()]
  figure, axes, positions = rows_figure(list(parts), [show(total) for total in totals], narrow, legend=True)
  for sizes, position in zip(parts.values(), positions):
    starts = np.cumsum([0.0, *sizes[:-1]])
    axes.barh([position] * len(sizes), sizes, 0.3 if narrow else 0.56, starts, color=list(colors.values()), linewidth=0)
  size = font_size(narrow)
  axes.set_xlim(0, max(totals) * 1.01)
  _ticks(axes, 4 if narrow else 7, lambda value: fmt.trimmed(show(value)) if value else "0")
  axes.tick_params(axis="x", labelsize=size, pad=4)
  legend: dict[str, Any] = {"loc": "upper left", "ncols": 4, "frameon": False, "fontsize": size, "borderaxespad": 0.2}
  legend |= {"handlelength": 1, "handleheight": 1, "columnspacing": 1.0 if narrow else 1.6, "handletextpad": 0.5}
  figure.legend(handles=[Patch(color=color, label=part, linewidth=0) for part, color in colors.items()], **legend)
  return figure
