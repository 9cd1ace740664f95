"""Figures with a curve for each row, and a legend that names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.drawing.svg import INK, MUTED, PAPER, font_size, frame, log_ticks, looks, new_figure, text_size

Point = tuple[float, float, float, float]  # x, y, and the ends of its interval or band


def flat(points: Sequence[tuple[float, float]]) -> list[Point]:
  """(x, y, lower, upper) of points that have no interval: both ends are y."""
  return [(x, y, y, y) for x, y in points]


def curves(
  drawn: Mapping[str, Sequence[Point]],
  summary: Summary,
  across: str,
  up: str,
  narrow: bool,
  *,
  ticks: Sequence[float] = (),
  apart: bool = False,
  log: Callable[[float | None], str] | None = None,
  from_zero: Callable[[float], str] | None = None,
  marks: str = "some",
  ringed: Mapping[str, tuple[float, float]] | None = None,
) -> Figure | None:
  """One curve a row; None where no row has two points.

  Args:
    drawn: row -> points, x ascending.
    summary: the study's; its rows give colours and markers.
    across: what the horizontal axis shows; up: what the other one does, told above it.
    ticks: where the horizontal axis has its ticks; without, at round values.
    apart: a logarithmic axis on which rows stand a little apart, each point with its interval; bands without.
    log: a logarithmic horizontal axis, and how its values are written.
    from_zero: the vertical axis begins at zero, and how its values are written.
    marks: "all" points, "some", the "last" or "none".
    ringed: row -> the point that is ringed.
  """
  drawn = {row: points for row, points in drawn.items() if len(points) > 1}
  if not drawn:
    return None
  style, size = looks(summary), font_size(narrow)
  below = -(-len(drawn) // 3)  # lines of the legend on a phone
  figure, axes = new_figure(narrow, 3.9 + 0.2 * below, 4.1)
  beside = 58 + max(text_size(figure, row, size)[0] for row in drawn)
  frame(figure, axes, 52 if from_zero else 44, 12 if narrow else beside, 22, 38 + 15 * below if narrow else 38)
  if log or apart:
    axes.set_xscale("log")
  for number, (row, points) in enumerate(drawn.items()):
    look = style[row]
    x, y, low, high = np.array(points, dtype=np.float64).T
    if apart:
      x = x * 1.045 ** (number - (len(drawn) - 1) / 2)
      axes.vlines(x, low, high, color=look.color, linewidth=1.4, zorder=2)
    elif (high > low).any():
      axes.fill_between(x, low, high, color=look.color, alpha=0.11, linewidth=0)
    shown: dict[str, Any] = {"marker": look.marker, "markersize": 5.5, "markeredgecolor": PAPER}
    shown |= {"markevery": {"all": 1, "last": [len(x) - 1]}.get(marks, max(len(x) // 8, 1))}
    axes.plot(
      x, y, look.line, color=look.color, linewidth=1.6, label=row, zorder=3, **(shown if marks != "none" else {})
    )
    if ringed and row in ringed:
      axes.plot(*ringed[row], "o", color=look.color, markersize=11, markerfacecolor="none")
  if log:
    log_ticks(axes, log)
  elif ticks:
    axes.xaxis.set_major_locator(FixedLocator([float(one) for one in ticks]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: fmt.whole(value)))
    axes.xaxis.set_minor_locator(NullLocator())
  else:
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8))
  axes.yaxis.set_major_locator(MaxNLocator(6))
  if from_zero:
    axes.set_ylim(0, 1.06 * max(point[1] for points in drawn.values() for point in points))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: from_zero(value) if value else "0"))
  axes.tick_params(labelsize=size, pad=4)
  axes.tick_params(axis="y", colors=MUTED)
  axes.set_xlabel(across, fontsize=size, labelpad=5)
  axes.annotate(up, (0, 1), (0, 8), "axes fraction", "offset points", fontsize=size, color=MUTED)
  where: dict[str, Any] = {"loc": "lower left", "ncols": 3} if narrow else {"loc": "center right", "ncols": 1}
  figure.legend(frameon=False, fontsize=size, labelcolor=INK, borderaxespad=0.2, **where)
  return figure
