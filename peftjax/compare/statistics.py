"""What a study may conclude from a few seeds and one test set: intervals, paired tests, verdicts.

Scores are arrays ``[..., seeds, examples]``: one number for each test example under each seed, usually 1.0 where the
prediction was right. Leading axes are batches of independent studies, which is how the tests check coverage on
thousands at once. Two things are random: the seeds that were drawn, and the examples that happen to be in the test
set. The model is the crossed one,

    x[s, e] = mean + seed[s] + example[e] + rest[s, e],
    Var(average) = Var(seed) / S + Var(example) / E + Var(rest) / (S E),

and every interval here speaks of new seeds *and* new examples. The variance of the seeds is known from S - 1 degrees of
freedom only, so that it gets Student's quantile, that of the examples its own, and the two half-widths add as squares
(the method of variance estimates recovery; Zou & Donner 2008, eq. 2; Graybill & Wang 1980):

    half^2 = t[S-1]^2 Var_hat(seed part) + t[E-1]^2 Var_hat(example part).

That is enough while the runs of a method are alike. Where one run in seven fails, five runs often show no failure, and
no interval of the mean can cover what was not seen. From five seeds on a study therefore speaks of the interquartile
mean, the mean of the middle half of the runs (Agarwal et al. 2021, section 4.3), by the arguments `trim` here: its seed
part is Yuen's (1974), after Tukey & McLaughlin (1963), of runs with each tail drawn in to the last one that is kept,

    Var_hat(seed part) = (S - 1) s_winsorised^2 / (h (h - 1)),    h = S - 2 floor(trim S),    t[h - 1],

of a difference the same of paired runs (Wilcox 2012, chapter 5), and its example part that of the runs that are kept.
``python -m experiments.coverage`` simulates both; docs/compare.md has the table.

With two or three seeds intervals must be wide: two runs hardly tell how much runs differ. A study of several methods
may lend each of them what all of them tell (`pool_seeds`): the variance is then the larger of the method's own and the
pooled one. With two seeds intervals become a third as wide and still cover at 95%, averaged over the methods; those of
a method whose runs differ much more than the others' cover less.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.floating[Any]]

LEVEL = 0.95
QUARTER = 0.25  # of the runs that the interquartile mean leaves out at each end
WORDS = ("better", "worse", "matches", "inconclusive")


@dataclasses.dataclass(frozen=True)
class Interval:
  """An estimate and the ends of its interval, each of the batch's shape."""

  estimate: Array
  low: Array
  high: Array


@dataclasses.dataclass(frozen=True)
class Spread:
  """The average of scores and the two parts of its sampling variance, each of the batch's shape or a number.

  The average is over all runs, or over the middle ones.
  """

  mean: Array
  seed_variance: Array  # of the average, from the spread of the seeds' averages; 0 with one seed
  example_variance: Array  # of the average, from the spread of the examples' averages, less what seeds already count
  seeds: int
  examples: int
  seed_freedom: Array  # degrees of freedom of `seed_variance`
  least: Array | float = 0.0  # variance of the average of the examples alone, below which no interval goes

  def squared_half_width(self, alpha: Array | float) -> Array:
    """The square of the half-width of a two-sided interval that misses with probability `alpha`."""
    seed_t = special.stdtrit(self.seed_freedom, np.asarray(alpha) / 2) if self.seeds > 1 else np.zeros_like(alpha)
    example_t = special.stdtrit(max(self.examples - 1, 1), np.asarray(alpha) / 2)
    both = seed_t**2 * self.seed_variance + example_t**2 * self.example_variance
    return np.maximum(both, example_t**2 * self.least)


@dataclasses.dataclass(frozen=True)
class Pooled:
  """What all methods of a study together tell of the variance over seeds, each of the batch's shape."""

  variance: Array  # of one run's score, or of the difference of two runs' under one seed
  freedom: Array  # degrees of freedom


# Intervals --------------------------------------------------------------------------------------------------------


