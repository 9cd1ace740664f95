"""Rules for claims about forgetting, from the loss on retained pretraining text."""

from __future__ import annotations

from collections.abc import Sequence

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.claims.accuracy import RETAINED
from peftjax.compare.claims.verdict import Rule, Verdict, decided, pefts, reference, runs_of, untestable
from peftjax.compare.dimensions.base import Group, largest
from peftjax.compare.metrics import spec_of
from peftjax.compare.records import Record

TOLERATED = 0.01  # a rise of the retained loss by less than this share of it is none
CATASTROPHIC = 0.10  # by more than this is a catastrophe


def _risen(summary: Summary) -> list[Group]:
  """The rise of each row at the study's largest size."""
  return largest((summary.dimensions.get("forgetting") or {}).get("groups", ()))


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
    unit=f"{loss.unit} on pretraining text, rise of {lora.row} less full's",
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
      unit=f"{loss.unit} on pretraining text, rise of {shown.row}, the highest",
      runs=runs_of(*rows),
      counts=f"all methods rise by less than {share:.0%} of the loss before ({limit:.3f}), {words}",
      reason="; ".join(f"{one.row} {fmt.difference(one, loss)}" for one in rows)
      + ". While an adapter is on; taken off, the base is what it was, as every run checks bit by bit",
    )

  return rule


RULES: dict[str, Rule] = {
  "forgetting-full": full_forgets,
  "knowledge-retained": _no_rise(TOLERATED, "which counts as kept"),
  "no-forgetting": _no_rise(CATASTROPHIC, "more would be a catastrophe"),
}
