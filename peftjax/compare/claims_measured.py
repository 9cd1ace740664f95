"""Rules for claims that rest on a study's dimensions: data, overfitting, forgetting, convergence, and the search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.dimensions.base import interval
from peftjax.compare.dimensions.forgetting import nats
from peftjax.compare.records import Record
from peftjax.compare.verdicts import (
  CONTRADICTED,
  INCONCLUSIVE,
  SUPPORTED,
  Verdict,
  peft,
  reference,
  untestable,
)

CURVE = "a curve over sizes (compare.sizes), 32 to all, for every method"
FORGETTING = "retained pretraining text (data.retained), evaluated from before the first update (train.eval_first)"
TOLERATED = 0.01  # a rise of the retained loss by less than this share of it is none
CATASTROPHIC = 0.10  # by more than this is a catastrophe
FAR = 1.5  # a task is far where its loss before training is this many times that on pretraining text
FEW = (100, 999)  # "a few hundred"

Groups = dict[str, Mapping[str, Any]]


def _dimension(summary: Summary, name: str) -> Mapping[str, Any]:
  return (summary.get("dimensions") or {}).get(name) or {}


def _groups(summary: Summary, name: str, key: str = "groups", smallest: bool = False) -> Groups:
  """row -> a dimension's group at the study's largest size, or at its smallest."""
  held = _dimension(summary, name).get(key) or []
  if not held:
    return {}
  size = (min if smallest else max)(one["size"] for one in held)
  return {one["row"]: one for one in held if one["size"] == size}


def _peft_of(groups: Groups, summary: Summary) -> list[Mapping[str, Any]]:
  names = {row["row"] for row in peft(summary)}
  return [one for row, one in groups.items() if row in names]


def _all_runs(*groups: Mapping[str, Any]) -> list[str]:
  return [run for one in groups for run in one["runs"]]


def few_hundred(summary: Summary, results: Sequence[Record]) -> Verdict:
  """A few hundred examples reach what four times as many do."""
  curves = _dimension(summary, "data_efficiency").get("sizes") or []
  few = [one for one in curves if FEW[0] <= one["size"] <= FEW[1]]
  pairs = [(one, more) for one in few for more in curves if more["size"] >= 4 * one["size"]]
  if not pairs:
    return untestable(CURVE + ", with a size of a few hundred and one four times as large")
  small, large = max(pairs, key=lambda pair: (pair[1]["size"], pair[0]["size"]))
  names, margin = {row["row"] for row in peft(summary)}, summary["margin"]
  found = []
  for row in (one for one in small["rows"] if one["row"] in names):
    other = next((one for one in large["rows"] if one["row"] == row["row"]), None)
    both = [seed for seed in row["seeds"] if other and seed in other["seeds"]]
    if other is not None and len(both) > 1:
      values = [row["by_seed"][row["seeds"].index(s)] - other["by_seed"][other["seeds"].index(s)] for s in both]
      found.append((row, other, interval(values)))
  if not found:
    return untestable(CURVE + ", with two seeds or more")
  near = [one for one in found if one[2]["low"] > -margin]
  far = all(one[2]["high"] < -margin for one in found)
  row, other, shown = max(found, key=lambda one: one[2]["estimate"])
  metric = summary["metric"]
  scale = 100 if fmt.is_share(metric) else 1
  listed = "; ".join(f"{one['row']} {fmt.difference(gap, metric)}" for one, _, gap in found)
  return {
    "verdict": SUPPORTED if near else CONTRADICTED if far else INCONCLUSIVE,
    "effect": scale * shown["estimate"],
    "interval": [scale * shown["low"], scale * shown["high"]],
    "unit": f"{'points of ' if scale == 100 else ''}{metric}, {row['row']} with {small['size']} examples less with "
    f"{large['size']}",
    "runs": _all_runs(*(one for pair in found for one in pair[:2])),
    "counts": f"one method that loses less than the margin against {large['size']} examples",
    "reason": f"{small['size']} against {large['size']} examples: {listed}",
  }


def low_data(summary: Summary, results: Sequence[Record]) -> Verdict:
  """With the fewest examples a PEFT method is ahead of full fine-tuning, or crosses it later."""
  held = _dimension(summary, "data_efficiency")
  if not held or reference(summary) is None:
    return untestable(CURVE + ", with the interval of where the curves cross")
  names, metric = {row["row"] for row in peft(summary)}, summary["metric"]
  rows = [row for row in held["sizes"][0]["rows"] if row["row"] in names and row["difference"]]
  words = [row["difference"]["verdict"] for row in rows]
  if not rows:
    return untestable(CURVE + ", with rows of PEFT methods")
  crossing = [one for one in held["crossovers"] if one["row"] in names and one["ahead"] == "below"]
  places = "; ".join(
    f"{one['row']} ahead below {fmt.whole(one['estimate'])} [{fmt.whole(one['low'])}, {fmt.whole(one['high'])}]"
    for one in crossing
    if one["estimate"]
  )
  shown = max(rows, key=lambda row: row["difference"]["estimate"])
  one, scale = shown["difference"], 100 if fmt.is_share(metric) else 1
  return {
    "verdict": SUPPORTED if "better" in words else CONTRADICTED if set(words) == {"worse"} else INCONCLUSIVE,
    "effect": scale * one["estimate"],
    "interval": None if one["low"] is None else [scale * one["low"], scale * one["high"]],
    "unit": f"{'points of ' if scale == 100 else ''}{metric} with {held['sizes'][0]['size']} examples, {shown['row']} "
    f"less {one['to']}",
    "runs": _all_runs(*rows),
    "counts": "one method that is better than full fine-tuning with the fewest examples",
    "reason": "; ".join(f"{row['row']} {row['difference']['verdict']}" for row in rows)
    + f". Crossings: {places or 'none between these sizes'}",
  }


def full_overfits(summary: Summary, results: Sequence[Record]) -> Verdict:
  """Full fine-tuning's training score is above its validation score with the fewest examples."""
  groups = _groups(summary, "overfitting", smallest=True)
  full = groups.get(summary["reference"] or "")
  if full is None or reference(summary) is None or full["low"] is None:
    return untestable(CURVE + ", with the score on training examples (compare.dimensions)")
  flips = _groups(summary, "flips", "memorised", smallest=True).get(summary["reference"] or "")
  memorised = f"; memorises {fmt.estimate(flips, 'accuracy')}% of flipped labels" if flips else ""
  return _gap(summary, full) | {
    "verdict": SUPPORTED if full["low"] > 0 else CONTRADICTED if full["high"] < 0 else INCONCLUSIVE,
    "runs": _all_runs(full),
    "counts": "a gap between training and validation above zero",
    "reason": f"with {fmt.whole(full['size']) if full['size'] else 'all'} training examples{memorised}",
  }


