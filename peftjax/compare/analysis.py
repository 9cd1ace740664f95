"""From records to conclusions: the numbers that the table, the report and the claims all show.

Nothing here reads a run: a study's conclusions follow from the lines of its ``results.jsonl`` (and ``timing.json``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from peftjax.compare import statistics
from peftjax.compare.ending import Ending, ending_of
from peftjax.compare.failures import Failures, failures_of
from peftjax.compare.metrics import spec_of, specs_in
from peftjax.compare.records import Bytes, Parameters, Record, StepCost
from peftjax.compare.scores import averages_to, unpack_scores
from peftjax.compare.search import Choice
from peftjax.compare.statistics import LEVEL, QUARTER, Pooled
from peftjax.stored import Stored
from peftjax.tasks.metric import Metric
from peftjax.train.timing import StepTimes, Timing

FEW_SEEDS = 5  # with fewer, rows lend each other what they tell of the spread of seeds, and scores are means
MEAN, MIDDLE = "mean", "interquartile mean"
NOT_PEFT = ("full", "head", "last_k", "frozen")  # methods that are the reference or a baseline


@dataclasses.dataclass(frozen=True)
class Question:
  """What a study set out to compare, fixed before it ran."""

  reference: str = "full"
  baseline: str = "head"
  margin: float = 0.01  # differences smaller than this do not matter
  split: str = "test"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate(Stored):
  """A figure with its 95% interval; the ends are None where one run tells nothing of others."""

  estimate: float
  low: float | None = None
  high: float | None = None

  @property
  def ends(self) -> tuple[float, float] | None:
    """The interval, where there is one."""
    return None if self.low is None or self.high is None else (self.low, self.high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedEstimate(Estimate):
  """A mean over seeds, or the interquartile mean, with each seed's own figure."""

  by_seed: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paired(SeedEstimate):
  """A difference to another row, on the seeds that both have."""

  to: str
  seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference(Paired):
  """A difference that was judged: p-values by `peftjax.compare.statistics`, the word by Holm's correction over rows.

  Attributes:
    mean: of the seeds' differences, where the estimate is the difference of two interquartile means.
  """

  p: float
  p_equivalence: float
  p_sign_flip: float
  p_holm: float
  verdict: str
  mean: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepBytes(Bytes):
  """With the compiled step's temporary buffers less the gradients, which are among them; None where not compiled."""

  activations: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(SeedEstimate):
  """What a study found of one method: its score, and what it costs. None stands for what was not measured.

  Attributes:
    runs, seeds: that the figures rest on.
    mean: of all runs, with the interval that holds where a method's runs are alike.
    bootstrap: the ends of the mean's bootstrap interval, from five seeds on.
    failures: the runs that failed.
    ending: whether training had converged.
    best_rate_inside: whether the search tried lower and higher rates than the one it took; None without a search.
    difference: to the reference; over_baseline: to the baseline.
    flops_per_step: on the summary's `cost_shape`; flops_ratio: over the reference's.
    step_seconds, step_ratio: the median and its ratio to the reference's; interleaved: taken in turns.
    train_seconds, steps: the median over seeds.
  """

  row: str
  method: Mapping[str, Any]
  runs: tuple[str, ...]
  seeds: tuple[int, ...]
  mean: Estimate | None = None
  bootstrap: tuple[float, float] | None = None
  failures: Failures | None = None
  ending: Ending | None = None
  best_rate_inside: bool | None = None
  difference: Difference | None = None
  over_baseline: Difference | None = None
  parameters: Parameters
  bytes: StepBytes
  flops_per_step: float | None = None
  flops_ratio: float | None = None
  step_seconds: float | None = None
  step_ratio: Estimate | None = None
  interleaved: bool = False
  train_seconds: float | None = None
  steps: float | None = None
  learning_rate: float | None = None

  @property
  def is_peft(self) -> bool:
    """Whether it is a PEFT method: no reference and no baseline."""
    return self.method.get("name") not in NOT_PEFT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary(Stored):
  """The study in numbers.

  Attributes:
    metric, metrics_spec: the main metric's name, and what each metric is.
    examples: of the split, where all rows have a score for each.
    location: what rows' estimates are: the mean over runs, or from five seeds on the interquartile mean.
    pooled_seeds: whether rows lent each other their spread over seeds.
    cost_shape: of the batch that FLOPs and temporary bytes are of.
    search: what it found for each row.
    rows: the reference, the baseline, the others by size.
    size: training examples, in a study of several sizes.
    failed: run -> the error's last line.
    environment: where it ran.
    dimensions: name -> conclusion.
  """

  metric: str = ""
  metrics_spec: Mapping[str, Metric] = dataclasses.field(default_factory=dict)
  split: str = "test"
  level: float = LEVEL
  margin: float = 0.0
  reference: str | None = None
  baseline: str | None = None
  seeds: tuple[int, ...] = ()
  location: str = MEAN
  pooled_seeds: bool = False
  cost_shape: str | None = None
  examples: int | None = None
  search: tuple[Choice, ...] = ()
  rows: tuple[Row, ...] = ()
  size: int | None = None
  failed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  dimensions: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def from_json(cls, found: Mapping[str, Any]) -> Self:
    """Also of versions that did not describe their metrics."""
    made = super().from_json(found)
    return dataclasses.replace(made, metrics_spec=specs_in(found, made.metric))

  @property
  def spec(self) -> Metric:
    """The main metric."""
    return spec_of(self.metric, self.metrics_spec)

  def row(self, name: str | None) -> Row | None:
    """A row by its name."""
    return next((row for row in self.rows if row.row == name), None)

  @property
  def peft(self) -> list[Row]:
    """The rows of PEFT methods: of what trains as much as the reference, under whatever name, nothing is efficient."""
    reference = self.row(self.reference)
    most = reference.parameters.trainable if reference else math.inf
    return [row for row in self.rows if row.is_peft and row.parameters.trainable < most]


