"""Figures that several dimensions share: curves with one line a row, and marks with one line a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftjax.compare import formatting as fmt

if TYPE_CHECKING:
  from matplotlib.figure import Figure

  from peftjax.compare.analysis import Summary

Curve = Sequence[tuple[float, float]]


def refusal(row: str, reason: str) -> str:
  """A sentence on why a row has no figure.

  >>> refusal("prompt", "prompt cannot be merged"), refusal("short_prompt", "prompt cannot be merged")
  ('prompt cannot be merged.', 'short_prompt: prompt cannot be merged.')
  """
  return f"{reason}." if reason.startswith(f"{row} ") else f"{row}: {reason}."


def curves(
  drawn: Mapping[str, Curve], summary: Summary, label: str, narrow: bool, show: Callable[[float], str]
) -> Figure | None:
  """One line a row over a size, from zero.

  Args:
    drawn: row -> its points (x, y), x ascending.
    summary: the study's; its rows give colours and markers.
    label: of the horizontal axis.
    show: how a value of the vertical axis is written.
  """
  drawn = {row: points for row, points in drawn.items() if len(points) > 1}
  if not drawn:
    return None
  from matplotlib.ticker import FuncFormatter, MaxNLocator

  from peftjax.compare.drawing.plots import looks
  from peftjax.compare.drawing.svg import INK, MUTED, font_size, frame, new_figure, text_size

  style, size = looks(summary), font_size(narrow)
  lines = -(-len(drawn) // 3)
  figure, axes = new_figure(narrow, 3.7 + 0.2 * lines, 3.8)
  widest = max(text_size(figure, row, size)[0] for row in drawn)
  frame(figure, axes, 52, 12 if narrow else widest + 56, 10, (42 + 15 * lines) if narrow else 38)
  for row, points in drawn.items():
    x, y = zip(*points)
    look = style[row]
    axes.plot(x, y, look.line, color=look.color, linewidth=1.6, marker=look.marker, markersize=5, label=row)
  axes.set_ylim(0, 1.06 * max(y for points in drawn.values() for _, y in points))
  axes.set_xticks(sorted({x for points in drawn.values() for x, _ in points}))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
  axes.yaxis.set_major_locator(MaxNLocator(6))
  axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value) if value else "0"))
  axes.tick_params(labelsize=size, pad=4)
  axes.tick_params(axis="y", colors=MUTED)
  axes.set_xlabel(label, fontsize=size, labelpad=5)
  where: dict[str, Any] = {"loc": "lower left", "ncols": 3} if narrow else {"loc": "center right", "ncols": 1}
  figure.legend(frameon=False, fontsize=size, labelcolor=INK, borderaxespad=0.2, **where)
  return figure


def marks(
  rows: Sequence[Mapping[str, Any]],
  summary: Summary,
  label: str,
  narrow: bool,
  show: Callable[[float], str],
  at: float | None = None,
  log: bool = False,
) -> Figure | None:
  """One line a row with up to three marks: the first filled, with its interval, then a hollow circle, then a stroke.

  Args:
    rows: {"row", "note" (at the line's end), "marks" (values, None where there is none), "interval" (ends or None)}.
    label: of the axis.
    show: how a value of the axis is written.
    at: where a vertical line stands, such as 1 for a ratio.
    log: a logarithmic axis.
  """
  values = [value for row in rows for value in (*row["marks"], *(row.get("interval") or ())) if value is not None]
  if not rows or not values:
    return None
  from matplotlib.ticker import FuncFormatter, MaxNLocator

  from peftjax.compare.drawing.plots import looks
  from peftjax.compare.drawing.svg import MUTED, PAPER, font_size, log_ticks, rows_figure

  figure, axes, positions = rows_figure([row["row"] for row in rows], [row["note"] for row in rows], narrow)
  style, size = looks(summary), font_size(narrow)
  if at is not None:
    axes.axvline(at, color=MUTED, linewidth=1, zorder=1)
  for row, position in zip(rows, positions):
    look, ends = style[row["row"]], row.get("interval")
    if ends:
      axes.plot(ends, [position] * 2, color=look.color, linewidth=2, solid_capstyle="round", zorder=2)
    kinds: tuple[dict[str, Any], ...] = (
      {"marker": look.marker, "markersize": 7, "markeredgecolor": PAPER, "zorder": 3},
      {"marker": "o", "markersize": 8, "markerfacecolor": "none", "markeredgewidth": 1.4, "zorder": 2},
      {"marker": "|", "markersize": 12, "markeredgewidth": 1.8, "zorder": 2},
    )
    for value, kind in zip(row["marks"], kinds):
      if value is not None:
        axes.plot(value, position, color=look.color, **kind)
  if log:
    positive = [value for value in values if value > 0]
    axes.set_xlim(min(positive) / 2, max(positive) * 2)
    log_ticks(axes, lambda value: fmt.trimmed(show(value or 0.0)))
  else:
    axes.set_xlim(0, 1.06 * max(*values, at or 0.0))
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: fmt.trimmed(show(value)) if value else "0"))
  axes.tick_params(axis="x", labelsize=size, pad=4)
  axes.set_xlabel(label, fontsize=size)
  return figure
