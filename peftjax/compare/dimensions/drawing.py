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
    groups: as `base.by_group` gives them, of one size.
    summary: the study's; its rows give colours and markers.
    label: of the axis.
    narrow: for a phone.
    show: the note at a row's end; its estimate and interval in the study's metric if left out.
    scale: what values are multiplied by; 100 for a metric that is shown in percent if left out.
  """
  if not groups:
    return None
  from matplotlib.ticker import MaxNLocator

  from peftjax.compare.plots import looks
  from peftjax.compare.svg import MUTED, PAPER, font_size, rows_figure

  metric, style, size = summary["metric"], looks(summary), font_size(narrow)
  factor = (100.0 if fmt.is_share(metric) else 1.0) if scale is None else scale
  notes = [show(one) if show else fmt.difference(one, metric) for one in groups]
  figure, axes, positions = rows_figure([one["row"] for one in groups], notes, narrow)
  axes.axvline(0, color=MUTED, linewidth=1, zorder=1)
  for one, position in zip(groups, positions):
    look = style[one["row"]]
    if one["low"] is not None:
      ends = [factor * one["low"], factor * one["high"]]
      axes.plot(ends, [position, position], color=look.color, linewidth=2, solid_capstyle="round", zorder=2)
    seeds = factor * np.array(one["by_seed"])
    axes.plot(seeds, np.full(len(seeds), position), "|", color=look.color, markersize=9, markeredgewidth=1, zorder=2)
    axes.plot(factor * one["estimate"], position, look.marker, color=look.color, markersize=7, markeredgecolor=PAPER)
  axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 9))
  axes.tick_params(axis="x", labelsize=size, pad=4)
  unit = ", points" if scale is None and fmt.is_share(metric) else ""
  axes.set_xlabel(label + unit, fontsize=size)
  return figure


def told(groups: Sequence[Mapping[str, Any]], metric: str, what: str, reference: str | None) -> str:
  """A sentence: the reference's figure, the lowest and the highest of the others, at the largest size."""
  largest = max(one["size"] for one in groups)
  own = [one for one in groups if one["size"] == largest]
  at = f" at {fmt.whole(largest)} training examples" if largest else ""
  base = [one for one in own if one["row"] == reference]
  others = sorted((one for one in own if one["row"] != reference), key=lambda one: one["estimate"])
  parts = [f"{one['row']} {fmt.difference(one, metric)}" for one in (*base, *others[:1], *others[1:][-1:])]
  runs = fmt.runs([run for one in own for run in one["runs"]])
  return f"{what}{at}: {'; '.join(parts)}{fmt.unit(metric)} (the reference, the lowest and the highest; runs {runs})."
