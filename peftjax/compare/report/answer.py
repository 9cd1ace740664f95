"""The study's question answered in three sentences, made from its numbers by rule."""

from __future__ import annotations

from collections.abc import Sequence

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import MIDDLE, Difference, Row, Summary

Compared = tuple[Row, Difference]  # a PEFT method and its difference to the reference


def headline(summary: Summary) -> str:
  """The answer in a few words."""
  rows, reference = _compared(summary), summary.reference
  if reference is None or not rows:
    return "Nothing to compare yet"
  words = {one.verdict for _, one in rows}
  name = _chosen(summary, rows)[0].row
  if "better" in words:
    return f"PEFT: {name} beats {reference} fine-tuning"
  if "matches" in words:
    return f"PEFT: {name} matches {reference} fine-tuning"
  if words == {"worse"}:
    return f"{reference.capitalize()} fine-tuning: every PEFT method is worse"
  return f"Not decided: this study cannot separate {name} from {reference} fine-tuning"


def sentences(summary: Summary) -> list[str]:
  """What accuracy says, what follows for the choice, what it costs."""
  rows, reference, spec = _compared(summary), summary.row(summary.reference), summary.spec
  if reference is None or not rows:
    ranked = sorted(summary.rows, key=lambda row: -spec.direction * row.estimate)
    listed = ", ".join(f"{row.row} {fmt.estimate(row, spec)}" for row in ranked)
    return [f"The study has no pair of full fine-tuning and a PEFT method; {summary.split} {summary.metric}: {listed}."]
  chosen = _chosen(summary, rows)
  return [_accuracy(summary, reference, *chosen), _choice(summary, rows), _cost(reference, chosen[0])]


def _compared(summary: Summary) -> list[Compared]:
  return [(row, row.difference) for row in summary.peft if row.difference and row.row != summary.baseline]


def _chosen(summary: Summary, rows: Sequence[Compared]) -> Compared:
  """The method that the answer is about: the best of the better ones, else the smallest of those that match, else the
  nearest to the reference."""
  direction = summary.spec.direction
  better, matching = ([one for one in rows if one[1].verdict == word] for word in ("better", "matches"))
  if matching and not better:
    return min(matching, key=lambda one: one[0].parameters.trainable)
  return max(better or rows, key=lambda one: direction * one[1].estimate)


def _accuracy(summary: Summary, reference: Row, chosen: Row, one: Difference) -> str:
  spec = summary.spec
  percent = "%" if spec.share else ""
  basis = f"{len(reference.seeds)} seed{'s' if len(reference.seeds) > 1 else ''}"
  if summary.location == MIDDLE:
    basis = f"the middle half of {basis}"
  if summary.examples:
    basis += f" and {fmt.whole(summary.examples)} {summary.split} examples"
  kind = {"better": "the best PEFT method", "matches": "the smallest that matches"}
  level = f" [{', '.join(fmt.score_text(end, spec) for end in reference.ends)}]" if reference.ends else ""
  return (
    f"{reference.row.capitalize()} fine-tuning reaches {fmt.score_text(reference.estimate, spec)}{percent}{level} "
    f"{summary.metric} over {basis}; {chosen.row}, {kind.get(one.verdict, 'the most accurate PEFT method')}, differs "
    f"from it by {fmt.difference(one, spec)}{fmt.unit(spec)} and reaches "
    f"{fmt.score_text(chosen.estimate, spec)}{percent}."
  )


def _choice(summary: Summary, rows: Sequence[Compared]) -> str:
  margin = f"±{fmt.score_text(summary.margin, summary.spec)}{fmt.unit(summary.spec)}"
  by_word: dict[str, list[str]] = {}
  for row, one in rows:
    leans = one.ends and len(one.seeds) > 1 and (one.ends[0] > 0 or one.ends[1] < 0)
    by_word.setdefault("leaning" if one.verdict == "inconclusive" and leans else one.verdict, []).append(row.row)
  said = {
    "better": ("is better than " + str(summary.reference), "are better than " + str(summary.reference)),
    "matches": (f"matches it within {margin}", f"match it within {margin}"),
    "worse": ("is worse", "are worse"),
    "leaning": tuple(
      f"{verb} from it when taken alone, but not after the correction for {len(summary.rows) - 1} comparisons"
      for verb in ("differs", "differ")
    ),
    "inconclusive": (f"can neither be told apart from it nor shown to match it within {margin}",) * 2,
  }
  parts = [
    f"{fmt.names(by_word[word])} {phrases[len(by_word[word]) > 1]}" for word, phrases in said.items() if word in by_word
  ]
  over = [(row.row, row.over_baseline) for row, _ in rows if row.over_baseline]
  if summary.baseline and over:
    below = [name for name, one in over if one.verdict != "better"]
    verb = "is" if len(below) == 1 else "are"
    parts.append(
      f"{fmt.names(below)} {verb} not shown to beat the {summary.baseline} baseline"
      if below
      else f"all beat the {summary.baseline} baseline"
    )
  of = f"Of the {len(rows)} PEFT methods " if len(rows) > 1 else ""
  return of + "; ".join(parts) + "."


def _cost(reference: Row, chosen: Row) -> str:
  parts = []
  if chosen.parameters.percent is not None:
    parts.append(f"trains {fmt.percent(chosen.parameters.percent)} of the parameters")
  if ratio := chosen.step_ratio:
    parts.append(f"takes {ratio.estimate:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] of the step time")
  if chosen.flops_ratio:
    parts.append(f"{chosen.flops_ratio:.2f} of the FLOPs")
  own, whole = (row.bytes.gradients + row.bytes.optimizer for row in (chosen, reference))
  parts.append(f"holds {fmt.size(own)} of gradients and optimizer state instead of {fmt.size(whole)}")
  parts.append(
    f"saves {fmt.size(chosen.bytes.adapter_file)} a task instead of {fmt.size(reference.bytes.adapter_file)}"
  )
  return f"Against full fine-tuning {chosen.row} {fmt.names(parts)}."