@dataclasses.dataclass(frozen=True)
class Scores:
  """The scores of one row: a matrix over seeds and examples, or one number a seed where examples have none."""

  seeds: tuple[int, ...]
  values: np.ndarray  # [seeds, examples]; [seeds, 1] where the metric is no average over examples
  binary: bool
  per_example: bool

  def at(self, seeds: Sequence[int]) -> np.ndarray:
    return self.values[[self.seeds.index(seed) for seed in seeds]]


def summarize(
  records: Sequence[Record],
  question: Question,
  timing: Timing | None = None,
  failed: Mapping[str, str] | None = None,
) -> Summary:
  """The study in numbers; what it searched, where it ran and what its dimensions found is added by `study.conclude`.

  Args:
    records: of one size.
    timing: of steps taken in turns.
    failed: run -> error, of trials that have no record.
  """
  order = _ordered(records, question)
  of_row = {row: [record for record in records if record.row == row] for row in order}
  metric, specs = records[0].metric, records[0].metrics_spec
  scores = {row: scores_of(of_row[row], metric, question.split) for row in order}
  single, paired = _pooled(scores)
  trim = trim_of(scores)
  judged = [
    comparisons(scores, against, question.margin, spec_of(metric, specs), paired)
    for against in (question.reference, question.baseline)
  ]
  shape, costs = _costs(of_row)
  reference = costs[question.reference].flops if question.reference in costs else None
  rows = []
  for row, own in of_row.items():
    cost = costs.get(row)
    times = timing.rows.get(row) if timing else None
    rows.append(
      Row(
        row=row,
        method=own[0].method,
        runs=tuple(record.run for record in own),
        seeds=scores[row].seeds,
        **estimate_of(scores[row], spec_of(metric, specs), single, trim),
        **_of_all_runs(scores[row], spec_of(metric, specs), single),
        failures=failures_of(own, spec_of(metric, specs), question.split, question.margin, failed),
        ending=ending_of(own),
        difference=judged[0].get(row),
        over_baseline=judged[1].get(row),
        parameters=own[0].parameters,
        bytes=StepBytes(**vars(own[0].bytes), activations=_activations(own[0], cost)),
        flops_per_step=cost.flops if cost else None,
        flops_ratio=cost.flops / reference if cost and reference else None,
        **_times(own, times),
        train_seconds=_typical([record.train_seconds for record in own]),
        steps=_typical([record.steps for record in own]),
        learning_rate=own[0].learning_rate,
      )
    )
  examples = {score.values.shape[1] for score in scores.values() if score.per_example}
  return Summary(
    metric=metric,
    metrics_spec=specs,
    split=question.split,
    margin=question.margin,
    reference=question.reference if question.reference in of_row else None,
    baseline=question.baseline if question.baseline in of_row else None,
    seeds=tuple(sorted({record.seed for record in records})),
    location=MIDDLE if trim else MEAN,
    pooled_seeds=paired is not None,
    cost_shape=shape,
    examples=examples.pop() if len(examples) == 1 else None,
    rows=tuple(rows),
  )


