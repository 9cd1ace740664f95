"""The report's plots.

Every plot is drawn twice, for a wide page and for a phone; the page shows the one that fits. A method keeps its colour
and its marker through all of them.
"""

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
from peftjax.compare.analysis import Summary
from peftjax.compare.drawing import placing as labels
from peftjax.compare.drawing.svg import (
  BAND,
  INK,
  MUTED,
  PAPER,
  SERIES,
  font_size,
  frame,
  log_ticks,
  new_figure,
  rows_figure,
  svg,
  text_size,
)
from peftjax.compare.records import Record

MARKERS = ("s", "D", "^", "v", "h", "<", ">", "p", "8")  # of all but the reference and the baseline
LINES = ("-", "--", ":", "-.")
HELD = (("weights", SERIES[5]), ("gradients", SERIES[1]), ("optimizer", SERIES[0]), ("activations", SERIES[4]))


@dataclasses.dataclass(frozen=True)
class Look:
  """How a row is drawn in every plot."""

  color: str
  marker: str
  line: str


def looks(summary: Summary) -> dict[str, Look]:
  """The reference is ink, the baseline grey, the others have the palette's colours in the order of the rows."""
  found, number = {}, 0
  for row in summary["rows"]:
    name = row["row"]
    if name == summary["reference"]:
      found[name] = Look(INK, "o", "-")
    elif name == summary["baseline"]:
      found[name] = Look(MUTED, "o", "--")
    else:
      turn, color = divmod(number, len(SERIES))
      found[name] = Look(SERIES[color], MARKERS[number % len(MARKERS)], LINES[turn % len(LINES)])
      number += 1
  return found


def _scaled(metric: str) -> float:
  return 100.0 if fmt.is_share(metric) else 1.0


def pareto(summary: Summary, narrow: bool = False) -> Figure | None:
  """Score against trainable parameters, with intervals; the line joins the methods that no smaller one beats."""
  rows = [row for row in summary["rows"] if (row["parameters"] or {}).get("trainable")]
  if not rows:
    return None
  figure, axes = new_figure(narrow, 4.6, 4.3)
  scale, style = _scaled(summary["metric"]), looks(summary)
  size = font_size(narrow)
  x = np.array([row["parameters"]["trainable"] for row in rows], dtype=np.float64)
  y = scale * np.array([row["estimate"] for row in rows])
  low, high = (
    scale * np.array([row["estimate"] if row[end] is None else row[end] for row in rows]) for end in ("low", "high")
  )
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

  best, front = -np.inf, []
  for index in np.argsort(x):
    if y[index] > best:
      best = y[index]
      front.append(index)
  steps = np.append(x[front], axes.get_xlim()[1]), np.append(y[front], best)
  axes.plot(*steps, color=MUTED, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1, drawstyle="steps-post")
  for row, one_x, one_y, one_low, one_high in zip(rows, x, y, low, high):
    look = style[row["row"]]
    axes.plot([one_x, one_x], [one_low, one_high], color=look.color, linewidth=1.6, zorder=2, solid_capstyle="round")
    axes.plot([one_x], [one_y], look.marker, color=look.color, markersize=7, markeredgecolor=PAPER, zorder=3)

  to_pixels = axes.transData.transform
  points = [tuple(pair) for pair in to_pixels(np.stack([x, y], -1))]
  obstacles = [(px - 5.0, py - 5.0, px + 5.0, py + 5.0) for px, py in points]
  for one_x, one_low, one_high in zip(x, low, high):
    (left, floor), (_, ceiling) = to_pixels([(one_x, one_low), (one_x, one_high)])
    obstacles.append((left - 2.0, floor - 1.0, left + 2.0, ceiling + 1.0))
  sizes = [text_size(figure, row["row"], size) for row in rows]
  box = axes.get_window_extent()
  cover = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}
  for row, point, place in zip(rows, points, labels.place(points, sizes, obstacles, (box.x0, box.y0, box.x1, box.y1))):
    centre = ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
    end = (min(max(point[0], place[0]), place[2]), min(max(point[1], place[1]), place[3]))
    if np.hypot(end[0] - point[0], end[1] - point[1]) > 11:
      line = axes.transData.inverted().transform([point, end])
      axes.plot(line[:, 0], line[:, 1], color=MUTED, linewidth=0.8, zorder=1)
    where = axes.transData.inverted().transform(centre)
    words: dict[str, Any] = {"fontsize": size, "ha": "center", "va": "center", "color": INK, "zorder": 4, "bbox": cover}
    axes.text(float(where[0]), float(where[1]), row["row"], **words)
  return figure


