"""Squares of squares: a matrix for each row of the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.drawing.svg import INK, MUTED, SERIES, WIDTHS, font_size, new_figure, text_size
from peftjax.tasks.metric import Metric

Matrix = Sequence[Sequence[float | None]]


def heat(matrices: Mapping[str, Matrix], summary: Summary, metric: Metric, narrow: bool) -> Figure | None:
  """Each cell's number, darker where it is better, all on one scale; cells that are None stay empty."""
  order = [row.row for row in summary.rows if row.row in matrices]
  values = [metric.direction * cell for row in order for line in matrices[row] for cell in line if cell is not None]
  if not values:
    return None
  count, cells = len(order), len(matrices[order[0]])
  across = min(2 if narrow else 5, count)
  down = -(-count // across)
  width = WIDTHS[narrow] * 72
  side = min(width / across - 34, 42.0 * cells)
  figure, first = new_figure(narrow, (down * (side + 44) + 6) / 72)
  first.remove()
  size, height = font_size(narrow), figure.get_size_inches()[1] * 72
  low, high = min(values), max(values)
  digits = text_size(figure, fmt.score_text(high, metric), size)[0]
  for index, row in enumerate(order):
    line, place = divmod(index, across)
    left, top = 22 + place * (width / across), line * (side + 44) + 20
    axes = figure.add_axes((left / width, 1 - (top + side) / height, side / width, side / height))
    axes.set_xlim(0, cells)
    axes.set_ylim(cells, 0)
    for edge in axes.spines.values():
      edge.set_visible(False)
    for y, line_of in enumerate(matrices[row]):
      for x, value in enumerate(line_of):
        if value is None:
          continue
        share = 0.12 + 0.48 * ((metric.direction * value - low) / (high - low) if high > low else 1.0)
        axes.add_patch(Rectangle((x + 0.03, y + 0.03), 0.94, 0.94, color=SERIES[0], alpha=share, linewidth=0))
        if digits < 0.9 * side / cells:
          text = fmt.score_text(value, metric)
          axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=size, color=INK)
    ticks = [cell + 0.5 for cell in range(cells)], [str(cell + 1) for cell in range(cells)]
    axes.set_xticks(*ticks)
    axes.set_yticks(*ticks)
    axes.tick_params(labelsize=size, pad=2, length=0, colors=MUTED)
    axes.set_title(row, fontsize=size, color=INK, loc="left", pad=4, fontweight="bold")
  return figure
