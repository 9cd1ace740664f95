"""Which runs failed, how often they come, and when runs look like two groups."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from experiments import coverage
from peftjax.compare import analysis, failures
from peftjax.compare.analysis import Question
from peftjax.compare.records import _majority
from peftjax.compare.scores import pack_scores
from peftjax.tasks.metric import Metric
from tests.compare import synthetic

ONE = {"lora": synthetic.METHODS["lora"]}


def runs(shares, majority=None, examples=400):
  """Records of one row whose runs answer these shares of the test examples rightly."""
  made = synthetic.results(ONE, seeds=len(shares), examples=examples)
  for number, share in enumerate(shares):
    correct = np.arange(examples) < round(share * examples)
    made[number] = dataclasses.replace(
      made[number],
      metrics={"test": {"accuracy": float(correct.mean())}},
      scores={"test": pack_scores({"correct": correct}, synthetic.ACCURACY)},
      majority={} if majority is None else {"test": majority},
    )
  return made


def failed(made, missing=None):
  return analysis.summarize(made, Question(reference="lora"), failed=missing).rows[0].failures


@pytest.mark.parametrize(("count", "of"), [(0, 5), (2, 6), (7, 7)])
def test_the_interval_of_a_share_is_clopper_and_pearsons(count, of):
  expected = stats.binomtest(count, of).proportion_ci(method="exact")
  np.testing.assert_allclose(failures.share_interval(count, of), expected, rtol=1e-9)


def test_runs_that_stay_low_are_two_groups_and_fail():
  found = failed(runs([0.81, 0.52, 0.80, 0.82, 0.53, 0.81]))
  assert found.count == 2 and found.started == 6 and found.groups.worse == (1, 4)
  assert found.runs == dict.fromkeys(("lora/seed-1", "lora/seed-4"), failures.WORSE_GROUP)
  assert found.groups.p < 0.05 and found.groups.gap == pytest.approx(0.27, abs=0.01)
  assert failed(runs([0.80, 0.81, 0.82, 0.83, 0.84, 0.85])).count == 0
  assert failed(runs([0.805, 0.80, 0.80, 0.80, 0.80, 0.80])).count == 0  # inside the margin
  assert failed(runs([0.5, 0.8, 0.8, 0.8])).groups is None  # too few to tell


def test_of_a_metric_of_which_less_is_better_the_higher_group_fails():
  found = failures.two_groups([0.2, 0.21, 0.2, 0.49, 0.2, 0.5], (3, 4, 5, 6, 7, 8), -1.0, 0.01)
  assert found.worse == (6, 8)


def test_runs_no_better_than_the_most_frequent_answer_fail_and_diverged_ones_too():
  made = runs([0.60, 0.63, 0.70], majority=0.6)
  found = failed(made, {"lora/seed-3": "diverged: step 3", "lora/seed-4": "no memory", "full/seed-3": "diverged: x"})
  assert found.runs == {
    "lora/seed-0": failures.NO_BETTER,
    "lora/seed-1": failures.NO_BETTER,
    "lora/seed-3": failures.DIVERGED,
  }
  assert found.count == 3 and found.started == 4
  assert stats.binomtest(round(0.63 * 400), 400, 0.6, alternative="greater").pvalue > 0.05
  assert stats.binomtest(round(0.70 * 400), 400, 0.6, alternative="greater").pvalue < 0.05


def test_the_most_frequent_answer_is_read_from_the_predictions(tmp_path):
  np.savez(tmp_path / "predictions-test.npz", correct=np.ones(5), label=np.array([2, 0, 2, 1, 2]))
  assert _majority(tmp_path, "test", synthetic.ACCURACY) == 0.6
  assert _majority(tmp_path, "test", Metric("loss", "corpus")) is None
  assert _majority(tmp_path, "validation", synthetic.ACCURACY) is None


def test_normal_runs_look_like_two_groups_in_one_study_of_twenty():
  rng = np.random.default_rng(3)
  for seeds in (5, 12):
    alarms = np.mean(failures.two_groups_p(rng.normal(size=(4000, seeds))) < 0.05)
    assert 0.035 <= alarms <= 0.065
  assert coverage.called_groups(coverage.FAILING, 10, 400) > 0.7


def test_the_best_division_is_the_best_of_all():
  values = np.random.default_rng(4).normal(size=9)
  ordered = np.sort(values)
  within = [sum(((part - part.mean()) ** 2).sum() for part in np.split(ordered, [cut])) for cut in range(1, 9)]
  ratio, lower = failures.split_ratio(values)
  assert ratio == pytest.approx(min(within) / ((values - values.mean()) ** 2).sum())
  assert lower == 1 + int(np.argmin(within))