def mark_interval(axes: Axes, position: float, one: Mapping[str, Any], look: Look, scale: float) -> None:
  """One line of a plot of intervals: the interval where there is one, each seed, the estimate; times `scale`."""
  if one["low"] is not None:
    ends = [scale * one["low"], scale * one["high"]]
    axes.plot(ends, [position, position], color=look.color, linewidth=2, solid_capstyle="round", zorder=2)
  seeds = scale * np.array(one["by_seed"])
  axes.plot(seeds, np.full(len(seeds), position), "|", color=look.color, markersize=9, markeredgewidth=1, zorder=2)
  axes.plot(scale * one["estimate"], position, look.marker, color=look.color, markersize=7, markeredgecolor=PAPER)


def forest(summary: Summary, narrow: bool = False, key: str = "difference") -> Figure | None:
  """Paired differences to the reference: interval, estimate, each seed, and the band of differences without weight."""
  metric, style = summary["metric"], looks(summary)
  rows = sorted((row for row in summary["rows"] if row[key]), key=lambda row: -row[key]["estimate"])
  if not rows:
    return None
  notes = [f"{fmt.difference(row[key], metric)} · {row[key]['verdict']}" for row in rows]
  figure, axes, positions = rows_figure([row["row"] for row in rows], notes, narrow)
  scale, margin = _scaled(metric), summary["margin"] * _scaled(metric)
  axes.axvspan(-margin, margin, color=BAND, zorder=0, linewidth=0)
  axes.axvline(0, color=MUTED, linewidth=1, zorder=1)
  for row, position in zip(rows, positions):
    mark_interval(axes, position, row[key], style[row["row"]], scale)
  axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 9))
  axes.xaxis.set_major_formatter(
    FuncFormatter(lambda value, _: f"{value:+g}".replace("-", fmt.MINUS).replace("+0", "0"))
  )
  size = font_size(narrow)
  axes.tick_params(axis="x", labelsize=size, pad=4)
  axes.set_xlabel(
    f"{summary['split']} {metric} less {rows[0][key]['to']}'s{fmt.unit(metric) and ', points'}", fontsize=size
  )
  return figure


def curves(summary: Summary, results: Sequence[Record], narrow: bool = False) -> Figure | None:
  """Training loss along the steps: the mean over seeds, with the band from the lowest seed to the highest."""
  style = looks(summary)
  found = {row["row"]: _mean_curve(results, row["row"]) for row in summary["rows"]}
  drawn = {name: curve for name, curve in found.items() if curve is not None}
  if not drawn:
    return None
  figure, axes = new_figure(narrow, 3.6, 3.8)
  size = font_size(narrow)
  right = 22 + max(text_size(figure, name, size)[0] for name in drawn)
  frame(figure, axes, 34 if narrow else 40, right, 8, 36)
  for name, (steps, mean, low, high) in drawn.items():
    look = style[name]
    axes.fill_between(steps, low, high, color=look.color, alpha=0.12, linewidth=0)
    axes.plot(steps, mean, look.line, color=look.color, linewidth=1.6)
  last = max(steps[-1] for steps, *_ in drawn.values())
  axes.set_xlim(0, last)
  values = np.concatenate([mean for _, mean, *_ in drawn.values()])
  bottom, top = float(values.min()), float(np.quantile(values, 0.995))
  axes.set_ylim(bottom - 0.06 * (top - bottom) - 1e-9, top + 0.06 * (top - bottom) + 1e-9)
  axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8, integer=True))
  axes.yaxis.set_major_locator(MaxNLocator(6))
  axes.tick_params(labelsize=size, pad=4)
  axes.tick_params(axis="y", colors=MUTED)
  axes.set_xlabel("steps", fontsize=size, labelpad=5)
  box, height = axes.get_window_extent(), text_size(figure, "Ag", size)[1] + 2
  names = list(drawn)
  ends = [float(axes.transData.transform((0, drawn[name][1][-1]))[1]) for name in names]
  for name, end, place in zip(names, ends, labels.spread_out(ends, height, box.y0 + height / 2, box.y1 - height / 2)):
    (end_y, text_y) = ((value - box.y0) / box.height for value in (end, place))
    axes.plot(
      [1, 1 + 8 / box.width],
      [end_y, text_y],
      transform=axes.transAxes,
      clip_on=False,
      color=style[name].color,
      linewidth=1.2,
    )
    axes.text(1 + 11 / box.width, text_y, name, transform=axes.transAxes, va="center", fontsize=size, color=INK)
  return figure


