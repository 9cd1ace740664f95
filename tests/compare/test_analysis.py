from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from peftjax.compare import analysis, claims, formatting, records
from peftjax.compare.analysis import Question, Summary
from peftjax.compare.claims.verdict import VERDICTS
from peftjax.compare.scores import averages_to, pack_scores, unpack_scores
from peftjax.tasks import make
from peftjax.tasks.metric import Metric
from peftjax.train import timing
from tests.compare import synthetic


@pytest.fixture(scope="module")
def study():
  results = synthetic.results(seeds=6, examples=1500)
  return results, analysis.summarize(results, Question(), timing.timing_of(synthetic.seconds(), "full"))


def test_estimates_are_the_interquartile_mean_accuracy_with_the_mean_beside_it(study):
  results, summary = study
  assert summary.location == "interquartile mean"
  for one in summary.rows:
    mine = [record.score("test") for record in results if record.row == one.row]
    assert one.by_seed == pytest.approx(mine) and one.estimate == pytest.approx(stats.trim_mean(mine, 0.25))
    assert one.low < one.estimate < one.high
    assert one.mean.estimate == pytest.approx(np.mean(mine))
    assert one.bootstrap == pytest.approx([one.mean.low, one.mean.high], abs=0.006)
    if one.difference:
      assert one.difference.mean == pytest.approx(one.mean.estimate - summary.rows[0].mean.estimate)


def test_with_few_seeds_estimates_are_means():
  summary = analysis.summarize(synthetic.results(seeds=4, examples=300), Question())
  assert summary.location == "mean"
  assert all(one.estimate == one.mean.estimate == pytest.approx(np.mean(one.by_seed)) for one in summary.rows)


def test_large_differences_are_found_and_the_reference_has_none(study):
  _, summary = study
  full, head, lora = (summary.row(name) for name in ("full", "head", "lora"))
  assert full.difference is None and head.over_baseline is None
  assert head.difference.verdict == "worse" and full.over_baseline.verdict == "better"
  assert lora.difference.estimate == pytest.approx(lora.estimate - full.estimate)


def test_a_row_that_trains_as_much_as_the_reference_is_no_peft_method():
  known = synthetic.METHODS
  named = {"full": known["full"], "patterns": (0.836, *known["full"][1:]), "lora": known["lora"]}
  summary = analysis.summarize(synthetic.results(named, seeds=2, examples=300), Question())
  assert summary.row("patterns").is_peft and [row.row for row in summary.peft] == ["lora"]


def test_p_values_are_corrected_over_the_methods(study):
  _, summary = study
  compared = [one.difference for one in summary.rows if one.difference]
  assert len(compared) == 6
  assert all(one.p_holm >= one.p for one in compared)
  assert min(one.p_holm for one in compared) == pytest.approx(6 * min(one.p for one in compared))


def test_a_seed_that_one_method_lacks_is_left_out_of_its_differences_only():
  results = [one for one in synthetic.results(seeds=4, examples=300) if one.run != "lora/seed-2"]
  summary = analysis.summarize(results, Question())
  assert summary.row("lora").difference.seeds == (0, 1, 3)
  assert summary.row("ia3").difference.seeds == (0, 1, 2, 3)


def test_costs_are_compared_on_a_shape_that_all_methods_compiled():
  results = synthetic.results(seeds=1, examples=50)
  small = {"32x24": None}
  results = [
    dataclasses.replace(one, compiled={shape: one.compiled[shape] for shape in small}) if one.row == "ia3" else one
    for one in results
  ]
  summary = analysis.summarize(results, Question())
  assert summary.cost_shape == "32x24"
  assert summary.row("lora").flops_ratio == pytest.approx(0.68)
  held = summary.row("full").bytes
  assert held.activations == results[0].compiled["32x24"].temp_bytes - held.gradients


def test_one_seed_concludes_nothing():
  summary = analysis.summarize(synthetic.results(seeds=1, examples=800), Question())
  assert {one.difference.verdict for one in summary.rows if one.difference} == {"inconclusive"}


def test_few_seeds_lend_each_other_their_spread_and_many_do_not():
  few, many = (analysis.summarize(synthetic.results(seeds=n, examples=800), Question()) for n in (2, 5))
  assert few.pooled_seeds and not many.pooled_seeds
  assert few.row("head").difference.verdict == "worse"
  assert few.row("lora").bootstrap is None
  two_rows = {name: synthetic.METHODS[name] for name in ("full", "lora")}
  assert not analysis.summarize(synthetic.results(two_rows, 2, 800), Question()).pooled_seeds


def test_rows_stand_in_the_order_reference_baseline_size(study):
  names = [one.row for one in study[1].rows]
  assert names == ["full", "head", "prompt", "ia3", "bitfit", "lora", "houlsby"]