def _gap(summary: Summary, one: Mapping[str, Any]) -> Verdict:
  metric = summary["metric"]
  scale = 100 if fmt.is_share(metric) else 1
  return {
    "effect": scale * one["estimate"],
    "interval": [scale * one["low"], scale * one["high"]],
    "unit": f"{'points of ' if scale == 100 else ''}{metric}, training less validation, {one['row']}",
  }


def less_overfitting(summary: Summary, results: Sequence[Record]) -> Verdict:
  """PEFT's gap is smaller than full fine-tuning's, and it is no worse on other test sets."""
  needs = CURVE + ", with the score on training examples and on test sets of other domains (data.shifted)"
  gaps = [one for one in _peft_of(_groups(summary, "overfitting"), summary) if one["difference"]]
  away = [one for one in _dimension(summary, "shift").get("groups") or [] if one["difference"]]
  names = {row["row"] for row in peft(summary)}
  away = [one for one in away if one["row"] in names and one["size"] == max(each["size"] for each in away)]
  if reference(summary) is None or not gaps or not away or any(one["difference"]["low"] is None for one in gaps):
    return untestable(needs)
  smaller = {one["row"] for one in gaps if one["difference"]["high"] < 0}
  sturdy = {one["row"] for one in away} - {
    one["row"] for one in away if one["difference"]["verdict"] not in ("better", "matches")
  }
  no_less = all(one["difference"]["low"] > 0 for one in gaps)
  behind = all(one["difference"]["verdict"] == "worse" for one in away)
  shown = min(gaps, key=lambda one: one["difference"]["estimate"])
  listed = "; ".join(f"{one['row']} {fmt.difference(one['difference'], summary['metric'])}" for one in gaps)
  words = "; ".join(f"{one['row']} on {one['set']} {one['difference']['verdict']}" for one in away)
  return _gap(summary, {**shown["difference"], "row": f"{shown['row']} less {shown['difference']['to']}"}) | {
    "verdict": SUPPORTED if smaller & sturdy else CONTRADICTED if no_less or behind else INCONCLUSIVE,
    "runs": _all_runs(*gaps),
    "counts": "one method with a smaller gap that is better or matches on every other test set",
    "reason": f"gaps against full: {listed}. Other test sets: {words}",
  }