def rates(summary: Summary, narrow: bool = False) -> Figure | None:
  """The search: score against peak learning rate, all other settings the same; the chosen rate is ringed."""
  searched = {one["row"]: one for one in summary.get("search", ())}
  style, scale = looks(summary), _scaled(summary["metric"])
  drawn = {row: points for row, one in searched.items() if row in style and len(points := _by_rate(one)) > 1}
  if not drawn:
    return None
  figure, axes = new_figure(narrow, 4.6, 4.3)
  size = font_size(narrow)
  frame(figure, axes, 34 if narrow else 40, 10 if narrow else 110, 8, 66 if narrow else 36)
  for row, points in drawn.items():
    look = style[row]
    x, y = np.array(points).T
    axes.plot(x, scale * y, look.line, color=look.color, linewidth=1.6, marker=look.marker, markersize=5, label=row)
    best = searched[row]["learning_rate"]
    chosen = [value for rate, value in points if rate == best]
    if chosen:
      axes.plot(best, scale * chosen[0], "o", color=look.color, markersize=11, markerfacecolor="none")
  log_ticks(axes, lambda value: fmt.rate(value))
  axes.yaxis.set_major_locator(MaxNLocator(6))
  axes.tick_params(labelsize=size, pad=4)
  axes.tick_params(axis="y", colors=MUTED)
  axes.set_xlabel("peak learning rate (log scale)", fontsize=size, labelpad=5)
  where: dict[str, Any] = {"loc": "lower left", "ncols": 4} if narrow else {"loc": "center right", "ncols": 1}
  figure.legend(frameon=False, fontsize=size, labelcolor=INK, borderaxespad=0.2, **where)
  return figure


def _by_rate(searched: Mapping[str, Any]) -> list[tuple[float, float]]:
  """(rate, mean score) of the settings without knobs, by rate; those that diverged are left out."""
  plain = [one for one in searched["tried"] if not one["knobs"] and None not in one["scores"]]
  return sorted((one["learning_rate"], float(np.mean(one["scores"]))) for one in plain)


def _mean_curve(results: Sequence[Record], row: str) -> tuple[np.ndarray, ...] | None:
  found = [np.array(record["curve"]) for record in results if record["row"] == row and record.get("curve")]
  if not found:
    return None
  start, stop = max(curve[0, 0] for curve in found), min(curve[-1, 0] for curve in found)
  steps = found[0][(found[0][:, 0] >= start) & (found[0][:, 0] <= stop), 0]
  if not len(steps):
    return None
  losses = np.stack([np.interp(steps, curve[:, 0], curve[:, 1]) for curve in found])
  width = max(1, len(steps) // 25)
  kernel = np.ones(width) / width
  count = np.convolve(np.ones(len(steps)), kernel, "same")
  smooth = np.stack([np.convolve(one, kernel, "same") / count for one in losses])
  return steps, smooth.mean(0), smooth.min(0), smooth.max(0)


def memory(summary: Summary, narrow: bool = False) -> Figure | None:
  """Bytes that a training step holds: weights, gradients, optimizer, and activations where they were measured."""
  keys = [key for key, _ in HELD if all((row["bytes"] or {}).get(key) is not None for row in summary["rows"])]
  rows = summary["rows"] if {"weights", "gradients", "optimizer"} <= set(keys) else []
  if not rows:
    return None
  totals = [sum(row["bytes"][key] for key in keys) for row in rows]
  figure, axes, positions = rows_figure(
    [row["row"] for row in rows], [fmt.size(total) for total in totals], narrow, legend=True
  )
  thickness = 0.3 if narrow else 0.56
  for row, position in zip(rows, positions):
    left = 0.0
    for key, color in HELD[: len(keys)]:
      axes.barh(position, row["bytes"][key], thickness, left, color=color, linewidth=0)
      left += row["bytes"][key]
  size = font_size(narrow)
  axes.set_xlim(0, max(totals) * 1.01)
  axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 7))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: fmt.trimmed(fmt.size(value)) if value else "0"))
  axes.tick_params(axis="x", labelsize=size, pad=4)
  handles = [Patch(color=color, label=key, linewidth=0) for key, color in HELD[: len(keys)]]
  figure.legend(
    handles=handles,
    loc="upper left",
    ncols=4,
    frameon=False,
    fontsize=size,
    labelcolor=INK,
    borderaxespad=0.2,
    handlelength=1,
    handleheight=1,
    columnspacing=1.0 if narrow else 1.6,
    handletextpad=0.5,
  )
  return figure