def spread(scores: Array, trim: float = 0.0) -> Spread:
  """The average of ``scores [..., S, E]`` over seeds and examples, and its variance, split between the two.

  The residual variance is part of both the spread of the seeds' averages and that of the examples' averages; it is
  taken out of the second, so that it counts once. With one seed all of it is in the second.

  Args:
    trim: the share of the runs that is left out at each end, by their own averages, rounded down to whole runs.
  """
  scores = np.asarray(scores, dtype=np.float64)
  return _spread(scores, _middle(scores.mean(-1), trim))


@dataclasses.dataclass(frozen=True)
class _Middle:
  """The runs that a trimmed mean keeps."""

  weights: Array  # [..., S]: 1 / kept for each run that is kept, else 0
  drawn_in: Array  # [..., S]: the runs' averages, each tail at the value of the last run that is kept
  kept: int

  def less(self, other: _Middle) -> _Middle:
    return _Middle(self.weights - other.weights, self.drawn_in - other.drawn_in, self.kept)


def _middle(averages: Array, trim: float) -> _Middle:
  seeds = averages.shape[-1]
  cut = int(trim * seeds)
  order = np.argsort(averages, axis=-1, kind="stable")
  ranked = np.take_along_axis(averages, order, -1)
  weights = np.zeros_like(averages)
  np.put_along_axis(weights, order[..., cut : seeds - cut], 1 / (seeds - 2 * cut), -1)
  drawn_in = np.clip(averages, ranked[..., cut, None], ranked[..., seeds - cut - 1, None])
  return _Middle(weights, drawn_in, seeds - 2 * cut)


def _spread(scores: Array, middle: _Middle, by_example: Array | None = None) -> Spread:
  """The spread of ``scores [..., S, E]``; `by_example` is their weighted average over seeds, where it is known."""
  seeds, examples = scores.shape[-2:]
  by_seed = scores.mean(-1)
  if by_example is None:
    by_example = np.einsum("...s,...se->...e", middle.weights, scores)
  mean = by_example.mean(-1)
  of_examples = by_example.var(-1, ddof=1) / examples if examples > 1 else np.zeros_like(mean)
  if seeds == 1:
    return Spread(mean, np.zeros_like(mean), of_examples, seeds, examples, np.zeros_like(mean))
  kept = middle.kept
  of_seeds = (seeds - 1) * middle.drawn_in.var(-1, ddof=1) / (kept * max(kept - 1, 1))
  rest = scores - by_seed[..., None] - scores.mean(-2, keepdims=True) + scores.mean((-2, -1), keepdims=True)
  rest = np.square(rest).sum((-1, -2)) / ((seeds - 1) * max(examples - 1, 1) * kept * examples)
  return Spread(mean, of_seeds, np.maximum(of_examples - rest, 0), seeds, examples, np.full_like(mean, kept - 1))


def pool_seeds(averages: Array) -> tuple[Pooled, Pooled]:
  """The seed variance of one run's score, and of the difference of two methods' runs, from all methods of a study.

  In the layout of K methods by S seeds, the spread of a method's averages is (MS_seed + (K-1) MS_rest) / K, with
  Satterthwaite's degrees of freedom, and that of paired differences is 2 MS_rest, with (K-1)(S-1): what moves all
  methods under a seed cancels. It holds if all methods' runs differ equally much, so the users of it take the larger of
  this and the method's own.

  Args:
    averages: ``[..., K, S]``, each method's score under each seed; K > 1, S > 1.
  """
  averages = np.asarray(averages, dtype=np.float64)
  rows, seeds = averages.shape[-2:]
  by_row, by_seed = averages.mean(-1, keepdims=True), averages.mean(-2, keepdims=True)
  seed_square = rows * by_seed[..., 0, :].var(-1, ddof=1)
  rest = averages - by_row - by_seed + averages.mean((-2, -1), keepdims=True)
  rest_square = np.square(rest).sum((-2, -1)) / ((rows - 1) * (seeds - 1))
  parts = seed_square / rows, (rows - 1) / rows * rest_square
  freedom = (rows - 1) * (seeds - 1)
  together = parts[0] ** 2 / (seeds - 1) + parts[1] ** 2 / freedom
  with np.errstate(divide="ignore", invalid="ignore"):
    satterthwaite = np.where(together > 0, (parts[0] + parts[1]) ** 2 / together, rows * (seeds - 1))
  return Pooled(parts[0] + parts[1], satterthwaite), Pooled(2 * rest_square, np.full_like(rest_square, freedom))