def _ordered(records: Sequence[Record], question: Question) -> list[str]:
  """The reference, the baseline, then the other rows from the smallest to the largest."""
  sizes = {record.row: record.parameters.trainable for record in records}
  first = [row for row in (question.reference, question.baseline) if row in sizes]
  return list(dict.fromkeys([*first, *sorted(sizes, key=lambda row: (sizes[row], row))]))


def scores_of(records: Sequence[Record], metric: str, split: str) -> Scores:
  """The scores of one row's records on a split: of every example, where all records hold them."""
  records = sorted(records, key=lambda record: record.seed)
  seeds = tuple(record.seed for record in records)
  stored = [record.scores.get(split) for record in records]
  packed = [one for one in stored if one and averages_to(one) == metric]
  matrix = [unpack_scores(one) for one in packed]
  sizes = {len(row) for row in matrix}
  if len(matrix) == len(records) and len(sizes) == 1 and sizes != {1}:  # one example tells nothing of others
    return Scores(seeds, np.stack(matrix), binary=packed[0]["kind"] == "bits", per_example=True)
  values = [record.score(split, metric) for record in records]
  return Scores(seeds, np.array([[np.nan if one is None else one] for one in values]), False, False)


def _pooled(scores: Mapping[str, Scores]) -> tuple[Pooled, Pooled] | tuple[None, None]:
  """What all rows tell of the seeds' spread, where there are too few seeds to learn it from one row."""
  seeds = max((score.seeds for score in scores.values()), key=len, default=())
  averages = [score.values.mean(axis=1) for score in scores.values() if score.seeds == seeds]
  if not 2 <= len(seeds) < FEW_SEEDS or (len(averages) - 1) * (len(seeds) - 1) < 3 or not np.isfinite(averages).all():
    return None, None
  return statistics.pool_seeds(np.stack(averages))


def trim_of(scores: Mapping[str, Scores]) -> float:
  """The share of runs that estimates leave out at each end: a quarter, where some row has five seeds or more."""
  return QUARTER if max((len(score.seeds) for score in scores.values()), default=0) >= FEW_SEEDS else 0.0


def estimate_of(scores: Scores, spec: Metric, pooled: Pooled | None = None, trim: float = 0.0) -> dict[str, Any]:
  """{"estimate", "low", "high", "by_seed"} of a row's scores; a share's interval ends at 0 and 1."""
  by_seed = scores.values.mean(axis=1)
  if not scores.per_example:
    found = vars(of_seeds(by_seed, trim))
    return {**found, **{name: None if found[name] is None else spec.within(found[name]) for name in ("low", "high")}}
  method = statistics.accuracy_interval if scores.binary else statistics.mean_interval
  interval = method(scores.values, pooled=pooled, trim=trim)
  return {
    "estimate": float(interval.estimate),
    "low": _finite(spec.within(float(interval.low))),
    "high": _finite(spec.within(float(interval.high))),
    "by_seed": tuple(by_seed.tolist()),
  }


def _of_all_runs(scores: Scores, spec: Metric, pooled: Pooled | None) -> dict[str, Any]:
  """{"mean", "bootstrap"} of a row's scores."""
  found = estimate_of(scores, spec, pooled)
  mean, bootstrap = Estimate(**{name: found[name] for name in ("estimate", "low", "high")}), None
  if scores.per_example and len(scores.seeds) >= FEW_SEEDS:
    drawn = statistics.bootstrap_interval(scores.values)
    bootstrap = (float(drawn.low), float(drawn.high))
  return {"mean": mean, "bootstrap": bootstrap}