def with_metric(record, spec, value, rows=None):
  """A record whose main metric on the test split is another one."""
  packed = pack_scores(rows, spec) if rows else None
  return dataclasses.replace(
    record,
    metric=spec.name,
    metrics={"test": {spec.name: value}},
    metrics_spec={spec.name: spec},
    scores={"test": packed} if packed else {},
  )


def test_a_metric_without_examples_is_compared_over_seeds():
  spec = Metric("pearson", "corpus")
  results = [with_metric(one, spec, one.score("test")) for one in synthetic.results(seeds=5, examples=100)]
  summary = analysis.summarize(results, Question())
  assert summary.examples is None
  lora = summary.row("lora")
  values = np.array(lora.by_seed)
  assert lora.mean.high - lora.mean.estimate == pytest.approx(2.776 * values.std(ddof=1) / np.sqrt(5), rel=1e-3)
  assert lora.estimate == pytest.approx(np.sort(values)[1:4].mean())


def test_f1_over_entities_comes_from_counts():
  spec = next(one for one in make("token_classification", ("O", "B-X", "I-X")).specs if one.name == "f1")
  rng, results = np.random.default_rng(0), []
  for one in synthetic.results(seeds=3, examples=90):
    true, found = rng.integers(0, 4, 90), rng.integers(0, 4, 90)
    counts = {"correct_entities": np.minimum(true, found), "found_entities": found, "true_entities": true}
    value = 2 * counts["correct_entities"].sum() / (found.sum() + true.sum())
    results.append(with_metric(one, spec, value, counts))
  summary = analysis.summarize(results, Question())
  expected = np.mean([one.score("test") for one in results if one.row == "lora"])
  assert summary.row("lora").estimate == pytest.approx(expected) and summary.examples == 90


def test_of_a_metric_of_which_less_is_better_a_lower_row_is_better(study):
  spec = Metric("error", "per-example", share=True, higher_is_better=False, value="wrong")
  turned = []
  for one in study[0]:
    wrong = 1.0 - unpack_scores(one.scores["test"])
    turned.append(with_metric(one, spec, wrong.mean(), {"wrong": wrong}))
  summary = analysis.summarize(turned, Question())
  for row, other in zip(summary.rows, study[1].rows):
    assert row.estimate == pytest.approx(1 - other.estimate)
    if row.difference:
      assert row.difference.estimate == pytest.approx(-other.difference.estimate)
      assert row.difference.verdict == other.difference.verdict
      assert row.difference.p_holm == pytest.approx(other.difference.p_holm)


def test_the_summary_is_strict_json_and_needs_only_the_results_file(study, tmp_path):
  results, _ = study
  path = records.write_results(results, tmp_path)
  assert records.read_results(path) == results
  again = analysis.summarize(records.read_results(path), Question())
  assert again == analysis.summarize(results, Question())
  text = json.dumps(again.to_json(), allow_nan=False)
  assert Summary.from_json(json.loads(text)) == again


ROWS = {
  "right": np.random.default_rng(1).random(77) < 0.8,
  "share": np.array([0.0, 0.25, 1.0]),
  "losses": np.array([3.5, 0.0, 10.25]),
  "tokens": np.array([7, 0, 20]),
}


@pytest.mark.parametrize(
  ("spec", "kind", "mean"),
  [
    (Metric("accuracy", "per-example", value="right"), "bits", ROWS["right"].mean()),
    (Metric("f1", "per-example", value="share"), "values", 1.25 / 3),
    (
      Metric("log_likelihood", "ratio", numerator=("losses",), denominator=("tokens",), sign=-1.0),
      "ratio",
      -13.75 / 27,
    ),
  ],
)
def test_packed_scores_average_to_the_metric(spec, kind, mean):
  packed = json.loads(json.dumps(pack_scores(ROWS, spec)))
  assert packed["kind"] == kind and averages_to(packed) == spec.name
  assert unpack_scores(packed).mean() == pytest.approx(mean)


def test_what_is_no_average_over_examples_is_not_packed():
  for spec in (Metric("pearson", "corpus"), Metric("f1", "per-example", value="nowhere")):
    assert pack_scores(ROWS, spec) is None


@pytest.mark.parametrize("task", ["seq2seq_lm", "causal_lm"])
def test_language_models_keep_the_main_metric_of_every_example(task):
  """A row of bits beside the token counts, as sequence to sequence has it, is another metric's."""
  made = make(task)
  weight, loss = np.array([4.0, 9.0, 2.0]), np.array([1.5, 0.25, 3.0])
  predictions = {"weight": weight, "loss": loss, "hits": np.array([4.0, 8.0, 0.0])}
  main = next(one for one in made.specs if one.name == made.main_metric)
  scores = unpack_scores(pack_scores(made.per_example(predictions), main))
  assert len(scores) == 3
  assert scores.mean() == pytest.approx(made.metrics(predictions)[made.main_metric])
  assert main.unit == "nats a token"


