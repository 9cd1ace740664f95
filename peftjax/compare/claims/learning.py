"""Rules for claims about learning: few examples, overfitting, convergence, a rate that is hard to find, forgetting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary, of_seeds
from peftjax.compare.claims.accuracy import RETAINED
from peftjax.compare.claims.verdict import (
  CONTRADICTED,
  REACHING,
  SUPPORTED,
  Rule,
  Verdict,
  against,
  best,
  decided,
  in_metric,
  pefts,
  reference,
  runs_of,
  untestable,
  words_of,
)
from peftjax.compare.dimensions.base import Group, of_largest_size
from peftjax.compare.metrics import SHARE, spec_of
from peftjax.compare.records import Record

CURVE = "a curve over sizes (compare.sizes), 32 to all, for every method"
FEW = (100, 999)  # "a few hundred"
TOLERATED = 0.01  # a rise of the retained loss by less than this share of it is none
CATASTROPHIC = 0.10  # by more than this is a catastrophe


def few_hundred(summary: Summary, results: Sequence[Record]) -> Verdict:
  """A few hundred examples reach what four times as many do."""
  curves = (summary.dimensions.get("data_efficiency") or {}).get("sizes", ())
  few = [one for one in curves if FEW[0] <= one["size"] <= FEW[1]]
  pairs = [(one, more) for one in few for more in curves if more["size"] >= 4 * one["size"]]
  if not pairs:
    return untestable(CURVE + ", with a size of a few hundred and one four times as large")
  small, large = max(pairs, key=lambda pair: (pair[1]["size"], pair[0]["size"]))
  others, found = {row.row: row for row in large["rows"]}, []
  for row in pefts(summary, small["rows"]):
    other = others.get(row.row)
    both = [seed for seed in row.seeds if other and seed in other.seeds]
    if other is not None and len(both) > 1:
      lost = [row.by_seed[row.seeds.index(s)] - other.by_seed[other.seeds.index(s)] for s in both]
      found.append((row, other, of_seeds(lost)))
  if not found:
    return untestable(CURVE + ", with two seeds or more")
  direction, margin = summary.spec.direction, summary.margin
  spans = [sorted(direction * end for end in gap.ends or (gap.estimate,) * 2) for _, _, gap in found]
  row, _, shown = max(found, key=lambda one: direction * one[2].estimate)
  listed = "; ".join(f"{one.row} {fmt.difference(gap, summary.spec)}" for one, _, gap in found)
  return Verdict(
    verdict=decided(any(low > -margin for low, _ in spans), all(high < -margin for _, high in spans)),
    **in_metric(shown, summary, f", {row.row} with {small['size']} examples less with {large['size']}"),
    runs=runs_of(*(one for pair in found for one in pair[:2])),
    counts=f"one method that loses less than the margin against {large['size']} examples",
    reason=f"{small['size']} against {large['size']} examples: {listed}",
  )


def low_data(summary: Summary, results: Sequence[Record]) -> Verdict:
  """With the fewest examples a PEFT method is ahead of full fine-tuning, or crosses it later."""
  held = summary.dimensions.get("data_efficiency")
  if not held or reference(summary) is None:
    return untestable(CURVE + ", with the interval of where the curves cross")
  first = held["sizes"][0]
  rows = [row for row in pefts(summary, first["rows"]) if row.difference]
  if not rows:
    return untestable(CURVE + ", with rows of PEFT methods")
  names, words = {row.row for row in summary.peft}, words_of(rows)
  places = "; ".join(
    f"{one['row']} ahead below {fmt.whole(one['estimate'])} [{fmt.whole(one['low'])}, {fmt.whole(one['high'])}]"
    for one in held["crossovers"]
    if one["row"] in names and one["ahead"] == "below" and one["estimate"]
  )
  return Verdict(
    verdict=decided("better" in words, words == {"worse"}),
    **against(summary, best(summary, rows), f" with {first['size']} examples"),
    runs=runs_of(*rows),
    counts="one method that is better than full fine-tuning with the fewest examples",
    reason="; ".join(f"{row.row} {row.difference.verdict}" for row in rows)
    + f". Crossings: {places or 'none between these sizes'}",
  )


def _gaps(summary: Summary) -> list[Group]:
  return list((summary.dimensions.get("overfitting") or {}).get("groups", ()))


def _of(groups: Sequence[Group], row: str | None) -> Group | None:
  """A row's group at the smallest size."""
  own = [one for one in groups if one.row == row]
  return min(own, key=lambda one: one.size) if own else None


