"""Score against trainable parameters: every method a point with its name."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.drawing import placing
from peftjax.compare.drawing.svg import INK, MUTED, PAPER, font_size, frame, log_ticks, looks, new_figure, text_size


def pareto(summary: Summary, narrow: bool = False) -> Figure | None:
  """With intervals; the line joins the methods that no smaller one beats."""
  rows = [row for row in summary.rows if row.parameters.trainable]
  if not rows:
    return None
  figure, axes = new_figure(narrow, 4.6, 4.3)
  scale, style, size = fmt.scale(summary.spec), looks(summary), font_size(narrow)
  x = np.array([row.parameters.trainable for row in rows], dtype=np.float64)
  y = scale * np.array([row.estimate for row in rows])
  ends = [row.ends or (row.estimate, row.estimate) for row in rows]
  low, high = scale * np.array(ends).T
  reach = max(np.log10(x.max() / x.min()), 1)
  axes.set_xlim(x.min() / 10 ** (0.12 * reach), x.max() * 10 ** (0.12 * reach))
  bottom, top = low.min(), high.max()
  axes.set_ylim(bottom - 0.10 * (top - bottom) - 1e-9, top + 0.10 * (top - bottom) + 1e-9)
  log_ticks(axes, lambda value: fmt.trimmed(fmt.short(value)))
  axes.yaxis.set_major_locator(MaxNLocator(6))
  frame(figure, axes, 34 if narrow else 40, 8, 8, 36)
  axes.set_xlabel("trainable parameters (log scale)", fontsize=size, labelpad=5)
  axes.tick_params(labelsize=size, pad=4)
  axes.tick_params(axis="y", colors=MUTED)

  front = _front(x, summary.spec.direction * y)
  steps = np.append(x[front], axes.get_xlim()[1]), np.append(y[front], y[front[-1]])
  axes.plot(*steps, color=MUTED, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1, drawstyle="steps-post")
  for row, one_x, one_y, one_low, one_high in zip(rows, x, y, low, high):
    look = style[row.row]
    axes.plot([one_x, one_x], [one_low, one_high], color=look.color, linewidth=1.6, zorder=2, solid_capstyle="round")
    axes.plot([one_x], [one_y], look.marker, color=look.color, markersize=7, markeredgecolor=PAPER, zorder=3)
  _name(figure, axes, [row.row for row in rows], np.stack([x, y], -1), np.stack([low, high], -1), size)
  return figure


def _front(x: np.ndarray, gains: np.ndarray) -> list[int]:
  """The points that no smaller one beats, from the left."""
  best, front = -np.inf, []
  for index in np.argsort(x):
    if gains[index] > best:
      best = gains[index]
      front.append(int(index))
  return front


def _name(figure: Figure, axes: Any, names: list[str], points: np.ndarray, ends: np.ndarray, size: float) -> None:
  """Puts a name beside every point, where it covers neither a point, nor an interval, nor another name."""
  to_pixels, to_data = axes.transData.transform, axes.transData.inverted().transform
  places = [tuple(pair) for pair in to_pixels(points)]
  obstacles = [(px - 5.0, py - 5.0, px + 5.0, py + 5.0) for px, py in places]
  for (x, _), (low, high) in zip(points, ends):
    (left, floor), (_, ceiling) = to_pixels([(x, low), (x, high)])
    obstacles.append((left - 2.0, floor - 1.0, left + 2.0, ceiling + 1.0))
  sizes = [text_size(figure, name, size) for name in names]
  box = axes.get_window_extent()
  cover = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}
  words: dict[str, Any] = {"fontsize": size, "ha": "center", "va": "center", "color": INK, "zorder": 4, "bbox": cover}
  boxes = placing.place(places, sizes, obstacles, (box.x0, box.y0, box.x1, box.y1))
  for name, point, place in zip(names, places, boxes):
    end = (min(max(point[0], place[0]), place[2]), min(max(point[1], place[1]), place[3]))
    if np.hypot(end[0] - point[0], end[1] - point[1]) > 11:
      line = to_data([point, end])
      axes.plot(line[:, 0], line[:, 1], color=MUTED, linewidth=0.8, zorder=1)
    where = to_data(((place[0] + place[2]) / 2, (place[1] + place[3]) / 2))
    axes.text(float(where[0]), float(where[1]), name, **words)
