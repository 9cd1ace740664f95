"""The report's own sections: how the methods differ, what they cost, how they learn, what was searched."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Row, Summary
from peftjax.compare.dimensions.base import Plot, Section
from peftjax.compare.drawing import lines, rows
from peftjax.compare.drawing.pareto import pareto
from peftjax.compare.drawing.rows import Line
from peftjax.compare.drawing.svg import SERIES
from peftjax.compare.failures import Failures
from peftjax.compare.metrics import SHARE
from peftjax.compare.records import Record

CURVE = "The score on the curve decided: it is read from all runs at rates nearby, not from a rate's own alone."
FAILED = (
  "A run counts as failed if it diverged, if its score is not above that of the most frequent answer, or if it lies in "
  "the worse of two groups."
)
HELD = {"weights": SERIES[5], "gradients": SERIES[1], "optimizer": SERIES[0], "activations": SERIES[4]}


def differences(summary: Summary) -> Section:
  """What stands under the answer."""
  spec = summary.spec
  margin = fmt.score_text(summary.margin, spec) + fmt.unit(spec)
  return Section(
    heading="",
    plots=(
      Plot(
        "forest",
        f"Difference to {summary.reference or ''}",
        f"Of {summary.location}s, paired on seeds and examples, with 95% intervals. Small strokes are single seeds. "
        f'The band is the margin of ±{margin}, set before the study: an interval inside it means "matches".',
        lambda narrow: forest(summary, narrow),
      ),
      Plot(
        "pareto",
        "What the trainable parameters buy",
        f"{summary.split} {fmt.named(spec)}, {summary.location} with 95% intervals. The dotted line is the best that "
        "so many parameters bought.",
        lambda narrow: pareto(summary, narrow),
      ),
    ),
  )


def forest(summary: Summary, narrow: bool, baseline: bool = False) -> Figure | None:
  """Paired differences: interval, estimate, each seed, and the band of differences without weight."""
  spec = summary.spec
  found = [(row.row, one) for row in summary.rows if (one := row.over_baseline if baseline else row.difference)]
  found.sort(key=lambda one: -spec.direction * one[1].estimate)
  if not found:
    return None
  drawn = [
    rows.estimated(row, one, f"{fmt.difference(one, spec)} · {one.verdict}", fmt.scale(spec)) for row, one in found
  ]
  across = f"{summary.split} {summary.metric} less {found[0][1].to}'s{fmt.counted_in(spec)}"
  return rows.marked(drawn, summary, across, narrow, at=0.0, band=fmt.scale(spec) * summary.margin)


def runs_section(summary: Summary) -> Section:
  """How a method's runs lie, and which of them failed."""
  spec = summary.spec
  bound = "least" if spec.higher_is_better else "most"
  known = [(row, row.failures) for row in summary.rows if row.failures]
  sentences = [
    f"{row.row}'s runs look like two groups, {fmt.score_text(one.groups.gap, spec)}{fmt.unit(spec)} apart (p = "
    f"{one.groups.p:.2g}); the worse one has {len(one.groups.worse)} of {len(row.seeds)}."
    for row, one in known
    if one.groups
  ]
  return Section(
    heading="The runs one by one",
    sentences=(
      *sentences,
      FAILED,
    ),
    plots=(
      Plot(
        "profiles",
        "Performance profiles",
        f"The share of a method's runs whose {summary.split} {summary.metric} is at {bound} what the axis says. A "
        "curve that lies higher is better at that level; a long flat piece parts two groups of runs.",
        lambda narrow: profiles(summary, narrow),
      ),
    ),
    columns=("method", "failed", "of", "share of new runs that fail [95%]", "which", "why"),
    rows=tuple(
      (
        row.row,
        str(one.count),
        str(one.started),
        _failing(one),
        fmt.runs(tuple(one.runs)) or fmt.NONE,
        "; ".join(dict.fromkeys(one.runs.values())) or fmt.NONE,
      )
      for row, one in known
    ),
  )


def _failing(one: Failures) -> str:
  share, low, high = (fmt.score_text(value, SHARE) for value in (one.count / one.started, one.low, one.high))
  return f"{share} [{low}, {high}]%"