def of_seeds(values: Sequence[float] | np.ndarray, trim: float = 0.0) -> SeedEstimate:
  """The mean of one number a seed with Student's interval; `trim` is that of `statistics.spread`."""
  numbers = np.asarray(values, dtype=np.float64)
  if not len(numbers):
    return SeedEstimate(estimate=float("nan"))
  made = statistics.seed_interval(numbers, trim=trim)
  return SeedEstimate(
    estimate=float(made.estimate),
    low=_finite(made.low),
    high=_finite(made.high),
    by_seed=tuple(numbers.tolist()),
  )


def comparisons(
  scores: Mapping[str, Scores], against: str, margin: float, spec: Metric, pooled: Pooled | None = None
) -> dict[str, Difference]:
  """Every row but `against` with it, on the seeds that both have; one family for Holm's correction."""
  if against not in scores:
    return {}
  base, trim = scores[against], trim_of(scores)
  found: dict[str, dict[str, Any]] = {}
  for row, own in scores.items():
    seeds = tuple(seed for seed in base.seeds if seed in own.seeds)
    if row == against or not seeds or own.values.shape[1] != base.values.shape[1]:
      continue
    a, b = own.at(seeds), base.at(seeds)
    interval = statistics.difference_interval(a, b, pooled=pooled, trim=trim)
    known = len(seeds) > 1 or own.per_example
    found[row] = {
      "to": against,
      "estimate": float(interval.estimate),
      "low": _finite(interval.low) if known else None,
      "high": _finite(interval.high) if known else None,
      "p": float(statistics.difference_p(a, b, pooled, trim)),
      "p_equivalence": float(statistics.equivalence_p(a, b, margin, pooled, trim)),
      "p_sign_flip": float(statistics.sign_flip_p((a - b).mean(axis=1))),
      "seeds": seeds,
      "by_seed": tuple((a - b).mean(axis=1).tolist()),
      "mean": float((a - b).mean()),
    }
  if not found:
    return {}
  adjusted = statistics.holm(np.array([one["p"] for one in found.values()]))
  equivalence = statistics.holm(np.array([one["p_equivalence"] for one in found.values()]))
  gains = spec.direction * np.array([one["estimate"] for one in found.values()])
  words = statistics.verdict(gains, adjusted, equivalence)
  return {
    row: Difference(**one, p_holm=float(p), verdict=str(word))
    for (row, one), p, word in zip(found.items(), adjusted, words)
  }


def _times(records: Sequence[Record], timed: StepTimes | None) -> dict[str, Any]:
  if timed is None:
    return {"step_seconds": _typical([record.step_seconds for record in records])}
  ratio = None
  if timed.ratio is not None:
    ratio = Estimate(estimate=timed.ratio, low=timed.ratio_low, high=timed.ratio_high)
  return {"step_seconds": timed.median, "step_ratio": ratio, "interleaved": True}


def _typical(values: Sequence[float | None]) -> float | None:
  known = [value for value in values if value is not None]
  return float(np.median(known)) if known else None


def _costs(of_row: Mapping[str, Sequence[Record]]) -> tuple[str | None, dict[str, StepCost]]:
  """(shape of batch, each row's cost of a step on it): the largest shape that every row has compiled."""
  compiled = {row: {shape: cost for record in own for shape, cost in record.compiled.items()}
              for row, own in of_row.items()}  # fmt: skip
  compiled = {row: shapes for row, shapes in compiled.items() if shapes}  # a frozen row compiles no step
  common = set.intersection(*(set(shapes) for shapes in compiled.values())) if compiled else set()
  if not common:
    return None, {}
  largest = max(common, key=lambda shape: (max(shapes[shape].flops for shapes in compiled.values()), shape))
  return largest, {row: shapes[largest] for row, shapes in compiled.items()}


def _activations(record: Record, cost: StepCost | None) -> float | None:
  return max(cost.temp_bytes - record.bytes.gradients, 0) if cost else None


def _finite(value: Any) -> float | None:
  return float(value) if np.isfinite(value) else None