def full_overfits(summary: Summary, results: Sequence[Record]) -> Verdict:
  """Full fine-tuning's training score is better than its validation score with the fewest examples."""
  full = _of(_gaps(summary), summary.reference)
  if full is None or reference(summary) is None or not full.ends:
    return untestable(CURVE + ", with the score on training examples (compare.dimensions)")
  flips = _of((summary.dimensions.get("flips") or {}).get("memorised", ()), summary.reference)
  memorised = f"; memorises {fmt.estimate(flips, SHARE)}% of flipped labels" if flips else ""
  return Verdict(
    verdict=decided(full.ends[0] > 0, full.ends[1] < 0),
    **in_metric(full, summary, f", training less validation, {full.row}"),
    runs=runs_of(full),
    counts="a gap between training and validation above zero",
    reason=f"with {fmt.whole(full.size) if full.size else 'all'} training examples{memorised}",
  )


def less_overfitting(summary: Summary, results: Sequence[Record]) -> Verdict:
  """PEFT's gap is smaller than full fine-tuning's, and it is no worse on other test sets."""
  gaps = [(one, one.difference) for one in pefts(summary, of_largest_size(_gaps(summary))) if one.difference]
  away = pefts(summary, (summary.dimensions.get("shift") or {}).get("groups", ()))
  away = [one for one in of_largest_size(away) if one.difference]
  if reference(summary) is None or not gaps or not away or any(not less.ends for _, less in gaps):
    return untestable(CURVE + ", with the score on training examples and on test sets of other domains (data.shifted)")
  smaller = {one.row for one, less in gaps if less.high < 0}
  sturdy = {one.row for one in away} - {one.row for one in away if one.difference.verdict not in REACHING}
  no_less, behind = all(less.low > 0 for _, less in gaps), words_of(away) == {"worse"}
  one, shown = min(gaps, key=lambda gap: gap[1].estimate)
  listed = "; ".join(f"{one.row} {fmt.difference(less, summary.spec)}" for one, less in gaps)
  words = "; ".join(f"{one.row} on {one.set} {one.difference.verdict}" for one in away)
  return Verdict(
    verdict=decided(bool(smaller & sturdy), no_less or behind),
    **in_metric(shown, summary, f", training less validation, {one.row} less {shown.to}"),
    runs=runs_of(*(one for one, _ in gaps)),
    counts="one method with a smaller gap that is better or matches on every other test set",
    reason=f"gaps against full: {listed}. Other test sets: {words}",
  )


