"""Failed runs: which ones they are, how often they come, and whether a method's runs look like two groups.

A run counts as failed where it diverged, where its score is not above that of always giving the most frequent answer,
and where it lies in the worse of two groups. Full fine-tuning of little data is known for such runs: most of its seeds
end well, some stay where they began (Mosbach et al. 2020, arXiv 2006.04884).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from peftjax.compare.records import Record
from peftjax.compare.statistics import LEVEL
from peftjax.stored import Stored
from peftjax.tasks.metric import Metric

Array = NDArray[np.floating[Any]]

DIVERGED = "diverged"
NO_BETTER = "not above the most frequent answer"
WORSE_GROUP = "in the worse of two groups"
GROUPS_FROM = 5  # runs, from which two groups are looked for
_DRAWS = 20_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoGroups(Stored):
  """That a method's runs look like two groups.

  Attributes:
    p: how rarely normal runs look as much so, or more.
    gap: between the two, in the metric.
    worse: the seeds of the worse one.
  """

  p: float
  gap: float
  worse: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failures(Stored):
  """A method's failed runs, of all that were started.

  Attributes:
    count, started: how many.
    low, high: Clopper and Pearson's 95% interval of their share among new runs.
    runs: run -> why it counts as failed.
    majority: the score of the most frequent answer; None where it is not known.
    groups: where runs look like two groups.
  """

  count: int
  started: int
  low: float
  high: float
  runs: Mapping[str, str] = dataclasses.field(default_factory=dict)
  majority: float | None = None
  groups: TwoGroups | None = None


def share_interval(count: int, of: int) -> tuple[float, float]:
  """Clopper and Pearson's (1934) interval of a probability: it covers at `LEVEL` or more, whatever the probability.

  >>> low, high = share_interval(0, 5)
  >>> low, round(high, 3)
  (0.0, 0.522)
  """
  rest = (1 - LEVEL) / 2
  low = float(special.betaincinv(count, of - count + 1, rest)) if count else 0.0
  high = float(special.betaincinv(count + 1, of - count, 1 - rest)) if count < of else 1.0
  return low, high


def split_ratio(values: Array) -> tuple[Array, NDArray[np.intp]]:
  """(what is left of the sum of squares of ``values [..., S]`` after the best division in two, the lower group's size).

  The division is that of two means in one dimension (Engelman & Hartigan 1969, whose test this is): the ratio is near 1
  where nothing is gained, and near 0 for two tight groups far apart.
  """
  ordered = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
  ordered = ordered - ordered.mean(-1, keepdims=True)
  count = ordered.shape[-1]
  lower = np.arange(1, count)
  sums = np.cumsum(ordered, -1)[..., :-1]
  total = np.square(ordered).sum(-1)
  between = sums**2 * count / (lower * (count - lower))
  best = between.argmax(-1)
  with np.errstate(divide="ignore", invalid="ignore"):
    left = 1 - np.take_along_axis(between, best[..., None], -1)[..., 0] / total
  return np.where(total > 0, left, 1.0), best + 1


@functools.lru_cache(maxsize=64)
def _normal_ratios(count: int) -> Array:
  """The ratios of normal samples of so many, ascending."""
  return np.sort(split_ratio(np.random.default_rng(count).normal(size=(_DRAWS, count)))[0])


def two_groups_p(values: Array) -> Array:
  """How rarely normal ``values [..., S]`` divide into two groups as clearly as these, or more; by simulation."""
  ratios = _normal_ratios(np.shape(values)[-1])
  found = split_ratio(values)[0]
  return (1 + np.searchsorted(ratios, found, side="right")) / (1 + len(ratios))


def two_groups(values: Sequence[float], seeds: Sequence[int], direction: float, margin: float) -> TwoGroups | None:
  """The two groups that a method's runs look like; None where they do not.

  They do from five runs on where `two_groups_p` is below 5% and the gap between them is wider than the margin below
  which differences do not matter. Normal runs do so in at most 5% of all studies, a method at a time; skewed
  and heavy-tailed ones more often (docs/compare.md).
  """
  scores = np.asarray(values, dtype=np.float64)
  if len(scores) < GROUPS_FROM or not np.isfinite(scores).all():
    return None
  p = float(two_groups_p(scores))
  size = int(split_ratio(scores)[1])
  ordered = np.argsort(scores, kind="stable")
  gap = float(scores[ordered[size]] - scores[ordered[size - 1]])
  if p >= 1 - LEVEL or gap <= margin:
    return None
  worse = ordered[:size] if direction > 0 else ordered[size:]
  return TwoGroups(p=p, gap=gap, worse=tuple(sorted(int(seeds[index]) for index in worse)))


def failures_of(
  records: Sequence[Record], spec: Metric, split: str, margin: float, failed: Mapping[str, str] | None = None
) -> Failures:
  """The failed runs of one row at one size.

  Args:
    records: its runs that came to an end.
    spec: the main metric; split: that conclusions rest on.
    margin: below which differences do not matter.
    failed: run -> error, of all trials of the study without a record; those of this row that diverged count.
  """
  first = records[0]
  start = f"{first.row}/n={first.size}/" if first.size else f"{first.row}/seed-"
  runs = {
    run: DIVERGED for run, error in (failed or {}).items() if run.startswith(start) and error.startswith(DIVERGED)
  }
  scores = {record.run: record.score(split, spec.name) for record in records}
  for record in records:
    score, answer = scores[record.run], record.majority.get(split)
    if score is not None and answer is not None and not _above(score, answer, record.examples(split)):
      runs[record.run] = NO_BETTER
  known = [record for record in records if scores[record.run] is not None]
  groups = two_groups(
    [float(scores[record.run] or 0.0) for record in known], [record.seed for record in known], spec.direction, margin
  )
  for record in known:
    if groups and record.seed in groups.worse:
      runs.setdefault(record.run, WORSE_GROUP)
  started = len(records) + sum(why == DIVERGED for why in runs.values())
  low, high = share_interval(len(runs), started)
  return Failures(
    count=len(runs),
    started=started,
    low=low,
    high=high,
    runs=runs,
    majority=first.majority.get(split),
    groups=groups,
  )


def _above(score: float, answer: float, examples: int) -> bool:
  """Whether a share of right answers is above another one by a one-sided binomial test at 5%."""
  right = round(score * examples)
  return bool(special.bdtrc(right - 1, examples, answer) < 0.05) if right else False