def times(summary: Summary, narrow: bool = False) -> Figure | None:
  """A step's time and FLOPs over the reference's: filled with its interval, and hollow."""
  rows = [row for row in summary["rows"] if row["step_ratio"] or row["flops_ratio"]]
  if not rows:
    return None
  notes = []
  for row in rows:
    ratio = row["step_ratio"]
    timed = f"{ratio['estimate']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else fmt.NONE
    notes.append(f"time {timed} · FLOPs {row['flops_ratio']:.2f}" if row["flops_ratio"] else f"time {timed}")
  figure, axes, positions = rows_figure([row["row"] for row in rows], notes, narrow)
  style, size = looks(summary), font_size(narrow)
  axes.axvline(1, color=MUTED, linewidth=1, zorder=1)
  for row, position in zip(rows, positions):
    look, ratio = style[row["row"]], row["step_ratio"]
    if ratio:
      axes.plot([ratio["low"], ratio["high"]], [position] * 2, color=look.color, linewidth=2, solid_capstyle="round")
      axes.plot(ratio["estimate"], position, look.marker, color=look.color, markersize=7, markeredgecolor=PAPER)
    if row["flops_ratio"]:
      axes.plot(
        row["flops_ratio"], position, "o", color=look.color, markersize=7, markerfacecolor="none", markeredgewidth=1.4
      )
  axes.set_xlim(0, None)
  axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 8))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
  axes.tick_params(axis="x", labelsize=size, pad=4)
  axes.set_xlabel(f"over {summary['reference']}'s: filled time, hollow FLOPs", fontsize=size)
  return figure


def storage(summary: Summary, narrow: bool = False) -> Figure | None:
  """Bytes on disk for one more task, on a log scale."""
  rows = [row for row in summary["rows"] if (row["bytes"] or {}).get("adapter_file")]
  if not rows:
    return None
  sizes = [row["bytes"]["adapter_file"] for row in rows]
  base = [row["bytes"].get("weights") for row in rows]
  notes = [
    f"{fmt.size(size)} · {fmt.percent(100 * size / whole)} of the base" if whole else fmt.size(size)
    for size, whole in zip(sizes, base)
  ]
  figure, axes, positions = rows_figure([row["row"] for row in rows], notes, narrow)
  style = looks(summary)
  low = 10 ** np.floor(np.log10(min(sizes)) - 0.2)
  axes.set_xlim(low, max(sizes) * 1.6)
  log_ticks(axes, lambda value: fmt.trimmed(fmt.size(value)))
  for row, size, position in zip(rows, sizes, positions):
    look = style[row["row"]]
    axes.plot([low, size], [position] * 2, color=look.color, linewidth=2, solid_capstyle="butt")
    axes.plot(size, position, look.marker, color=look.color, markersize=7, markeredgecolor=PAPER)
  font = font_size(narrow)
  axes.tick_params(axis="x", labelsize=font, pad=4)
  axes.set_xlabel("bytes on disk for one more task (log scale)", fontsize=font)
  return figure


def all_plots(summary: Summary, results: Sequence[Record]) -> Mapping[str, tuple[str, str]]:
  """Each plot that has data, as (wide, narrow) SVG."""
  made: dict[str, tuple[Callable[[bool], Figure | None], str]] = {
    "pareto": (lambda narrow: pareto(summary, narrow), "Score against trainable parameters"),
    "forest": (lambda narrow: forest(summary, narrow), "Paired differences to the reference"),
    "baseline": (lambda narrow: forest(summary, narrow, "over_baseline"), "Paired differences to the baseline"),
    "curves": (lambda narrow: curves(summary, results, narrow), "Training loss along the steps"),
    "rates": (lambda narrow: rates(summary, narrow), "Search score against learning rate"),
    "memory": (lambda narrow: memory(summary, narrow), "Bytes of weights, gradients and optimizer"),
    "times": (lambda narrow: times(summary, narrow), "Step time and FLOPs over the reference"),
    "storage": (lambda narrow: storage(summary, narrow), "Bytes on disk for one more task"),
  }
  drawn: dict[str, tuple[str, str]] = {}
  for name, (draw, label) in made.items():
    wide, phone = draw(False), draw(True)
    if wide is not None and phone is not None:
      drawn[name] = (svg(wide, f"{name}-wide", label), svg(phone, f"{name}-phone", label))
  return drawn