def slower_convergence(summary: Summary, results: Sequence[Record]) -> Verdict:
  """Full fine-tuning needs more updates to 95% of its own gain than the middle PEFT method does."""
  groups = of_largest_size((summary.dimensions.get("convergence") or {}).get("groups", ()))
  full = next((one for one in groups if one.row == summary.reference), None)
  others = sorted(pefts(summary, groups), key=lambda one: one.place)
  if full is None or reference(summary) is None or not others:
    return untestable(
      "scores along training (train.eval_first, train.eval_every), to find the steps to 95% of the gain"
    )
  own, other = full.span, others[len(others) // 2].span
  known = own is not None and other is not None
  listed = "; ".join(
    f"{one.row} {'not reached' if one.estimate is None else format(one.estimate, '.0f')}"
    + (f" ({one.flops / 1e12:.2g} TFLOP)" if one.flops else "")
    for one in (full, *others)
  )
  return Verdict(
    verdict=decided(known and own[0] > other[1], known and own[1] < other[0]),
    effect=full.estimate,
    interval=full.ends,
    unit="updates to 95% of its own gain, full fine-tuning",
    runs=runs_of(full, *others),
    counts="intervals of full fine-tuning's and the middle method's updates that do not overlap",
    reason=listed,
  )


def sensitivity(summary: Summary, results: Sequence[Record]) -> Verdict:
  """Fewer than half of the learning rates tried are within 95% of the best, for the middle PEFT method."""
  needs = "a learning-rate grid of 5 settings or more for every method, with divergences counted (compare.search)"
  if not summary.spec.share:
    return untestable(needs, "95% of the best means nothing for this metric")
  names, shares, diverged = {row.row for row in summary.peft}, {}, 0
  for one in summary.search:
    means = np.array([-np.inf if tried.mean is None else tried.mean for tried in one.rates])
    if len(means) >= 5 and one.row in {*names, summary.reference}:
      shares[one.row] = float(np.mean(means >= 0.95 * max(means)))
      diverged += int(np.isinf(means).sum())
  others = sorted((share, row) for row, share in shares.items() if row in names)
  if not others:
    return untestable(needs)
  share, row = others[len(others) // 2]
  return Verdict(
    verdict=SUPPORTED if share < 0.5 else CONTRADICTED,
    effect=share,
    unit=f"share of the learning rates tried that are within 95% of the best, {row} (the middle method)",
    counts="less than half of a grid of √10 around the best; choices of layers were not compared",
    reason="; ".join(f"{name} {100 * one:.0f}%" for name, one in shares.items()) + f"; {diverged} settings diverged",
  )


def _risen(summary: Summary) -> list[Group]:
  """The rise of each row at the study's largest size."""
  return of_largest_size((summary.dimensions.get("forgetting") or {}).get("groups", ()))


def full_forgets(summary: Summary, results: Sequence[Record]) -> Verdict:
  """Full fine-tuning's retained loss rises, and LoRA's less."""
  full = next((one for one in _risen(summary) if one.row == summary.reference), None)
  loras = {row.row for row in summary.peft if row.method.get("name") == "lora"}
  lora = next((one for one in _risen(summary) if one.row in loras), None)
  less = lora.difference if lora else None
  if full is None or lora is None or reference(summary) is None or less is None or not less.ends or not full.ends:
    return untestable(RETAINED + ", with rows of full fine-tuning and LoRA and two seeds or more")
  loss = spec_of("loss", summary.metrics_spec)
  held = [one for one in summary.dimensions["forgetting"]["matched"] if one["row"] == lora.row]
  matched = max(held, key=lambda one: one["size"], default=None)
  at_match = f"; at the same validation score {fmt.difference(matched['difference'], loss)}" if matched else ""
  return Verdict(
    verdict=decided(full.ends[0] > 0 and less.ends[1] < 0, full.ends[1] <= 0 or less.ends[0] > 0),
    effect=less.estimate,
    interval=less.ends,
    unit=f"{loss.unit} on retained data, rise of {lora.row} less full's",
    runs=runs_of(full, lora),
    counts="a rise in full fine-tuning, and a smaller one with LoRA",
    reason=f"full {fmt.difference(full, loss)}; {lora.row} {fmt.difference(lora, loss)}{at_match}; the base's own "
    "leaves were bit-identical after every run of LoRA",
  )


def _no_rise(share: float, words: str) -> Rule:
  def rule(summary: Summary, results: Sequence[Record]) -> Verdict:
    rows = pefts(summary, _risen(summary))
    if not rows or any(one.ends is None for one in rows):
      return untestable(RETAINED + ", with two seeds or more")
    limit, loss = share * summary.dimensions["forgetting"]["before"], spec_of("loss", summary.metrics_spec)
    shown = max(rows, key=lambda one: one.estimate)
    return Verdict(
      verdict=decided(all(one.high < limit for one in rows), any(one.low > limit for one in rows)),
      effect=shown.estimate,
      interval=shown.ends,
      unit=f"{loss.unit} on retained data, rise of {shown.row}, the highest",
      runs=runs_of(*rows),
      counts=f"all methods rise by less than {share:.0%} of the loss before ({limit:.3f}), {words}",
      reason="; ".join(f"{one.row} {fmt.difference(one, loss)}" for one in rows)
      + ". While an adapter is on; taken off, the base is what it was, as every run checks bit by bit",
    )

  return rule


RULES: dict[str, Rule] = {
  "few-hundred-examples": few_hundred,
  "low-data": low_data,
  "full-overfits-small": full_overfits,
  "less-overfitting": less_overfitting,
  "full-slower-convergence": slower_convergence,
  "hp-sensitivity": sensitivity,
  "forgetting-full": full_forgets,
  "knowledge-retained": _no_rise(TOLERATED, "which counts as kept"),
  "no-forgetting": _no_rise(CATASTROPHIC, "more would be a catastrophe"),
}