def _lent(parts: Spread, pooled: Pooled | None) -> Spread:
  """The spread with the larger of its own seed variance and the pooled one, known from the pooled freedom."""
  if pooled is None or parts.seeds == 1:
    return parts
  larger = np.maximum(parts.seed_variance, pooled.variance / parts.seeds)
  return dataclasses.replace(parts, seed_variance=larger, seed_freedom=pooled.freedom)


def _interval(parts: Spread, level: float = LEVEL) -> Interval:
  half = np.sqrt(parts.squared_half_width(1 - level))
  return Interval(parts.mean, parts.mean - half, parts.mean + half)


def mean_interval(scores: Array, pooled: Pooled | None = None, trim: float = 0.0) -> Interval:
  """An interval of the expected score over new seeds and new examples.

  Args:
    scores: ``[..., S, E]``, real. With S = 1 the interval speaks of new examples only.
    pooled: what other methods tell of the seeds; see `pool_seeds`.
    trim: see `spread`; the interval is then one of the trimmed mean, of so many of all runs that there could be.
  """
  return _interval(_lent(spread(scores, trim), pooled))


def accuracy_interval(correct: Array, pooled: Pooled | None = None, trim: float = 0.0) -> Interval:
  """As `mean_interval`, for scores that are 0 or 1; the interval stays inside [0, 1] and never has zero width.

  The half-width gives the number of independent examples that would be as informative, and Wilson's interval is
  taken at this effective size (Korn & Graubard 1998, with Wilson's in place of Clopper and Pearson's).

  Args:
    correct: ``[..., S, E]``, zeros and ones.
    pooled: what other methods tell of the seeds; see `pool_seeds`.
    trim: see `spread`.
  """
  parts = _lent(spread(correct, trim), pooled)
  mean, z = parts.mean, special.ndtri(0.5 + LEVEL / 2)
  squared_half = parts.squared_half_width(1 - LEVEL)
  with np.errstate(divide="ignore", invalid="ignore"):
    size = np.where(squared_half > 0, z**2 * mean * (1 - mean) / squared_half, parts.examples)
  size = np.clip(size, 1e-3, parts.examples * parts.seeds)
  centre = (mean + z**2 / (2 * size)) / (1 + z**2 / size)
  half = z / (1 + z**2 / size) * np.sqrt(mean * (1 - mean) / size + z**2 / (4 * size**2))
  return Interval(mean, np.maximum(centre - half, 0), np.minimum(centre + half, 1))


def paired_spread(scores: Array, reference: Array, pooled: Pooled | None = None, trim: float = 0.0) -> Spread:
  """The `spread` of ``scores - reference`` on the same seeds and examples, both ``[..., S, E]``.

  With `trim`, of the difference of the two trimmed means; each leaves out runs of its own.

  Where all scores are 0 or 1, the variance over examples is never below that of two examples that differ, one each
  way: otherwise two methods that agree on a small test set would have a difference of exactly 0 (compare Bonett &
  Price 2012). Of other scores an interval is never narrower than that of the examples alone, with the runs as they
  are: where two seeds happen to agree, what is taken off the examples' part for them would be missing.
  """
  scores, reference = np.asarray(scores, dtype=np.float64), np.asarray(reference, dtype=np.float64)
  one, other = _middle(scores.mean(-1), trim), _middle(reference.mean(-1), trim)
  by_example = np.einsum("...s,...se->...e", one.weights, scores)
  by_example = by_example - np.einsum("...s,...se->...e", other.weights, reference)
  parts = _lent(_spread(scores - reference, one.less(other), by_example), pooled)
  if parts.examples == 1:
    return parts
  if not all(np.isin(one, (0.0, 1.0)).all() for one in (scores, reference)):
    return dataclasses.replace(parts, least=by_example.var(-1, ddof=1) / parts.examples)
  return dataclasses.replace(parts, example_variance=np.maximum(parts.example_variance, 2 / parts.examples**2))


