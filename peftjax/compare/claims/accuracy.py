"""Rules for claims about accuracy: whether PEFT reaches full fine-tuning, and where it does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from peftjax.compare.analysis import Row, Summary
from peftjax.compare.claims.verdict import (
  CONTRADICTED,
  REACHING,
  SUPPORTED,
  Rule,
  Verdict,
  against,
  best,
  decided,
  each,
  reference,
  runs_of,
  untestable,
  words_of,
)
from peftjax.compare.metrics import spec_of
from peftjax.compare.records import Record

FAR = 1.5  # a task is far where its loss before training is this many times that on retained data
RETAINED = "retained data (data.retained), evaluated from before the first update (train.eval_first)"


def _compared(summary: Summary) -> list[Row]:
  return [row for row in summary.peft if row.difference]


def reaches_full(summary: Summary, results: Sequence[Record]) -> Verdict:
  """One PEFT method is better than full fine-tuning or matches it."""
  full, rows = reference(summary), _compared(summary)
  if full is None or not rows:
    return untestable("rows of full fine-tuning, as the reference, and of at least one PEFT method")
  reaching = [row for row in rows if words_of([row]) & REACHING]
  return Verdict(
    verdict=decided(bool(reaching), words_of(rows) == {"worse"}),
    **against(summary, best(summary, reaching or rows)),
    runs=runs_of(full, *rows),
    counts="one method that is better than full fine-tuning or matches it",
    reason=each(summary, rows),
  )


def at_a_fraction(summary: Summary, results: Sequence[Record]) -> Verdict:
  """The same, with fewer FLOPs and less time."""
  found = reaches_full(summary, results)
  if found.verdict != SUPPORTED:
    return found
  priced = [row for row in _compared(summary) if words_of([row]) & REACHING and row.flops_ratio is not None]
  if not priced:
    return untestable("FLOPs of a step for every row", "accuracy was compared, cost was not")
  cheap = [
    row for row in priced if (row.flops_ratio or 0) < 1 and (row.step_ratio is None or (row.step_ratio.high or 0) < 1)
  ]
  shown = "; ".join(f"{row.row} {row.flops_ratio:.2f} of the FLOPs{of_the_time(row)}" for row in priced)
  return dataclasses.replace(
    found,
    verdict=SUPPORTED if cheap else CONTRADICTED,
    reason=f"{found.reason}. Cost against full: {shown}",
    counts=f"{found.counts}, with fewer FLOPs a step and less time",
  )


def of_the_time(row: Row) -> str:
  """A row's step time against the reference's, in words."""
  ratio = row.step_ratio
  return f", {ratio.estimate:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] of the time" if ratio else ""


def best_with_data(summary: Summary, results: Sequence[Record]) -> Verdict:
  """With all training examples every PEFT method is worse."""
  full, rows = reference(summary), _compared(summary)
  if full is None or not rows:
    return untestable("rows of full fine-tuning and of PEFT methods on all training examples")
  if any(record.config.get("data", {}).get("train_examples") for record in results):
    return untestable(
      "the same study on all training examples (data.train_examples=0), as the right end of a curve over n",
      "this study trained on a part of the data",
    )
  words = words_of(rows)
  return Verdict(
    verdict=decided(words == {"worse"}, bool(words & REACHING)),
    **against(summary, best(summary, rows)),
    runs=runs_of(full, *rows),
    counts="all methods are worse than full fine-tuning",
    reason=f"on all training examples of this data set: {each(summary, rows)}",
  )


def hybrid(summary: Summary, results: Sequence[Record]) -> Verdict:
  """A hybrid is better than full fine-tuning."""
  full = reference(summary)
  rows = [row for row in summary.rows if row.method.get("name") == "hybrid" and row.difference]
  if full is None or not rows:
    return untestable("a row of the method hybrid beside full fine-tuning and the adapter that it contains")
  words = words_of(rows)
  return Verdict(
    verdict=decided("better" in words, words <= {"worse", "matches"}),
    **against(summary, best(summary, rows)),
    runs=runs_of(full, *rows),
    counts="one hybrid that is better than full fine-tuning",
    reason=each(summary, rows) + ". Staged runs were not made",
  )


def _when_far(favours_full: bool) -> Rule:
  def rule(summary: Summary, results: Sequence[Record]) -> Verdict:
    full, rows = reference(summary), _compared(summary)
    known, task = (summary.dimensions.get("forgetting") or {}).get("before"), _untrained_loss(results)
    if known is None or task is None or full is None or not rows:
      return untestable(f"a task far from the pretraining, by {RETAINED}")
    unit = spec_of("loss", summary.metrics_spec).unit
    distance = f"before training the loss is {task:.2f} {unit} on this task and {known:.2f} on retained data"
    if task < FAR * known:
      return untestable(f"a task whose loss before training is {FAR} times that on retained data", distance)
    words = words_of(rows)
    reaching, behind = bool(words & REACHING), words == {"worse"}
    return Verdict(
      verdict=decided(*((behind, reaching) if favours_full else (reaching, behind))),
      **against(summary, best(summary, rows)),
      runs=runs_of(full, *rows),
      counts="on this one far task "
      + ("all methods are worse than full fine-tuning" if favours_full else "one method is better or matches"),
      reason=f"{distance}; {each(summary, rows)}. One task is one point of the axis",
    )

  return rule


def _untrained_loss(results: Sequence[Record]) -> float | None:
  """The mean validation loss before the first update."""
  paths = [record.trajectory.get("validation", {}) for record in results]
  starts = [path["loss"][0] for path in paths if "loss" in path and path["step"][0] == 0]
  return float(np.mean(starts)) if starts else None


RULES: dict[str, Rule] = {
  "accuracy-comparable-or-superior": reaches_full,
  "comparable-at-fraction": at_a_fraction,
  "full-best-with-data": best_with_data,
  "hybrid-useful": hybrid,
  "full-more-accurate-niche": _when_far(True),
  "full-when-far": _when_far(True),
  "peft-when-far": _when_far(False),
}
