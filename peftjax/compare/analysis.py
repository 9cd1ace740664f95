"""From records to conclusions: the numbers that the table, the report and the claims all show.

Nothing here reads a run: a study's conclusions follow from the lines of its ``results.jsonl`` (and ``timing.json``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from peftjax.compare import statistics
from peftjax.compare.records import Record, averages_to, unpack_scores
from peftjax.compare.statistics import LEVEL, Interval, Pooled

Summary = dict[str, Any]
FEW_SEEDS = 5  # with fewer, rows lend each other what they tell of the spread of seeds


@dataclasses.dataclass(frozen=True)
class Question:
  """What a study set out to compare, fixed before it ran."""

  reference: str = "full"
  baseline: str = "head"
  margin: float = 0.01  # differences smaller than this do not matter
  split: str = "test"


@dataclasses.dataclass(frozen=True)
class Scores:
  """The scores of one row: a matrix over seeds and examples, or one number a seed where examples have none."""

  seeds: tuple[int, ...]
  values: np.ndarray  # [seeds, examples]; [seeds, 1] where the metric is no average over examples
  binary: bool
  per_example: bool

  def at(self, seeds: Sequence[int]) -> np.ndarray:
    return self.values[[self.seeds.index(seed) for seed in seeds]]


def summarize(records: Sequence[Record], question: Question, timing: Mapping[str, Any] | None = None) -> Summary:
  """The study in numbers, ready for JSON.

  Returns:
    "metric", "split", "level", "margin", "reference", "baseline" (None where no record has it), "seeds", "examples",
    "pooled_seeds" (whether rows lent each other their spread over seeds), "cost_shape" (of the batch that FLOPs and
    temporary bytes are of), "search" (empty; a study adds what its search found) and "rows": the reference, the
    baseline, the others by size.
    A row: "row", "method", "runs", "seeds"; "estimate", "low", "high", "by_seed" and "bootstrap" of its score;
    "difference" to the reference and "over_baseline", each {"to", "estimate", "low", "high", "p", "p_holm",
    "p_equivalence", "p_sign_flip", "verdict", "seeds", "by_seed"}; "parameters"; "bytes",
    with "activations" for the compiled step's other temporary buffers; "flops_per_step", "flops_ratio",
    "step_seconds", "step_ratio" {"estimate", "low", "high"}, "interleaved", "train_seconds", "steps", "learning_rate".
    None stands for what was not measured.
  """
  rows = _ordered(records, question)
  of_row = {row: [record for record in records if record["row"] == row] for row in rows}
  metric = records[0]["metric"] if records else "accuracy"
  scores = {row: scores_of(of_row[row], metric, question.split) for row in rows}
  single, paired = _pooled(scores)
  differences = comparisons(scores, question.reference, question.margin, paired)
  over_baseline = comparisons(scores, question.baseline, question.margin, paired)
  costs = _costs(of_row)
  reference_flops = costs.get(question.reference, {}).get("flops")
  summaries = []
  for row in rows:
    first, flops = of_row[row][0], costs[row].get("flops")
    summaries.append(
      {
        "row": row,
        "method": first.get("method"),
        "runs": [record["run"] for record in of_row[row]],
        "seeds": list(scores[row].seeds),
        **estimate_of(scores[row], single),
        "difference": differences.get(row),
        "over_baseline": over_baseline.get(row),
        "parameters": first.get("parameters"),
        "bytes": _bytes(first, costs[row]),
        "flops_per_step": flops,
        "flops_ratio": flops / reference_flops if flops and reference_flops else None,
        **_step_times(of_row[row], row, timing),
        "train_seconds": _typical(of_row[row], "train_seconds"),
        "steps": _typical(of_row[row], "steps"),
        "learning_rate": first.get("learning_rate"),
      }
    )
  examples = {score.values.shape[1] for score in scores.values() if score.per_example}
  return {
    "metric": metric,
    "split": question.split,
    "level": LEVEL,
    "margin": question.margin,
    "reference": question.reference if question.reference in rows else None,
    "baseline": question.baseline if question.baseline in rows else None,
    "seeds": sorted({record["seed"] for record in records}),
    "pooled_seeds": paired is not None,
    "cost_shape": next((cost["shape"] for cost in costs.values() if cost), None),
    "examples": examples.pop() if len(examples) == 1 else None,
    "search": [],
    "rows": summaries,
  }


def _ordered(records: Sequence[Record], question: Question) -> list[str]:
  """The reference, the baseline, then the other rows from the smallest to the largest."""
  sizes = {record["row"]: (record.get("parameters") or {}).get("trainable") or 0 for record in records}
  first = [row for row in (question.reference, question.baseline) if row in sizes]
  return list(dict.fromkeys([*first, *sorted(sizes, key=lambda row: (sizes[row], row))]))


def scores_of(records: Sequence[Record], metric: str, split: str) -> Scores:
  """The scores of one row's records on a split: of every example, where all records hold them."""
  records = sorted(records, key=lambda record: record["seed"])
  seeds = tuple(record["seed"] for record in records)
  stored = [(record.get("scores") or {}).get(split) for record in records]
  packed = [one for one in stored if one and averages_to(one) == metric]
  matrix = [unpack_scores(one) for one in packed]
  if len(matrix) == len(records) and len({len(row) for row in matrix}) == 1:
    return Scores(seeds, np.stack(matrix), binary=packed[0]["kind"] == "bits", per_example=True)
  values = np.array([[record["metrics"].get(split, {}).get(metric, np.nan)] for record in records])
  return Scores(seeds, values, binary=False, per_example=False)