def difference_interval(
  scores: Array, reference: Array, level: float = LEVEL, pooled: Pooled | None = None, trim: float = 0.0
) -> Interval:
  """An interval of the expected ``scores - reference``, paired on seeds and examples, both ``[..., S, E]``.

  With `trim`, of the difference of the trimmed means.
  """
  return _interval(paired_spread(scores, reference, pooled, trim), level)


def seed_interval(values: Array, trim: float = 0.0) -> Interval:
  """Student's interval of the mean of ``values [..., S]``: what one number a seed tells, this test set given.

  With `trim`, Yuen's of the trimmed mean.
  """
  values = np.asarray(values, dtype=np.float64)
  parts = spread(values[..., None], trim)
  if parts.seeds < 2:
    return Interval(parts.mean, np.full_like(parts.mean, -np.inf), np.full_like(parts.mean, np.inf))
  return _interval(parts)


def linearize_ratio(numerator: Array, denominator: Array) -> Array:
  """Scores whose average over examples is a ratio of sums, as F1 or a loss per token is.

  For a seed with ratio R = sum(n) / sum(d), the score of an example is R + (n - R d) / mean(d): its average is R and
  its spread that of the ratio to first order (the delta method; Cochran 1977, eq. 6.10).

  Args:
    numerator: ``[..., S, E]``; for F1 twice the true positives.
    denominator: ``[..., S, E]``; for F1 twice the true positives + false positives + false negatives.

  Returns:
    ``[..., S, E]``. A seed whose denominators are all zero has the ratio 0.
  """
  numerator, denominator = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
  size = denominator.mean(-1, keepdims=True)
  size = np.where(size == 0, 1, size)
  ratio = numerator.mean(-1, keepdims=True) / size
  return ratio + (numerator - ratio * denominator) / size


def bootstrap_interval(
  scores: Array, statistic: Callable[[Array], Array] | None = None, draws: int = 2000, seed: int = 0
) -> Interval:
  """The percentile interval of a crossed bootstrap: seeds and examples are drawn anew, each with replacement.

  The two draws are independent and their effects add (the pigeonhole bootstrap of Owen 2007, without its cross term).
  The effect of the seeds is stretched by sqrt(S/(S-1)) t[S-1]/z, because percentiles of few are too narrow (Hesterberg
  2015, section 4.3); that of the examples is shrunk by what the residual adds to both. For an average `mean_interval`
  says the same at once; this one is for statistics that are no average.

  Args:
    scores: ``[S, E]``, or ``[S, E, K]`` where the statistic needs K numbers of each.
    statistic: from averages over seeds and examples, ``[draws]`` or ``[draws, K]``, to ``[draws]``; the average itself
      if left out.
    draws: resamples.
    seed: of the draws.
  """
  scores = np.asarray(scores, dtype=np.float64)
  stacked = np.moveaxis(scores.reshape(*scores.shape[:2], -1), -1, 0)  # [K, S, E]
  seeds, examples = stacked.shape[1:]
  parts = spread(stacked)
  seed_weights, example_weights = _weights(seeds, draws, 2 * seed), _weights(examples, draws, 2 * seed + 1)
  by_example = stacked.mean(1)
  raw = by_example.var(-1) / examples
  shrink = np.sqrt(np.divide(parts.example_variance, raw, out=np.ones_like(raw), where=raw > 0))
  stretch = 0.0
  if seeds > 1:
    stretch = (
      np.sqrt(seeds / (seeds - 1)) * special.stdtrit(seeds - 1, (1 - LEVEL) / 2) / special.ndtri((1 - LEVEL) / 2)
    )
  centre = parts.mean[None]
  drawn = centre + stretch * (seed_weights @ stacked.mean(2).T) + (example_weights @ by_example.T) * shrink
  if scores.ndim == 2:
    drawn, centre = drawn[:, 0], centre[:, 0]
  if statistic is not None:
    drawn, centre = statistic(drawn), statistic(centre)
  low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
  return Interval(centre[0], low, high)


@functools.lru_cache(maxsize=4)
def _weights(count: int, draws: int, seed: int) -> Array:
  """[draws, count]: how much more than its share each of `count` is drawn, in resamples with replacement."""
  drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)
  return (drawn / count - 1 / count).astype(np.float32)


