"""Published claims about full fine-tuning and PEFT, each held against what this study measured.

A claim is judged only where the study holds the measurement that it needs; otherwise its verdict is "not testable
here" and `needs` names the run that would test it. A claim about "PEFT" as a whole says that it *can* do something, so
accuracy claims are supported by one method that does, and contradicted when every method does not; claims about cost
speak of all methods. `counts` tells which reading was taken. Claims about counts and bytes of published models, which
no study changes, have the verdicts of docs/published_figures.md, and `page` names it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.claims_measured import MEASURED
from peftjax.compare.claims_serving import SERVING, modular_switch
from peftjax.compare.records import Record
from peftjax.compare.trials import changes
from peftjax.compare.verdicts import (
  CONTRADICTED,
  INCONCLUSIVE,
  SUPPORTED,
  UNTESTABLE,
  Verdict,
  peft,
  reference,
  runs_of,
  untestable,
)

PAGE = "docs/published_figures.md"
LARGE = 1e9  # bytes of a base beside which a file of a few MB means something


def published() -> list[dict[str, str]]:
  """The claims: id, claim, dimension, measure."""
  return _kept("claims.json")


def _kept(name: str) -> Any:
  return json.loads(resources.files("peftjax.compare").joinpath(name).read_text(encoding="utf-8"))


def judge(summary: Summary, results: Sequence[Record]) -> list[Verdict]:
  """A verdict on every published claim.

  Returns:
    for each claim its id, claim, dimension, measure and "verdict", one of `VERDICTS`; "effect" with "unit" and
    "interval" [low, high] (None where the effect is exact or there is none), "runs" (ids), "counts" (what the verdict
    counts, empty if there is nothing to count), "reason", "needs": the run that would test it, empty if it was, and
    "page": where the verdict is from if not from this study.
  """
  verdicts: list[Verdict] = []
  figures = _kept("published_figures.json")
  for claim in published():
    rule = RULES.get(claim["id"])
    found = rule(summary, results) if rule else None
    if found is None and claim["id"] in figures:
      found = figures[claim["id"]] | {"page": PAGE}
    found = found or untestable(NEEDS[claim["id"]])
    nothing: Verdict = {"effect": None, "unit": "", "interval": None, "runs": [], "counts": "", "needs": "", "page": ""}
    verdicts.append(claim | nothing | found)
  return verdicts


def measured(verdicts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """Those that this study decided: neither from published figures nor without a measurement."""
  return [one for one in verdicts if not one.get("page") and one["verdict"] != UNTESTABLE]


# Parts of rules ---------------------------------------------------------------------------------------------------


def _difference(row: Mapping[str, Any], metric: str) -> Verdict:
  one = row["difference"]
  scale, unit = (100, "points of ") if fmt.is_share(metric) else (1, "")
  return {
    "effect": scale * one["estimate"],
    "interval": None if one["low"] is None else [scale * one["low"], scale * one["high"]],
    "unit": f"{unit}{metric}, {row['row']} less {one['to']}",
  }


def _each(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
  shown = [f"{row['row']} {fmt.difference(row['difference'], metric)} ({row['difference']['verdict']})" for row in rows]
  return "; ".join(shown)


# Rules ------------------------------------------------------------------------------------------------------------


def _accuracy_reaches_full(summary: Summary, results: Sequence[Record]) -> Verdict:
  full, rows = reference(summary), [row for row in peft(summary) if row["difference"]]
  if full is None or not rows:
    return untestable("rows of full fine-tuning, as the reference, and of at least one PEFT method")
  metric = summary["metric"]
  reaching = [row for row in rows if row["difference"]["verdict"] in ("better", "matches")]
  if reaching:
    verdict = SUPPORTED
  else:
    verdict = CONTRADICTED if all(row["difference"]["verdict"] == "worse" for row in rows) else INCONCLUSIVE
  shown = max(reaching or rows, key=lambda row: row["difference"]["estimate"])
  return {
    "verdict": verdict,
    **_difference(shown, metric),
    "runs": runs_of(full, *rows),
    "counts": "one method that is better than full fine-tuning or matches it",
    "reason": _each(rows, metric),
  }


def _comparable_at_a_fraction(summary: Summary, results: Sequence[Record]) -> Verdict:
  found = _accuracy_reaches_full(summary, results)
  if found["verdict"] != SUPPORTED:
    return found
  rows = [row for row in peft(summary) if (row["difference"] or {}).get("verdict") in ("better", "matches")]
  costs = [row for row in rows if row["flops_ratio"] is not None]
  if not costs:
    return untestable("FLOPs of a step for every row", "accuracy was compared, cost was not")
  cheap = [row for row in costs if row["flops_ratio"] < 1 and (row["step_ratio"] or {"high": 0})["high"] < 1]
  shown = "; ".join(f"{row['row']} {row['flops_ratio']:.2f} of the FLOPs{_time(row)}" for row in costs)
  found["reason"] += f". Cost against full: {shown}"
  found["counts"] += ", with fewer FLOPs a step and less time"
  return found | {"verdict": SUPPORTED if cheap else CONTRADICTED}


def _time(row: Mapping[str, Any]) -> str:
  ratio = row["step_ratio"]
  return f", {ratio['estimate']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] of the time" if ratio else ""


def _time_30_50(summary: Summary, results: Sequence[Record]) -> Verdict:
  full = reference(summary)
  rows = [row for row in peft(summary) if row["step_ratio"] and row["difference"]]
  if full is None or not rows:
    return untestable("step times of full fine-tuning and PEFT rows taken in turns (compare.timing_rounds)")
  reach = {row["row"]: row["difference"]["verdict"] for row in rows}
  within = [row for row in rows if row["step_ratio"]["low"] <= 0.7 and row["step_ratio"]["high"] >= 0.5]
  keep = [row for row in within if reach[row["row"]] in ("better", "matches")]
  lose = all(row["step_ratio"]["low"] > 0.7 or reach[row["row"]] == "worse" for row in rows)
  shown = min(keep or rows, key=lambda row: row["step_ratio"]["estimate"])
  ratio = shown["step_ratio"]
  return {
    "verdict": SUPPORTED if keep else CONTRADICTED if lose else INCONCLUSIVE,
    "effect": 1 - ratio["estimate"],
    "interval": [1 - ratio["high"], 1 - ratio["low"]],
    "unit": f"share of the step time saved, {shown['row']} against full",
    "runs": runs_of(full, *rows),
    "counts": "one method whose step takes 30 to 50% less time, for as many steps, and that loses no accuracy",
    "reason": "; ".join(f"{row['row']}{_time(row)[1:]}, accuracy {reach[row['row']]}" for row in rows),
  }


def _energy(summary: Summary, results: Sequence[Record]) -> Verdict:
  full, rows = reference(summary), [row for row in peft(summary) if row["flops_ratio"] is not None]
  if full is None or not rows:
    return untestable("FLOPs of a step for full fine-tuning and PEFT rows, or joules where the machine tells")
  ratios = [row["flops_ratio"] for row in rows]
  shown = rows[int(np.argsort(ratios)[len(ratios) // 2])]
  return {
    "verdict": SUPPORTED if max(ratios) < 1 else CONTRADICTED if min(ratios) >= 1 else INCONCLUSIVE,
    "effect": shown["flops_ratio"],
    "unit": f"FLOPs of a step, {shown['row']} over full (the middle method); joules were not read",
    "runs": runs_of(full, *rows),
    "counts": "all methods, at the same number of steps",
    "reason": "FLOPs stand for energy: " + "; ".join(f"{row['row']} {row['flops_ratio']:.2f}" for row in rows),
  }


def _best_with_data(summary: Summary, results: Sequence[Record]) -> Verdict:
  full, rows = reference(summary), [row for row in peft(summary) if row["difference"]]
  if full is None or not rows:
    return untestable("rows of full fine-tuning and of PEFT methods on all training examples")
  if any((record.get("config") or {}).get("data", {}).get("train_examples") for record in results):
    return untestable(
      "the same study on all training examples (data.train_examples=0), as the right end of a curve over n",
      "this study trained on a part of the data",
    )
  metric, words = summary["metric"], [row["difference"]["verdict"] for row in rows]
  verdict = SUPPORTED if set(words) == {"worse"} else INCONCLUSIVE
  if {"better", "matches"} & set(words):
    verdict = CONTRADICTED
  return {
    "verdict": verdict,
    **_difference(max(rows, key=lambda row: row["difference"]["estimate"]), metric),
    "runs": runs_of(full, *rows),
    "counts": "all methods are worse than full fine-tuning",
    "reason": f"on all training examples of this data set: {_each(rows, metric)}",
  }


def _hybrid(summary: Summary, results: Sequence[Record]) -> Verdict:
  full = reference(summary)
  rows = [row for row in summary["rows"] if (row["method"] or {}).get("name") == "hybrid" and row["difference"]]
  if full is None or not rows:
    return untestable("a row of the method hybrid beside full fine-tuning and the adapter that it contains")
  words = {row["difference"]["verdict"] for row in rows}
  verdict = SUPPORTED if "better" in words else CONTRADICTED if words <= {"worse", "matches"} else INCONCLUSIVE
  return {
    "verdict": verdict,
    **_difference(max(rows, key=lambda row: row["difference"]["estimate"]), summary["metric"]),
    "runs": runs_of(full, *rows),
    "counts": "one hybrid that is better than full fine-tuning",
    "reason": _each(rows, summary["metric"]) + ". Staged runs were not made",
  }


def _adapter_share(summary: Summary, results: Sequence[Record]) -> Verdict:
  shares = _shares(summary)
  if not shares:
    return untestable("adapter files saved beside the size of the base")
  row, share = min(shares, key=lambda one: one[1])
  return {
    "verdict": SUPPORTED if share <= 0.015 else CONTRADICTED,
    "effect": share,
    "unit": f"% of the base's bytes, {row['row']}",
    "runs": runs_of(*(one for one, _ in shares)),
    "counts": "one method at 0.01%, rounded",
    "reason": "; ".join(f"{one['row']} {fmt.percent(value)}" for one, value in shares),
  }


def _adapter_megabytes(summary: Summary, results: Sequence[Record]) -> Verdict | None:
  rows = [row for row, _ in _shares(summary) if row["bytes"]["weights"] >= LARGE]
  if not rows:
    return None  # a small base says nothing of this claim
  files = [row["bytes"]["adapter_file"] for row in rows]
  return {
    "verdict": SUPPORTED if max(files) < 2e7 else CONTRADICTED,
    "effect": max(files) / 1e6,
    "unit": "MB, the largest adapter file",
    "runs": runs_of(*rows),
    "counts": "every file below 20 MB",
    "reason": "; ".join(f"{row['row']} {fmt.size(row['bytes']['adapter_file'])}" for row in rows)
    + f". The base is {fmt.size(rows[0]['bytes']['weights'])}",
  }


def _shares(summary: Summary) -> list[tuple[dict[str, Any], float]]:
  rows = [row for row in peft(summary) if row["bytes"] and row["bytes"].get("adapter_file")]
  return [(row, 100 * row["bytes"]["adapter_file"] / row["bytes"]["weights"]) for row in rows]


def _many_adapters(summary: Summary, results: Sequence[Record]) -> Verdict:
  needs = "switching between adapters on one compiled model (compare.dimensions with 'switching')"
  shares = _shares(summary)
  if not shares:
    return untestable(needs)
  row, _ = min(shares, key=lambda one: one[1])
  base, tasks = row["bytes"]["weights"], 100
  together = base + tasks * row["bytes"]["adapter_file"]
  shown: Verdict = {"effect": together / (tasks * base), "unit": f"bytes for {tasks} tasks over full models'"}
  reason = (
    f"{tasks} tasks take {fmt.size(together)} as one base and adapters of {row['row']}, "
    f"{fmt.size(tasks * base)} as full models; "
  )
  switched = modular_switch(summary, results)
  if switched["verdict"] == UNTESTABLE:
    return untestable(needs, reason + "switching was not measured", **shown, runs=runs_of(row))
  return shown | {
    "verdict": SUPPORTED if switched["verdict"] == SUPPORTED and together < tasks * base / 2 else CONTRADICTED,
    "runs": runs_of(row) + [run for run in switched["runs"] if run not in row["runs"]],
    "counts": "less than half of full models' bytes, and no program is compiled while two adapters take turns",
    "reason": reason + switched["reason"],
  }


def _config_lines(summary: Summary, results: Sequence[Record]) -> Verdict:
  needs = "a study with people; lines of config are all that can be counted"
  full, rows = reference(summary), peft(summary)
  configs = {record["row"]: record["config"] for record in reversed(results) if record.get("config")}
  if full is None or full["row"] not in configs:
    return untestable(needs)
  base = configs[full["row"]] | {"seed": 0}
  differ = {row["row"]: len(changes(base, configs[row["row"]] | {"seed": 0})) for row in rows if row["row"] in configs}
  if not differ:
    return untestable(needs)
  return untestable(
    needs,
    "fields of the config that differ from full fine-tuning's: " + "; ".join(f"{k} {n}" for k, n in differ.items()),
    effect=float(np.median(list(differ.values()))),
    unit="fields that differ, the middle method",
    runs=runs_of(full, *rows),
  )


RULES: dict[str, Callable[[Summary, Sequence[Record]], Verdict | None]] = {  # None: the study says nothing of it
  "storage-0.01pct": _adapter_share,
  "adapter-mb": _adapter_megabytes,
  "single-base-many-adapters": _many_adapters,
  "peft-harder-to-debug": _config_lines,
  "hybrid-useful": _hybrid,
  "full-best-with-data": _best_with_data,
  "comparable-at-fraction": _comparable_at_a_fraction,
  "time-30-50": _time_30_50,
  "accuracy-comparable-or-superior": _accuracy_reaches_full,
  "less-energy": _energy,
  **MEASURED,
  **SERVING,
}

NEEDS = {
  "pet-performance-gap": "a study on a hard generation task, scored by what the model writes (task.generate)",
  "soft-beats-hard-prompt": "a row of the frozen model with a written prompt beside prompt tuning",
}
