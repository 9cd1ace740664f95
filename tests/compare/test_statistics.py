"""Thousands of simulated studies: intervals cover, tests keep their level, verdicts keep their word."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from experiments import coverage
from peftjax.compare import statistics


def simulate(rng, studies, methods, seeds, examples, seed_spread, mean=1.0):
  """0/1 scores [studies, methods, seeds, examples] of equally good methods, and their true accuracy.

  Examples are easy or hard for every method, methods disagree on some of them, and seeds move all and each method.
  """
  shape = (studies, methods, seeds, examples)
  latent = mean + rng.normal(0, 1.5, (studies, 1, 1, examples)) + rng.normal(0, 0.7, (studies, methods, 1, examples))
  latent = latent + rng.normal(0, seed_spread, (studies, 1, seeds, 1)) + rng.normal(0, seed_spread, (*shape[:3], 1))
  latent = latent + rng.normal(0, 0.7, shape)
  truth = special.ndtr(mean / np.sqrt(2 * seed_spread**2 + 1.5**2 + 0.7**2 + 0.7**2))
  return (latent > 0).astype(np.float32), truth


def covered(interval, truth):
  return float(np.mean((interval.low <= truth) & (truth <= interval.high)))


@pytest.mark.parametrize("seed_spread", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("seeds", [5, 8])
def test_accuracy_intervals_cover(seeds, seed_spread):
  scores, truth = simulate(np.random.default_rng(0), 2000, 1, seeds, 250, seed_spread)
  assert 0.93 <= covered(statistics.accuracy_interval(scores[:, 0]), truth) <= 0.975
  assert 0.93 <= covered(statistics.mean_interval(scores[:, 0]), truth) <= 0.975


@pytest.mark.parametrize("seed_spread", [0.0, 0.05, 0.2])
def test_difference_intervals_cover_at_eight_seeds(seed_spread):
  scores, _ = simulate(np.random.default_rng(1), 2000, 2, 8, 250, seed_spread)
  assert 0.93 <= covered(statistics.difference_interval(scores[:, 0], scores[:, 1]), 0.0) <= 0.975


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("seed_spread", [0.0, 0.1, 0.4])
def test_few_seeds_cover_at_least_nominally(seeds, seed_spread):
  scores, truth = simulate(np.random.default_rng(2), 2000, 2, seeds, 250, seed_spread)
  assert covered(statistics.accuracy_interval(scores[:, 0]), truth) >= 0.945
  assert covered(statistics.difference_interval(scores[:, 0], scores[:, 1]), 0.0) >= 0.945


@pytest.mark.parametrize("seeds", [2, 3])
def test_methods_that_lend_each_other_their_spread_cover_on_average(seeds):
  """Seven methods, some of whose runs differ more than others', by a factor whose logarithm has the spread 0.5."""
  rng = np.random.default_rng(20)
  own_spread = 0.1 * np.exp(rng.normal(0, 0.5, (1200, 7, 1)))
  scores = rng.normal(0, 1, (1200, 7, seeds)) * own_spread + rng.normal(0, 0.1, (1200, 1, seeds))
  scores = scores[..., None] + rng.normal(0, 1.0, (1200, 7, 1, 100))
  alone, paired = statistics.pool_seeds(scores.mean(-1))
  alone, paired = (statistics.Pooled(one.variance[:, None], one.freedom[:, None]) for one in (alone, paired))
  single = statistics.mean_interval(scores, pooled=alone)
  difference = statistics.difference_interval(scores[:, 1:], scores[:, :1], pooled=paired)
  assert 0.94 <= covered(single, 0.0) <= 0.985
  assert 0.94 <= covered(difference, 0.0) <= 0.985
  without = statistics.difference_interval(scores[:, 1:], scores[:, :1])
  narrower = np.median(difference.high - difference.low) / np.median(without.high - without.low)
  assert narrower < (0.5 if seeds == 2 else 0.9)
  p = statistics.holm(statistics.difference_p(scores[:, 1:], scores[:, :1], paired))
  assert np.mean((p < 0.05).any(-1)) <= 0.05


@pytest.mark.parametrize("seeds", [2, 3, 8])
@pytest.mark.parametrize("seed_spread", [0.0, 0.3])
def test_differences_of_scores_that_are_no_zeros_and_ones_cover(seeds, seed_spread):
  """Also among the tenth of the studies whose runs happen to agree best: there the seeds' part is next to nothing, and
  the examples' part alone must hold."""
  rng = np.random.default_rng(23)
  scores = rng.gamma(2.0, 1.0, (4000, 2, 1, 40)) + rng.normal(0, 1.5, (4000, 2, seeds, 40))
  scores = scores + rng.normal(0, seed_spread, (4000, 2, seeds, 1))
  interval = statistics.difference_interval(scores[:, 0], scores[:, 1])
  assert 0.94 <= covered(interval, 0.0) <= (0.975 if seeds == 8 else 1.0)
  apart = (scores[:, 0] - scores[:, 1]).mean(-1).var(-1)
  alike = apart <= np.quantile(apart, 0.1)
  if seed_spread == 0.0:
    assert np.mean(((interval.low <= 0) & (interval.high >= 0))[alike]) >= 0.93