def test_every_published_claim_has_a_verdict_and_a_reason(study):
  results, summary = study
  verdicts = claims.judge(summary, results)
  assert len(verdicts) == 32 and len({one.id for one in verdicts}) == 32
  for one in verdicts:
    assert one.claim and one.verdict in VERDICTS and one.reason
    assert (one.verdict == "not testable here") == bool(one.needs)
  json.dumps([one.to_json() for one in verdicts], allow_nan=False)


def judged(methods, seeds=8, examples=4000, times=None):
  results = synthetic.results(methods, seeds, examples, spread=0.0)
  taken = {name: [0.25 * ratio] * 20 for name, ratio in (times or {}).items()}
  summary = analysis.summarize(results, Question(margin=0.02), timing.timing_of(taken, "full") if times else None)
  return {one.id: one for one in claims.judge(summary, results)}


def test_claims_follow_the_measurements():
  full, head = synthetic.METHODS["full"], synthetic.METHODS["head"]
  near, far = (0.837, 73_728, 0.68, 1e-3), (0.70, 73_728, 0.68, 1e-3)
  equal = judged({"full": full, "head": head, "lora": near}, times={"full": 1.0, "head": 0.4, "lora": 0.6})
  assert equal["accuracy-comparable-or-superior"].verdict == "supported"
  assert equal["comparable-at-fraction"].verdict == "supported"
  assert equal["time-30-50"].verdict == "supported"
  assert equal["time-30-50"].effect == pytest.approx(0.4)
  assert equal["full-best-with-data"].verdict == "contradicted"
  below = judged({"full": full, "head": head, "lora": far}, times={"full": 1.0, "head": 0.4, "lora": 0.9})
  assert below["accuracy-comparable-or-superior"].verdict == "contradicted"
  assert below["full-best-with-data"].verdict == "supported"
  assert below["time-30-50"].verdict == "contradicted"
  assert set(below["full-best-with-data"].runs) == {f"{r}/seed-{s}" for r in ("full", "lora") for s in range(8)}


def test_claims_about_published_models_stand_on_their_page():
  verdicts = judged({"full": synthetic.METHODS["full"]}, seeds=1, examples=10)
  shown = verdicts["trainable-share-mt0"]
  assert shown.verdict == "supported" and shown.page == "docs/published_figures.md" and not shown.runs
  assert verdicts["accuracy-comparable-or-superior"].verdict == "not testable here"
  assert not any(one.page for one in claims.decided_here(list(verdicts.values())))


def test_files_beside_a_large_base_are_this_studys_own():
  methods = {name: synthetic.METHODS[name] for name in ("full", "lora")}
  large = [
    dataclasses.replace(one, bytes=dataclasses.replace(one.bytes, weights=int(3e9)))
    for one in synthetic.results(methods, seeds=2, examples=50)
  ]
  verdict = {one.id: one for one in claims.judge(analysis.summarize(large, Question()), large)}["adapter-mb"]
  assert verdict.page == "" and verdict.runs == ("lora/seed-0", "lora/seed-1")
  assert verdict.effect == pytest.approx((4 * (73_728 + 770) + 1200) / 1e6) and verdict.verdict == "supported"


def test_one_example_and_one_seed_tell_nothing_of_others():
  one, two = (analysis.summarize(synthetic.results(seeds=1, examples=count), Question()) for count in (1, 2))
  assert all((row.low, row.high) == (None, None) for row in one.rows)
  assert all(row.low < row.estimate + 1e-9 and row.high > row.low for row in two.rows)


def test_a_shares_interval_ends_where_shares_do():
  """Two runs tell little: Student's interval of their mean is wider than a share can be; an error rate may exceed 1."""
  of_two = np.array([[0.7, 0.9, 0.8], [0.9, 0.95, 0.85]])
  share = Metric("right", "per-example", share=True, value="right")
  rate = Metric("word_error_rate", "ratio", share=True, higher_is_better=False)
  for per_example in (True, False):
    values = of_two if per_example else of_two.mean(axis=1, keepdims=True)
    scores = analysis.Scores((0, 1), values, binary=False, per_example=per_example)
    found = {one.name: analysis.estimate_of(scores, one) for one in (share, rate, Metric("r2", "corpus"))}
    assert found["r2"]["high"] > 1 > found["r2"]["low"] and found["right"]["high"] == 1.0
    assert found["word_error_rate"]["high"] == found["r2"]["high"]
  one = analysis.Estimate(estimate=0.825, low=-0.1, high=1.251)
  assert (formatting.estimate(one, share), formatting.estimate(one, rate)) == ("82.5 [0.0, 100.0]", "82.5 [0.0, 125.1]")