def profiles(summary: Summary, narrow: bool) -> Figure | None:
  """Agarwal et al. 2021, section 4.2: the share of runs at or beyond each score."""
  scale, direction, drawn = fmt.scale(summary.spec), summary.spec.direction, {}
  everything = [value for row in summary.rows for value in row.by_seed if np.isfinite(value)]
  for row in summary.rows:
    values = np.sort([value for value in row.by_seed if np.isfinite(value)])
    if len(values) > 1:
      ends = np.array([min(everything), *np.repeat(values, 2), max(everything)])
      shares = [
        100 * float(np.mean(direction * values >= direction * end - (1e-12 if before else -1e-12)))
        for end, before in zip(ends, [True, *[direction > 0, direction < 0] * len(values), direction < 0])
      ]
      drawn[row.row] = lines.flat(list(zip((scale * ends).tolist(), shares)))
  across = f"{summary.split} {fmt.named(summary.spec)}"
  return lines.curves(drawn, summary, across, "% of runs", narrow, marks="none")


def costs(summary: Summary) -> Section:
  """Memory, time and storage."""
  timed = any(row.step_ratio for row in summary.rows)
  on = f" on batches of {summary.cost_shape}" if summary.cost_shape else ""
  turns = "Times of all methods were taken in turns; medians over rounds with 95% intervals."
  return Section(
    heading="What they cost",
    plots=(
      Plot(
        "memory",
        "Memory of a training step",
        "Exact bytes of weights (frozen ones too), and of gradients and optimizer state of what trains. Activations "
        f"are the compiled step's other temporary buffers{on}.",
        lambda narrow: memory(summary, narrow),
      ),
      Plot(
        "times",
        "Step time and FLOPs",
        (turns if timed else "Times were not taken in turns, so only FLOPs are shown.")
        + " FLOPs are those of a step's matrix products, counted from the program.",
        lambda narrow: times(summary, narrow),
      ),
      Plot(
        "storage", "Storage", "The file that one more task adds to the disk.", lambda narrow: storage(summary, narrow)
      ),
    ),
  )


def memory(summary: Summary, narrow: bool) -> Figure | None:
  """Bytes that a training step holds; activations where all rows have them."""
  whole = all(row.bytes.activations is not None for row in summary.rows)
  colors = {part: color for part, color in HELD.items() if whole or part != "activations"}
  parts = {row.row: [float(getattr(row.bytes, part)) for part in colors] for row in summary.rows}
  return rows.stacked_bars(parts, colors, fmt.size, narrow) if parts else None


def times(summary: Summary, narrow: bool) -> Figure | None:
  """A step's time and FLOPs over the reference's: filled with its interval, and hollow."""
  drawn = [_time(row) for row in summary.rows if row.step_ratio or row.flops_ratio]
  across = f"over {summary.reference}'s: filled time, hollow FLOPs"
  return rows.marked(drawn, summary, across, narrow, at=1.0, from_zero=lambda value: f"{value:g}")


def _time(row: Row) -> Line:
  ratio = row.step_ratio
  note = f"time {ratio.estimate:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else f"time {fmt.NONE}"
  note += f" · FLOPs {row.flops_ratio:.2f}" if row.flops_ratio else ""
  return Line(row.row, note, (ratio.estimate if ratio else None, row.flops_ratio), ratio.ends if ratio else None)


def storage(summary: Summary, narrow: bool) -> Figure | None:
  """Bytes on disk for one more task, on a log scale."""
  drawn = []
  for row in summary.rows:
    if size := row.bytes.adapter_file:
      share = fmt.percent(100 * size / row.bytes.weights)
      drawn.append(Line(row.row, f"{fmt.size(size)} · {share} of the base", (float(size),)))
  return rows.marked(drawn, summary, "bytes on disk for one more task (log scale)", narrow, log=fmt.size)


def learning(summary: Summary, results: Sequence[Record]) -> Section:
  """The training loss along the steps, and what each method gains over the baseline."""
  return Section(
    heading="How they learn",
    plots=(
      Plot(
        "curves",
        "Training loss",
        "Mean over seeds; the band runs from the lowest to the highest seed. Each method has its own learning rate.",
        lambda narrow: losses(summary, results, narrow),
      ),
      Plot(
        "baseline",
        f"Difference to the {summary.baseline or ''} baseline",
        "Paired, as above. A method that does not beat the baseline has not used what it trains.",
        lambda narrow: forest(summary, narrow, baseline=True),
      ),
    ),
  )


