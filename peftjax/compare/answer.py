"""The study's question answered in three sentences, made from its numbers by rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.verdicts import NOT_PEFT

Row = Mapping[str, Any]


def headline(summary: Summary) -> str:
  """The answer in a few words."""
  rows = _candidates(summary)
  reference = summary["reference"]
  if reference is None or not rows:
    return "Nothing to compare yet"
  words = {row["difference"]["verdict"] for row in rows}
  if "better" in words:
    return f"PEFT: {_chosen(rows)['row']} beats {reference} fine-tuning"
  if "matches" in words:
    return f"PEFT: {_chosen(rows)['row']} matches {reference} fine-tuning"
  if words == {"worse"}:
    return f"{reference.capitalize()} fine-tuning: every PEFT method is worse"
  return f"Not decided: this study cannot separate {_chosen(rows)['row']} from {reference} fine-tuning"


def sentences(summary: Summary) -> list[str]:
  """What accuracy says, what follows for the choice, what it costs."""
  rows, metric = _candidates(summary), summary["metric"]
  found = {row["row"]: row for row in summary["rows"]}
  reference = found.get(summary["reference"])
  if reference is None or not rows:
    ranked = sorted(summary["rows"], key=lambda row: -row["estimate"])
    listed = ", ".join(f"{row['row']} {fmt.estimate(row, metric)}" for row in ranked)
    return [f"The study has no pair of full fine-tuning and a PEFT method; {summary['split']} {metric}: {listed}."]
  return [_accuracy(summary, reference, rows), _choice(summary, rows), _cost(reference, _chosen(rows))]


def _candidates(summary: Summary) -> list[Row]:
  return [
    row
    for row in summary["rows"]
    if row["difference"] and row["row"] != summary["baseline"] and (row["method"] or {}).get("name") not in NOT_PEFT
  ]


def _chosen(rows: list[Row]) -> Row:
  """The method that the answer is about: the best of the better ones, else the smallest of those that match, else the
  nearest to the reference."""
  for word in ("better", "matches"):
    fitting = [row for row in rows if row["difference"]["verdict"] == word]
    if fitting and word == "matches":
      return min(fitting, key=lambda row: (row["parameters"] or {}).get("trainable") or 0)
    if fitting:
      return max(fitting, key=lambda row: row["difference"]["estimate"])
  return max(rows, key=lambda row: row["difference"]["estimate"])


def _accuracy(summary: Summary, reference: Row, rows: list[Row]) -> str:
  metric, percent = summary["metric"], "%" if fmt.is_share(summary["metric"]) else ""
  seeds = len(reference["seeds"])
  basis = f"{seeds} seed{'s' if seeds > 1 else ''}"
  if summary["examples"]:
    basis += f" and {fmt.whole(summary['examples'])} {summary['split']} examples"
  chosen = _chosen(rows)
  one = chosen["difference"]
  kind = {"better": "the best PEFT method", "matches": "the smallest that matches"}.get(
    one["verdict"], "the most accurate PEFT method"
  )
  interval = ""
  if one["low"] is not None:
    interval = f" [{fmt.signed(one['low'], metric)}, {fmt.signed(one['high'], metric)}]"
  level = ""
  if reference["low"] is not None:
    level = f" [{fmt.score(reference['low'], metric)}, {fmt.score(reference['high'], metric)}]"
  return (
    f"{summary['reference'].capitalize()} fine-tuning reaches {fmt.score(reference['estimate'], metric)}{percent}"
    f"{level} {metric} over {basis}; {chosen['row']}, {kind}, differs from it by {fmt.signed(one['estimate'], metric)}"
    f"{interval}{fmt.unit(metric)} and reaches {fmt.score(chosen['estimate'], metric)}{percent}."
  )


def _choice(summary: Summary, rows: list[Row]) -> str:
  metric = summary["metric"]
  margin = f"±{fmt.score(summary['margin'], metric)}{fmt.unit(metric)}"
  by_word: dict[str, list[str]] = {}
  for row in rows:
    by_word.setdefault(row["difference"]["verdict"], []).append(row["row"])
  parts = []
  if "better" in by_word:
    parts.append(f"{fmt.names(by_word['better'])} {_verb(by_word['better'], 'is')} better than {summary['reference']}")
  if "matches" in by_word:
    parts.append(f"{fmt.names(by_word['matches'])} {_verb(by_word['matches'], 'matches')} it within {margin}")
  if "worse" in by_word:
    parts.append(f"{fmt.names(by_word['worse'])} {_verb(by_word['worse'], 'is')} worse")
  open_rows = [row for row in rows if row["difference"]["verdict"] == "inconclusive"]
  leaning = [row["row"] for row in open_rows if _leaves_zero_out(row["difference"])]
  undecided = [row["row"] for row in open_rows if row["row"] not in leaning]
  if leaning:
    parts.append(
      f"{fmt.names(leaning)} {_verb(leaning, 'differs')} from it when taken alone, but not after the correction for "
      f"{len(summary['rows']) - 1} comparisons"
    )
  if undecided:
    parts.append(f"{fmt.names(undecided)} can neither be told apart from it nor shown to match it within {margin}")
  below = [row["row"] for row in rows if row["over_baseline"] and row["over_baseline"]["verdict"] != "better"]
  if summary["baseline"] and any(row["over_baseline"] for row in rows):
    beaten = (
      f"all beat the {summary['baseline']} baseline"
      if not below
      else (f"{fmt.names(below)} {_verb(below, 'is')} not shown to beat the {summary['baseline']} baseline")
    )
    parts.append(beaten)
  of = f"Of the {len(rows)} PEFT methods " if len(rows) > 1 else ""
  return of + "; ".join(parts) + "."


def _leaves_zero_out(one: Mapping[str, Any]) -> bool:
  return one["low"] is not None and len(one["seeds"]) > 1 and (one["low"] > 0 or one["high"] < 0)


def _cost(reference: Row, chosen: Row) -> str:
  name, parts = chosen["row"], []
  share = (chosen["parameters"] or {}).get("percent")
  if share is not None:
    parts.append(f"trains {fmt.percent(share)} of the parameters")
  ratio = chosen["step_ratio"]
  if ratio:
    parts.append(f"takes {ratio['estimate']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] of the step time")
  if chosen["flops_ratio"]:
    parts.append(f"{chosen['flops_ratio']:.2f} of the FLOPs")
  held, base = chosen["bytes"] or {}, reference["bytes"] or {}
  if all(one.get(key) is not None for one in (held, base) for key in ("gradients", "optimizer")):
    own, whole = (one["gradients"] + one["optimizer"] for one in (held, base))
    parts.append(f"holds {fmt.size(own)} of gradients and optimizer state instead of {fmt.size(whole)}")
  if held.get("adapter_file") and base.get("adapter_file"):
    parts.append(f"saves {fmt.size(held['adapter_file'])} a task instead of {fmt.size(base['adapter_file'])}")
  if not parts:
    return f"What {name} costs was not measured."
  return f"Against full fine-tuning {name} {fmt.names(parts)}."


def _verb(subjects: list[str], singular: str) -> str:
  if len(subjects) == 1:
    return singular
  return {"is": "are", "matches": "match", "differs": "differ"}[singular]
