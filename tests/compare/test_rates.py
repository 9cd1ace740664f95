"""Which settings a search tries and takes, on simulated scores; docs/compare.md has the whole table."""

from __future__ import annotations

import numpy as np
import pytest

from experiments import coverage, search_risk
from experiments.search_risk import FAMILIES, Outcome
from peftjax.compare import rates


def test_the_curve_goes_through_a_parabola_and_evens_out_runs():
  places = np.repeat(np.arange(-2.0, 3.0), 3)
  at = np.array([-1.5, 0.0, 1.0])
  np.testing.assert_allclose(rates.curve(places, 0.8 - 0.1 * places**2, at), 0.8 - 0.1 * at**2, atol=0.02)
  noise = np.random.default_rng(0).normal(0, 0.03, (400, len(places)))
  read = np.array([rates.curve(places, one, np.array([0.0]))[0] for one in noise])
  assert read.std() < 0.03 / np.sqrt(3)  # less than the mean of a rate's own three runs


@pytest.mark.parametrize(("budget", "seeds"), [(7, 1), (16, 2), (24, 4), (13, 5)])
def test_the_whole_budget_is_spent_on_different_runs_and_the_best_has_most_seeds(budget, seeds):
  asked = []

  def train(runs):
    asked.extend(runs)
    return [Outcome(0.8 - 0.1 * np.log10(one.rate / 2e-3) ** 2 + 0.003 * seed) for one, seed in runs]

  found = rates.find(train, 1e-3, 10**0.5, budget, seeds, {"train.batch_size": (8,)})
  assert len(asked) == len(set(asked)) == budget == sum(map(len, found.runs.values()))
  assert abs(np.log10(found.best.rate / 2e-3)) < 0.26
  assert len(found.runs[found.best]) == max(map(len, found.runs.values()))


def test_what_a_knob_adds_is_told_from_what_the_rate_does():
  def train(runs):
    return [Outcome(0.7 - 0.1 * np.log10(one.rate) ** 2 + 0.02 * len(one.knobs) + 0.01 * seed) for one, seed in runs]

  found = rates.find(train, 1.0, 10**0.5, 16, 2, {"optim.weight_decay": (0.1,)})
  assert found.best.knobs == (("optim.weight_decay", 0.1),)
  plain = rates.SearchPoint(1.0)
  assert found.values[rates.SearchPoint(1.0, found.best.knobs)] - found.values[plain] == pytest.approx(0.02, abs=1e-6)


def test_where_all_runs_fail_it_looks_at_lower_rates():
  def train(runs):
    return [Outcome(0.8 if one.rate < 0.05 else 0.5 + 1e-3 * one.rate) for one, _ in runs]

  assert rates.find(train, 1.0, 10**0.5, 8, 1, {}).best.rate < 0.05


def test_a_run_that_diverged_counts_as_the_worst_and_its_setting_is_a_last_resort():
  def train(runs):
    return [Outcome(None if one.rate > 0.9 and seed else 0.8 - 0.1 * np.log10(one.rate / 2) ** 2) for one, seed in runs]

  assert rates.find(train, 1.0, 10**0.5, 16, 4, {}).best.rate < 0.9


def test_beside_a_cliff_luck_decides_less_often_than_by_means_at_equal_cost():
  family = FAMILIES["broad, a cliff 0.35 decades above the top"]
  means, curve = (search_risk.risk(family, one, 8, 2, 60)[0] for one in (search_risk.by_means, search_risk.by_curve))
  assert curve < 0.75 * means
  narrow = search_risk.risk(FAMILIES["narrow: 25 points"], search_risk.by_curve, 8, 2, 40)[0]
  assert narrow <= 0.05


def test_the_page_has_the_tables_in_their_places():
  page = coverage.PAGE.read_text()
  made = {name: "|x|" for name in ("coverage", "differences", "groups", "search")}
  assert coverage.written(page, made).count("|x|") == 4
  for name in made:
    table = page.partition(coverage.BEGIN.format(name))[2].partition(coverage.END.format(name))[0]
    assert table.count("| ") > 12, name