def test_two_seeds_that_agree_leave_the_examples_interval():
  rng = np.random.default_rng(24)
  difference = rng.normal(0.04, 0.12, 40)
  rest = rng.normal(0, 0.1, 40)
  rest -= rest.mean()  # the seeds' differences coincide, those of examples do not
  scores = np.stack([difference + rest, difference - rest])
  interval = statistics.difference_interval(scores, np.zeros_like(scores))
  expected = stats.t.interval(0.95, 39, difference.mean(), stats.sem(difference))
  np.testing.assert_allclose([interval.low, interval.high], expected)
  assert statistics.difference_p(scores, np.zeros_like(scores)) == pytest.approx(
    stats.ttest_1samp(difference, 0).pvalue, rel=1e-4
  )


def test_the_pooled_variance_is_unbiased_and_leaves_out_what_moves_all_methods():
  rng = np.random.default_rng(21)
  averages = rng.normal(0, 0.3, (20000, 5, 3)) + rng.normal(0, 0.7, (20000, 1, 3)) + rng.normal(0, 9, (20000, 5, 1))
  single, paired = statistics.pool_seeds(averages)
  assert single.variance.mean() == pytest.approx(0.3**2 + 0.7**2, rel=0.03)
  assert paired.variance.mean() == pytest.approx(2 * 0.3**2, rel=0.03)
  assert (paired.freedom == 8).all() and (single.freedom >= 2 - 1e-9).all() and (single.freedom <= 10 + 1e-9).all()


def test_a_method_with_a_larger_spread_of_its_own_keeps_it():
  averages = np.array([[0.80, 0.81], [0.80, 0.81], [0.60, 0.90], [0.80, 0.81], [0.80, 0.81]])
  pooled, _ = statistics.pool_seeds(averages)
  wild = np.repeat(averages[2][:, None], 50, axis=1)
  calm = np.repeat(averages[0][:, None], 50, axis=1)
  assert statistics.spread(wild).seed_variance == pytest.approx(0.15**2)
  widths = [np.ptp([i.low, i.high]) for i in (statistics.mean_interval(one, pooled=pooled) for one in (wild, calm))]
  assert widths[0] == pytest.approx(2 * 0.15 * stats.t.ppf(0.975, pooled.freedom))
  assert widths[1] > np.ptp([averages[0].min(), averages[0].max()])


def test_intervals_near_the_end_of_the_scale_stay_inside_and_cover():
  scores, truth = simulate(np.random.default_rng(3), 2000, 1, 8, 400, 0.1, mean=4.0)
  assert truth > 0.98
  interval = statistics.accuracy_interval(scores[:, 0])
  assert interval.low.min() >= 0 and interval.high.max() <= 1
  assert 0.93 <= covered(interval, truth) <= 0.98


def test_a_method_that_is_always_right_has_an_interval():
  interval = statistics.accuracy_interval(np.ones((3, 50)))
  assert interval.low < 0.95 and interval.high == pytest.approx(1.0)
  same = statistics.difference_interval(np.ones((3, 50)), np.ones((3, 50)))
  assert same.low < -0.05 and same.high > 0.05


def test_one_study_of_eight_methods_has_false_wins_at_most_at_its_level():
  rng = np.random.default_rng(4)
  wins = []
  for seed_spread in (0.0, 0.05, 0.2):
    scores, _ = simulate(rng, 700, 8, 8, 150, seed_spread)
    others, reference = scores[:, 1:], scores[:, :1]
    p = statistics.holm(statistics.difference_p(others, reference))
    equivalence = statistics.holm(statistics.equivalence_p(others, reference, 0.01))
    difference = (others - reference).mean((-1, -2))
    words = statistics.verdict(difference, p, equivalence)
    wins.append(np.mean(np.isin(words, ("better", "worse")).any(-1)))
  assert max(wins) <= 0.05


def test_signs_of_seeds_alone_would_win_falsely():
  """Why verdicts do not rest on the sign-flip test: it holds for this test set, and test sets differ."""
  scores, _ = simulate(np.random.default_rng(5), 1500, 2, 8, 250, 0.0)
  difference = scores[:, 0] - scores[:, 1]
  assert np.mean(statistics.sign_flip_p(difference.mean(-1)) < 0.05) > 0.12
  assert np.mean(statistics.difference_p(scores[:, 0], scores[:, 1]) < 0.05) <= 0.055


