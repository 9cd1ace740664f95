"""What the sections of several dimensions draw and say alike: one number a row with its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from peftjax.compare import formatting as fmt
from peftjax.compare.dimensions.base import Summary

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def intervals(
  groups: Sequence[Mapping[str, Any]],
  summary: Summary,
  label: str,
  narrow: bool,
  show: Callable[[Mapping[str, Any]], str] | None = None,
  scale: float | None = None,
) -> Figure | None:
  """One line a row: interval, mean, and a stroke for each seed.

  Args:
    groups: as `base.by_group` gives them, of one size; a "label" stands in place of the row's name.
    summary: the study's; its rows give colours and markers.
    label: of the axis.
    narrow: for a phone.
    show: the note at a row's end; its estimate and interval in the study's metric if left out.
    scale: what values are multiplied by; 100 for a metric that is shown in percent if left out.
  """
  if not groups:
    return None
  from matplotlib.ticker import MaxNLocator

  from peftjax.compare.drawing.plots import looks, mark_interval
  from peftjax.compare.drawing.svg import MUTED, font_size, rows_figure

  metric, style, size = summary["metric"], looks(summary), font_size(narrow)
  factor = (100.0 if fmt.is_share(metric) else 1.0) if scale is None else scale
  notes = [show(one) if show else fmt.difference(one, metric) for one in groups]
  figure, axes, positions = rows_figure([one.get("label", one["row"]) for one in groups], notes, narrow)
  axes.axvline(0, color=MUTED, linewidth=1, zorder=1)
  for one, position in zip(groups, positions):
    mark_interval(axes, position, one, style[one["row"]], factor)
  axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 9))
  axes.tick_params(axis="x", labelsize=size, pad=4)
  unit = ", points" if scale is None and fmt.is_share(metric) else ""
  axes.set_xlabel(label + unit, fontsize=size)
  return figure


def line_figure(
  lines: Mapping[str, Sequence[tuple[float, float, float, float]]],
  summary: Summary,
  label: str,
  upright: str,
  narrow: bool,
  sizes: Sequence[int] = (),
  ends: bool = False,
) -> Figure:
  """One line a row through its (x, y, low, high), with a legend.

  Args:
    lines: row -> points.
    summary: the study's; its rows give colours and markers.
    label: of the horizontal axis.
    upright: of the other, told above it.
    narrow: for a phone.
    sizes: of a logarithmic axis with a tick at each: every point has its interval, set apart from the others'; bands
      on a plain axis without.
    ends: marks the last point of each line alone.
  """
  from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

  from peftjax.compare.drawing.plots import looks
  from peftjax.compare.drawing.svg import INK, MUTED, PAPER, font_size, frame, new_figure

  figure, axes = new_figure(narrow, 4.6, 4.3)
  size, style, drawn = font_size(narrow), looks(summary), [row for row in lines if lines[row]]
  rows_below = -(-len(drawn) // 3)
  frame(figure, axes, 38 if narrow else 44, 10 if narrow else 110, 22, (38 + 15 * rows_below) if narrow else 36)
  for number, row in enumerate(drawn):
    look = style[row]
    x, y, low, high = np.array(lines[row]).T
    if sizes:
      axes.set_xscale("log")
      x = x * 1.045 ** (number - (len(drawn) - 1) / 2)
      axes.vlines(x, low, high, color=look.color, linewidth=1.4, zorder=2)
    elif (high > low).any():
      axes.fill_between(x, low, high, color=look.color, alpha=0.10, linewidth=0)
    every = None if sizes else [len(x) - 1] if ends else max(len(x) // 8, 1)
    axes.plot(
      x,
      y,
      look.line,
      color=look.color,
      linewidth=1.6,
      marker=look.marker,
      markersize=6,
      markeredgecolor=PAPER,
      markevery=every,
      label=row,
      zorder=3,
    )
  if sizes:
    axes.xaxis.set_major_locator(FixedLocator([float(one) for one in sizes]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: fmt.whole(value)))
    axes.xaxis.set_minor_locator(NullLocator())
  else:
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8))
  axes.yaxis.set_major_locator(MaxNLocator(6))
  axes.tick_params(labelsize=size, pad=4)
  axes.tick_params(axis="y", colors=MUTED)
  axes.set_xlabel(label, fontsize=size, labelpad=5)
  axes.annotate(upright, (0, 1), (0, 8), "axes fraction", "offset points", fontsize=size, color=MUTED)
  where: dict[str, Any] = {"loc": "lower left", "ncols": 3} if narrow else {"loc": "center right", "ncols": 1}
  figure.legend(frameon=False, fontsize=size, labelcolor=INK, borderaxespad=0.2, **where)
  return figure


def scale_of(metric: str) -> float:
  """What a metric is multiplied by to be shown: 100 where it is a share."""
  return 100.0 if fmt.is_share(metric) else 1.0


def told(
  groups: Sequence[Mapping[str, Any]],
  metric: str,
  what: str,
  reference: str | None,
  show: Callable[[Mapping[str, Any]], str] | None = None,
) -> str:
  """A sentence: the reference's figure, the lowest and the highest of the others, at the largest size."""
  largest = max(one["size"] for one in groups)
  own = [one for one in groups if one["size"] == largest]
  at = f" at {fmt.whole(largest)} training examples" if largest else ""
  base = [one for one in own if one["row"] == reference]
  others = sorted((one for one in own if one["row"] != reference), key=lambda one: one["estimate"])
  shown = show or (lambda one: fmt.difference(one, metric) + fmt.unit(metric))
  parts = [f"{one['row']} {shown(one)}" for one in (*base, *others[:1], *others[1:][-1:])]
  return f"{what}{at}: {'; '.join(parts)} (the reference, the lowest and the highest; runs below)."