def losses(summary: Summary, results: Sequence[Record], narrow: bool) -> Figure | None:
  """Smoothed, on the steps that all seeds of a row have."""
  drawn = {row.row: _mean_curve([one for one in results if one.row == row.row and one.curve]) for row in summary.rows}
  figure = lines.curves(drawn, summary, "updates", "training loss", narrow, marks="none")
  if figure is not None:
    values = np.array([point[1] for points in drawn.values() for point in points])
    bottom, top = float(values.min()), float(np.quantile(values, 0.995))
    room = 0.06 * (top - bottom) + 1e-9
    figure.axes[0].set_ylim(bottom - room, top + room)
  return figure


def _mean_curve(records: Sequence[Record]) -> list[lines.Point]:
  if not records:
    return []
  found = [np.array(record.curve) for record in records]
  start, stop = max(curve[0, 0] for curve in found), min(curve[-1, 0] for curve in found)
  steps = found[0][(found[0][:, 0] >= start) & (found[0][:, 0] <= stop), 0]
  if not len(steps):
    return []
  kernel = np.ones(max(1, len(steps) // 25))
  count = np.convolve(np.ones(len(steps)), kernel, "same")
  smooth = np.stack(
    [np.convolve(np.interp(steps, curve[:, 0], curve[:, 1]), kernel, "same") / count for curve in found]
  )
  return list(zip(steps.tolist(), smooth.mean(0).tolist(), smooth.min(0).tolist(), smooth.max(0).tolist()))


def search_section(summary: Summary) -> Section:
  """Every setting that was tried; the chosen one is marked."""
  spec, table = summary.spec, []
  for one in summary.search:
    for tried in one.tried:
      chosen = tried.setting == one.best
      table.append(
        (
          one.row,
          fmt.rate(tried.learning_rate),
          ", ".join(f"{name} {value}" for name, value in tried.knobs.items()) or fmt.NONE,
          ", ".join("diverged" if score is None else fmt.score_text(score, spec) for score in tried.scores),
          "diverged" if tried.mean is None else fmt.score_text(tried.mean, spec),
          fmt.score_text(tried.value, spec),
          ("yes" if one.interior else "yes, at the edge of what was tried") if chosen else "",
        )
      )
  return Section(
    heading="The search",
    sentences=(
      f"Every method had {summary.search[0].runs} runs, on seeds that the final runs do not use.",
      "They were scored on validation data. A best rate at the edge of what was tried may not be the best.",
      *([CURVE] if any(one.value is not None for choice in summary.search for one in choice.tried) else []),
    ),
    plots=(
      Plot(
        "rates",
        "Learning rates",
        f"Validation {fmt.named(spec)} of the search's seeds: the curve through all runs, of searches that have none "
        "the mean. The ring is the chosen rate, where no other setting was better.",
        lambda narrow: rates(summary, narrow),
      ),
    ),
    columns=("method", "learning rate", "other settings", "scores by seed", "mean", "on the curve", "chosen"),
    rows=tuple(table),
  )


def rates(summary: Summary, narrow: bool) -> Figure | None:
  """Score against peak learning rate, all other settings the same; those that diverged are left out."""
  scale = fmt.scale(summary.spec)
  drawn: dict[str, list[lines.Point]] = {}
  ringed: dict[str, tuple[float, float]] = {}
  for one in summary.search:
    if summary.row(one.row):
      read = [(tried.learning_rate, tried.mean if tried.value is None else tried.value) for tried in one.rates]
      points = sorted((tried, scale * score) for tried, score in read if score is not None)
      drawn[one.row] = lines.flat(points)
      ringed.update((one.row, point) for point in points if point[0] == one.learning_rate)
  across, up = "peak learning rate (log scale)", f"validation {fmt.named(summary.spec)}"
  return lines.curves(drawn, summary, across, up, narrow, log=fmt.rate, marks="all", ringed=ringed)