# Tests ------------------------------------------------------------------------------------------------------------


def _two_sided(distance: Array, parts: Spread) -> Array:
  """The smallest alpha whose interval, centred at 0, does not reach `distance`."""
  low, high = np.zeros_like(distance), np.full_like(distance, 12.0)  # -log10 of alpha
  for _ in range(40):
    middle = (low + high) / 2
    outside = parts.squared_half_width(10.0**-middle) < distance**2
    low, high = np.where(outside, middle, low), np.where(outside, high, middle)
  return np.where(distance == 0, 1.0, 10.0**-low)


def difference_p(scores: Array, reference: Array, pooled: Pooled | None = None, trim: float = 0.0) -> Array:
  """The two-sided p-value of "no difference for new seeds and examples": `difference_interval` turned around.

  1.0 with a single seed, which cannot tell how much seeds differ.
  """
  parts = paired_spread(scores, reference, pooled, trim)
  return np.ones_like(parts.mean) if parts.seeds == 1 else _two_sided(np.abs(parts.mean), parts)


def equivalence_p(
  scores: Array, reference: Array, margin: float, pooled: Pooled | None = None, trim: float = 0.0
) -> Array:
  """The p-value of "the difference is at least `margin`", by two one-sided tests (Schuirmann 1987).

  It is below alpha exactly where the 1 - 2 alpha interval lies inside (-margin, margin). 1.0 with a single seed.
  """
  parts = paired_spread(scores, reference, pooled, trim)
  if parts.seeds == 1:
    return np.ones_like(parts.mean)
  room = margin - np.abs(parts.mean)
  one_sided = _two_sided(np.abs(room), parts) / 2
  return np.where(room > 0, one_sided, 1 - one_sided)


def sign_flip_p(differences: Array, seed: int = 0) -> Array:
  """The paired sign-flip test of ``differences [..., S]``, one a seed; two-sided.

  Under "the methods are exchangeable on this test set" every sign is equally likely, so that the p-value is the share
  of the sign patterns whose mean is as far from 0. All 2^S patterns are taken up to S = 14, else 20,000 random ones
  and the observed one. It cannot fall below 2^(1-S): 0.5 with two seeds. It says nothing of other test sets.
  """
  differences = np.asarray(differences, dtype=np.float64)
  seeds = differences.shape[-1]
  if seeds <= 14:
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=seeds)))
  else:
    signs = np.random.default_rng(seed).choice((1.0, -1.0), size=(20000, seeds))
    signs = np.concatenate([np.ones((1, seeds)), signs])
  flipped = np.abs(differences @ signs.T)
  observed = np.abs(differences.sum(-1))[..., None]
  return (flipped >= observed * (1 - 1e-12) - 1e-15).mean(-1)


def holm(p: Array) -> Array:
  """P-values ``[..., K]`` adjusted for K tests at once (Holm 1979): all below alpha may be believed together."""
  p = np.asarray(p, dtype=np.float64)
  count = p.shape[-1]
  order = np.argsort(p, axis=-1)
  stepped = np.take_along_axis(p, order, -1) * (count - np.arange(count))
  stepped = np.minimum(np.maximum.accumulate(stepped, axis=-1), 1)
  adjusted = np.empty_like(stepped)
  np.put_along_axis(adjusted, order, stepped, -1)
  return adjusted


def verdict(difference: Array, p: Array, equivalence: Array) -> NDArray[np.str_]:
  """The word for each comparison with the reference; higher scores are better.

  "matches": the difference is inside the margin, whether it is zero or not. "better" and "worse": it is not zero.
  "inconclusive": neither can be said. The chance of any false word is 1 - `LEVEL`.

  Args:
    difference: estimates, ``[...]``.
    p: `difference_p`, adjusted by `holm` over the comparisons of the study.
    equivalence: `equivalence_p`, adjusted likewise.
  """
  alpha = 1 - LEVEL
  conditions = [equivalence < alpha, (p < alpha) & (difference > 0), (p < alpha) & (difference < 0)]
  return np.select(conditions, ["matches", "better", "worse"], "inconclusive")