def slower_convergence(summary: Summary, results: Sequence[Record]) -> Verdict:
  """Full fine-tuning needs more updates to 95% of its own gain than the middle PEFT method does."""
  groups = _groups(summary, "convergence")
  full, others = groups.get(summary["reference"] or ""), _peft_of(groups, summary)
  if full is None or reference(summary) is None or not others:
    return untestable(
      "scores along training (train.eval_first, train.eval_every), to find the steps to 95% of the gain"
    )
  late = float("inf")
  ranked = sorted(others, key=lambda one: late if one["estimate"] is None else one["estimate"])
  middle = ranked[len(ranked) // 2]

  def ends(one: Mapping[str, Any]) -> tuple[float, float] | None:
    if one["low"] is None:
      return None if one["estimate"] is not None or one["reached"] else (late, late)
    return one["low"], late if one["high"] is None else one["high"]

  own, other = ends(full), ends(middle)
  verdict = INCONCLUSIVE
  if own and other and own[0] > other[1]:
    verdict = SUPPORTED
  elif own and other and own[1] < other[0]:
    verdict = CONTRADICTED
  listed = "; ".join(
    f"{one['row']} {'not reached' if one['estimate'] is None else format(one['estimate'], '.0f')}"
    + (f" ({one['flops'] / 1e12:.2g} TFLOP)" if one["flops"] else "")
    for one in (full, *ranked)
  )
  return {
    "verdict": verdict,
    "effect": full["estimate"],
    "interval": [full["low"], full["high"]] if full["low"] is not None and full["high"] is not None else None,
    "unit": "updates to 95% of its own gain, full fine-tuning",
    "runs": _all_runs(full, *others),
    "counts": "intervals of full fine-tuning's and the middle method's updates that do not overlap",
    "reason": listed,
  }


def forgetting_full(summary: Summary, results: Sequence[Record]) -> Verdict:
  """Full fine-tuning's retained loss rises, and LoRA's less."""
  groups = _groups(summary, "forgetting")
  full = groups.get(summary["reference"] or "")
  lora = [one for one in _peft_of(groups, summary) if _method(summary, one["row"]) == "lora" and one["difference"]]
  if full is None or reference(summary) is None or not lora or lora[0]["difference"]["low"] is None:
    return untestable(FORGETTING + ", with rows of full fine-tuning and LoRA and two seeds or more")
  one, matched = lora[0]["difference"], _groups(summary, "forgetting", "matched").get(lora[0]["row"])
  at_match = f"; at the same validation score {nats(matched['difference'])}" if matched else ""
  less = full["low"] > 0 and one["high"] < 0
  return {
    "verdict": SUPPORTED if less else CONTRADICTED if full["high"] <= 0 or one["low"] > 0 else INCONCLUSIVE,
    "effect": one["estimate"],
    "interval": [one["low"], one["high"]],
    "unit": f"nats a token on pretraining text, rise of {lora[0]['row']} less full's",
    "runs": _all_runs(full, lora[0]),
    "counts": "a rise in full fine-tuning, and a smaller one with LoRA",
    "reason": f"full {nats(full)}; {lora[0]['row']} {nats(lora[0])}{at_match}; the base's own leaves were "
    "bit-identical after every run of LoRA",
  }


def _method(summary: Summary, row: str) -> str:
  return next((one["method"]["name"] for one in summary["rows"] if one["row"] == row and one["method"]), "")


def _no_rise(share: float, words: str) -> Callable[[Summary, Sequence[Record]], Verdict]:
  def rule(summary: Summary, results: Sequence[Record]) -> Verdict:
    rows = _peft_of(_groups(summary, "forgetting"), summary)
    if not rows or any(one["low"] is None for one in rows):
      return untestable(FORGETTING + ", with two seeds or more")
    limit = share * _dimension(summary, "forgetting")["before"]
    below, above = all(one["high"] < limit for one in rows), any(one["low"] > limit for one in rows)
    shown = max(rows, key=lambda one: one["estimate"])
    return {
      "verdict": SUPPORTED if below else CONTRADICTED if above else INCONCLUSIVE,
      "effect": shown["estimate"],
      "interval": [shown["low"], shown["high"]],
      "unit": f"nats a token on pretraining text, rise of {shown['row']}, the highest",
      "runs": _all_runs(*rows),
      "counts": f"all methods rise by less than {share:.0%} of the loss before ({limit:.3f}), {words}",
      "reason": "; ".join(f"{one['row']} {nats(one)}" for one in rows)
      + ". While an adapter is on; taken off, the base "
      "is what it was, as every run checks bit by bit",
    }

  return rule


def _when_far(favours_full: bool) -> Callable[[Summary, Sequence[Record]], Verdict]:
  def rule(summary: Summary, results: Sequence[Record]) -> Verdict:
    rows = [row for row in peft(summary) if row["difference"]]
    known, task = _dimension(summary, "forgetting").get("before"), _untrained_loss(results)
    if known is None or task is None or reference(summary) is None or not rows:
      return untestable("a task far from the pretraining, by " + FORGETTING)
    distance = f"before training the loss is {task:.2f} nats a token on this task and {known:.2f} on pretraining text"
    if task < FAR * known:
      return untestable(f"a task whose loss before training is {FAR} times that on pretraining text", distance)
    words = {row["difference"]["verdict"] for row in rows}
    reaching, behind = bool(words & {"better", "matches"}), words == {"worse"}
    verdict = SUPPORTED if (behind if favours_full else reaching) else INCONCLUSIVE
    if reaching if favours_full else behind:
      verdict = CONTRADICTED
    shown = max(rows, key=lambda row: row["difference"]["estimate"])
    one, metric = shown["difference"], summary["metric"]
    scale, unit = (100, "points of ") if fmt.is_share(metric) else (1, "")
    held = next(row for row in summary["rows"] if row["row"] == summary["reference"])
    return {
      "verdict": verdict,
      "effect": scale * one["estimate"],
      "interval": None if one["low"] is None else [scale * one["low"], scale * one["high"]],
      "unit": f"{unit}{metric}, {shown['row']} less {one['to']}",
      "runs": _all_runs(held, *rows),
      "counts": "on this one far task "
      + ("all methods are worse than full fine-tuning" if favours_full else "one method is better or matches"),
      "reason": f"{distance}; "
      + "; ".join(f"{row['row']} {fmt.difference(row['difference'], metric)}" for row in rows)
      + ". One task is one point of the axis",
    }

  return rule


def _untrained_loss(results: Sequence[Record]) -> float | None:
  """The mean validation loss before the first update."""
  paths = [(record.get("trajectory") or {}).get("validation") or {} for record in results]
  starts = [path["loss"][0] for path in paths if "loss" in path and path["step"][0] == 0]
  return float(np.mean(starts)) if starts else None


def hp_sensitivity(summary: Summary, results: Sequence[Record]) -> Verdict:
  """Fewer than half of the learning rates tried are within 95% of the best, for the middle PEFT method."""
  needs = "a learning-rate grid of 5 settings or more for every method, with divergences counted (compare.search)"
  if not fmt.is_share(summary["metric"]):
    return untestable(needs, "95% of the best means nothing for this metric")
  names, shares, diverged = {row["row"] for row in peft(summary)}, {}, 0
  for one in summary.get("search") or ():
    plain = [tried for tried in one["tried"] if not tried["knobs"]]
    means = [-np.inf if None in tried["scores"] else float(np.mean(tried["scores"])) for tried in plain]
    if len(plain) >= 5 and one["row"] in {*names, summary["reference"]}:
      shares[one["row"]] = float(np.mean(np.array(means) >= 0.95 * max(means)))
      diverged += sum(np.isinf(means))
  others = sorted((share, row) for row, share in shares.items() if row in names)
  if not others:
    return untestable(needs)
  share, row = others[len(others) // 2]
  return {
    "verdict": SUPPORTED if share < 0.5 else CONTRADICTED,
    "effect": share,
    "unit": f"share of the learning rates tried that are within 95% of the best, {row} (the middle method)",
    "counts": "less than half of a grid of √10 around the best; choices of layers were not compared",
    "reason": "; ".join(f"{name} {100 * one:.0f}%" for name, one in shares.items()) + f"; {diverged} settings diverged",
  }


MEASURED: dict[str, Callable[[Summary, Sequence[Record]], Verdict]] = {
  "few-hundred-examples": few_hundred,
  "low-data": low_data,
  "full-overfits-small": full_overfits,
  "less-overfitting": less_overfitting,
  "full-slower-convergence": slower_convergence,
  "forgetting-full": forgetting_full,
  "knowledge-retained": _no_rise(TOLERATED, "which counts as kept"),
  "no-forgetting": _no_rise(CATASTROPHIC, "more would be a catastrophe"),
  "hp-sensitivity": hp_sensitivity,
  "full-more-accurate-niche": _when_far(True),
  "full-when-far": _when_far(True),
  "peft-when-far": _when_far(False),
}