def test_sign_flip_keeps_its_level_where_only_seeds_differ():
  differences = np.random.default_rng(6).normal(0, 0.01, (4000, 8))
  assert 0.035 <= np.mean(statistics.sign_flip_p(differences) < 0.05) <= 0.06


def test_sign_flip_equals_scipys_exact_permutation_test():
  differences = np.random.default_rng(7).normal(0.3, 1, 7)
  expected = stats.permutation_test(
    (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
  )
  assert statistics.sign_flip_p(differences) == pytest.approx(expected.pvalue)


def test_sign_flip_of_many_seeds_is_drawn_and_agrees():
  differences = np.random.default_rng(8).normal(0.35, 1, 18)
  drawn = statistics.sign_flip_p(differences)
  assert drawn == pytest.approx(statistics.sign_flip_p(differences, seed=1), abs=0.02)
  assert drawn == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.05)


def test_sign_flip_cannot_be_small_with_two_seeds():
  assert statistics.sign_flip_p(np.array([0.2, 0.3])) == 0.5


def test_matches_is_wrong_at_most_at_its_level_on_the_edge_of_the_margin():
  rng = np.random.default_rng(9)
  scores = 0.03 + rng.normal(0, 0.01, (3000, 8, 1)) + rng.normal(0, 0.1, (3000, 1, 300))
  p = statistics.equivalence_p(scores, np.zeros_like(scores), 0.03)
  assert 0.03 <= np.mean(p < 0.05) <= 0.055


def test_equivalence_p_is_the_interval_inside_the_margin():
  rng = np.random.default_rng(10)
  a, b = rng.random((2, 200, 6, 80)) < 0.8
  interval = statistics.difference_interval(a, b, level=0.90)
  inside = (interval.low > -0.07) & (interval.high < 0.07)
  assert 0.05 < inside.mean() < 0.95
  np.testing.assert_array_equal(statistics.equivalence_p(a, b, 0.07) < 0.05, inside)


def test_difference_p_is_the_interval_turned_around():
  rng = np.random.default_rng(11)
  a, b = rng.random((300, 4, 60)) < 0.8, rng.random((300, 4, 60)) < 0.7
  for level in (0.8, 0.95, 0.99):
    interval = statistics.difference_interval(a, b, level)
    outside = (interval.low > 0) | (interval.high < 0)
    np.testing.assert_array_equal(statistics.difference_p(a, b) < 1 - level, outside)


def test_parts_of_the_variance_are_unbiased():
  rng = np.random.default_rng(12)
  seeds, examples = 6, 40
  scores = rng.normal(0, 0.3, (4000, seeds, 1)) + rng.normal(0, 0.8, (4000, 1, examples))
  scores = scores + rng.normal(0, 1.1, (4000, seeds, examples))
  parts = statistics.spread(scores)
  np.testing.assert_allclose(parts.seed_variance.mean(), 0.3**2 / 6 + 1.1**2 / 240, rtol=0.05)
  np.testing.assert_allclose(parts.example_variance.mean(), 0.8**2 / 40, rtol=0.05)
  np.testing.assert_allclose((parts.seed_variance + parts.example_variance).mean(), parts.mean.var(), rtol=0.06)


def test_one_seed_is_never_decisive():
  a, b = np.ones((1, 500)), np.zeros((1, 500))
  assert statistics.difference_p(a, b) == 1 and statistics.equivalence_p(a, a, 0.5) == 1


def test_bootstrap_agrees_with_the_closed_form_and_covers():
  scores, truth = simulate(np.random.default_rng(13), 250, 1, 8, 120, 0.1)
  intervals = [statistics.bootstrap_interval(one[0], draws=600, seed=i) for i, one in enumerate(scores)]
  assert 0.92 <= np.mean([i.low <= truth <= i.high for i in intervals]) <= 0.985
  closed = statistics.mean_interval(scores[:, 0])
  np.testing.assert_allclose(np.mean([i.high - i.low for i in intervals]), np.mean(closed.high - closed.low), rtol=0.04)


def test_bootstrap_of_a_ratio_agrees_with_its_linearisation():
  rng = np.random.default_rng(14)
  denominator = rng.integers(1, 9, (1, 300)) + rng.integers(0, 3, (8, 300))
  numerator = rng.binomial(denominator, np.clip(rng.normal(0.6, 0.2, (1, 300)), 0, 1))
  linear = statistics.mean_interval(statistics.linearize_ratio(numerator, denominator))
  pairs = np.stack([numerator, denominator], -1)
  drawn = statistics.bootstrap_interval(pairs, lambda means: means[:, 0] / means[:, 1], draws=8000)
  np.testing.assert_allclose([linear.low, linear.high], [drawn.low, drawn.high], atol=0.003)
  np.testing.assert_allclose(linear.estimate, drawn.estimate, atol=0.001)