def _pooled(scores: Mapping[str, Scores]) -> tuple[Pooled, Pooled] | tuple[None, None]:
  """What all rows tell of the seeds' spread, where there are too few seeds to learn it from one row."""
  seeds = max((score.seeds for score in scores.values()), key=len, default=())
  averages = [score.values.mean(axis=1) for score in scores.values() if score.seeds == seeds]
  if not 2 <= len(seeds) < FEW_SEEDS or (len(averages) - 1) * (len(seeds) - 1) < 3 or not np.isfinite(averages).all():
    return None, None
  return statistics.pool_seeds(np.stack(averages))


def estimate_of(scores: Scores, pooled: Pooled | None = None) -> dict[str, Any]:
  """{"estimate", "low", "high", "by_seed", "bootstrap"} of a row's scores."""
  by_seed = scores.values.mean(axis=1)
  if scores.per_example:
    method = statistics.accuracy_interval if scores.binary else statistics.mean_interval
    interval = method(scores.values, pooled=pooled)
    few = len(scores.seeds) < FEW_SEEDS
    bootstrap = None if few else _ends(statistics.bootstrap_interval(scores.values))
  else:
    interval, bootstrap = statistics.seed_interval(by_seed), None
  return {
    "estimate": _finite(interval.estimate),
    "low": _finite(interval.low),
    "high": _finite(interval.high),
    "by_seed": [_finite(value) for value in by_seed],
    "bootstrap": bootstrap,
  }


def comparisons(
  scores: Mapping[str, Scores], against: str, margin: float, pooled: Pooled | None = None
) -> dict[str, dict[str, Any]]:
  """Every row but `against` with it, on the seeds that both have; one family for Holm's correction."""
  if against not in scores:
    return {}
  base, found = scores[against], {}
  for row, own in scores.items():
    seeds = [seed for seed in base.seeds if seed in own.seeds]
    if row == against or not seeds or own.values.shape[1] != base.values.shape[1]:
      continue
    a, b = own.at(seeds), base.at(seeds)
    interval: Interval = statistics.difference_interval(a, b, pooled=pooled)
    found[row] = {
      "to": against,
      "estimate": float(interval.estimate),
      "low": _finite(interval.low) if len(seeds) > 1 or own.per_example else None,
      "high": _finite(interval.high) if len(seeds) > 1 or own.per_example else None,
      "p": float(statistics.difference_p(a, b, pooled)),
      "p_equivalence": float(statistics.equivalence_p(a, b, margin, pooled)),
      "p_sign_flip": float(statistics.sign_flip_p((a - b).mean(axis=1))),
      "seeds": seeds,
      "by_seed": [float(value) for value in (a - b).mean(axis=1)],
    }
  if found:
    adjusted = statistics.holm(np.array([one["p"] for one in found.values()]))
    equivalence = statistics.holm(np.array([one["p_equivalence"] for one in found.values()]))
    estimates = np.array([one["estimate"] for one in found.values()])
    words = statistics.verdict(estimates, adjusted, equivalence)
    for one, p, word in zip(found.values(), adjusted, words):
      one |= {"p_holm": float(p), "verdict": str(word)}
  return found


def _step_times(records: Sequence[Record], row: str, timing: Mapping[str, Any] | None) -> dict[str, Any]:
  timed = (timing or {}).get("rows", {}).get(row)
  if timed is None:
    return {"step_seconds": _typical(records, "step_seconds"), "step_ratio": None, "interleaved": False}
  ratio = None
  if "ratio" in timed:
    ratio = {"estimate": timed["ratio"], "low": timed["ratio_low"], "high": timed["ratio_high"]}
  return {"step_seconds": timed["median"], "step_ratio": ratio, "interleaved": True}


def _typical(records: Sequence[Record], key: str) -> float | None:
  values = [record[key] for record in records if record.get(key) is not None]
  return float(np.median(values)) if values else None


def _costs(of_row: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, Any]]:
  """Each row's FLOPs and temporary bytes of a step on the largest shape of batch that every row has compiled."""
  compiled = {row: shapes for row, records in of_row.items() if (shapes := _merged(records))}
  common = set.intersection(*(set(shapes) for shapes in compiled.values())) if compiled else set()
  if not common:
    return {row: {} for row in of_row}  # no shape that all have, or a study of frozen rows
  largest = max(common, key=lambda shape: (max(shapes[shape]["flops"] for shapes in compiled.values()), shape))
  return {row: compiled[row][largest] | {"shape": largest} if row in compiled else {} for row in of_row}


def _bytes(record: Record, cost: Mapping[str, Any]) -> dict[str, Any]:
  """The ledger, with "activations": the compiled step's temporary buffers less the gradients, which are among them."""
  held = dict(record.get("bytes") or {})
  if cost.get("temp_bytes") is None or held.get("gradients") is None:
    return held | {"activations": None}
  return held | {"activations": max(cost["temp_bytes"] - held["gradients"], 0)}


def _merged(records: Sequence[Record]) -> dict[str, Any]:
  shapes: dict[str, Any] = {}
  for record in records:
    shapes |= record.get("compiled") or {}
  return shapes


def _ends(interval: Interval) -> list[float]:
  return [float(interval.low), float(interval.high)]


def _finite(value: Any) -> float | None:
  return float(value) if np.isfinite(value) else None