def test_linearize_ratio_keeps_each_seeds_ratio():
  numerator, denominator = np.array([[2.0, 0.0, 4.0], [0.0, 0.0, 0.0]]), np.array([[3.0, 2.0, 4.0], [0.0, 0.0, 0.0]])
  np.testing.assert_allclose(statistics.linearize_ratio(numerator, denominator).mean(-1), [6 / 9, 0])


def test_holm_equals_the_definition():
  p = np.array([[0.01, 0.04, 0.03, 0.005], [0.5, 0.9, 0.2, 0.9]])
  np.testing.assert_allclose(statistics.holm(p), [[0.03, 0.06, 0.06, 0.02], [1, 1, 0.8, 1]])


def test_verdicts():
  words = statistics.verdict(
    np.array([0.02, -0.02, 0.001, 0.001, -0.004]),
    np.array([0.01, 0.01, 0.8, 0.8, 0.001]),
    np.array([0.9, 0.9, 0.01, 0.2, 0.01]),
  )
  assert words.tolist() == ["better", "worse", "matches", "inconclusive", "matches"]


def test_seed_interval_is_students():
  values = np.random.default_rng(15).normal(0.8, 0.02, 5)
  expected = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
  interval = statistics.seed_interval(values)
  np.testing.assert_allclose([interval.low, interval.high], expected)


@pytest.mark.parametrize("seeds", [5, 6, 9])
def test_the_interquartile_means_interval_is_yuens(seeds):
  """scipy's trimmed Welch test against a constant is the one-sample form; one example leaves the seed part alone."""
  values = np.random.default_rng(16).standard_t(2, seeds)
  interval = statistics.seed_interval(values, trim=0.25)
  assert interval.estimate == pytest.approx(stats.trim_mean(values, 0.25))
  expected = stats.ttest_ind(values, np.zeros(seeds), equal_var=False, trim=0.25)
  p = statistics.difference_p(values[:, None], np.zeros((seeds, 1)), trim=0.25)
  assert p == pytest.approx(expected.pvalue, rel=1e-5)
  kept = seeds - 2 * (seeds // 4)
  half = abs(interval.estimate / expected.statistic) * stats.t.ppf(0.975, kept - 1)
  np.testing.assert_allclose([interval.low, interval.high], interval.estimate + np.array([-half, half]), rtol=1e-6)


def test_a_trimmed_difference_is_that_of_the_trimmed_means_and_pairs_runs():
  rng = np.random.default_rng(17)
  shared = rng.normal(0, 1.0, (7, 1))
  a, b = (shared + shift + rng.normal(0, 0.01, (7, 50)) for shift in (0.3, 0.0))
  interval = statistics.difference_interval(a, b, trim=0.25)
  means = [stats.trim_mean(one.mean(-1), 0.25) for one in (a, b)]
  assert interval.estimate == pytest.approx(means[0] - means[1])
  assert interval.high - interval.low < 0.05  # what moves both under a seed cancels


def test_without_trimming_nothing_changes_and_three_runs_lose_none():
  a, b = np.random.default_rng(18).random((2, 20, 3, 40)) < 0.7
  for trim in (0.0, 0.25):
    parts = statistics.spread(a, trim)
    np.testing.assert_allclose(parts.mean, a.mean((-1, -2)))
    np.testing.assert_allclose(parts.seed_variance, a.mean(-1).var(-1, ddof=1) / 3)
    np.testing.assert_allclose(statistics.difference_p(a, b, trim=trim), statistics.difference_p(a, b), rtol=1e-9)


@pytest.mark.parametrize(
  ("family", "mean_misses"), [(coverage.NORMAL, False), (coverage.SKEWED, False), (coverage.FAILING, True)]
)
def test_intervals_cover_where_runs_fail(family, mean_misses):
  """One case of each kind of the table in docs/compare.md."""
  own, mean = coverage.single(family, 6, 400, 600, np.random.default_rng(19))
  assert 0.93 <= own.share <= 0.995
  assert (mean.share < 0.9) == mean_misses


def test_differences_cover_where_one_of_two_methods_fails():
  pair = (coverage.FAILING, coverage.NORMAL)
  own, mean = coverage.difference(pair, 6, 400, 400, np.random.default_rng(22))
  assert 0.93 <= own.share <= 0.995
  assert mean.share < 0.92
