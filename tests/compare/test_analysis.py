from __future__ import annotations

import json

import numpy as np
import pytest

from peftjax.compare import analysis, claims, records, timing
from peftjax.compare.analysis import Question
from peftjax.compare.verdicts import VERDICTS
from tests.compare import synthetic


@pytest.fixture(scope="module")
def study():
  results = synthetic.results(seeds=6, examples=1500)
  return results, analysis.summarize(results, Question(), timing.summarize(synthetic.seconds(), "full"))


def row(summary, name):
  return next(one for one in summary["rows"] if one["row"] == name)


def test_estimates_are_the_average_accuracy(study):
  results, summary = study
  for one in summary["rows"]:
    mine = [record["metrics"]["test"]["accuracy"] for record in results if record["row"] == one["row"]]
    assert one["by_seed"] == pytest.approx(mine) and one["estimate"] == pytest.approx(np.mean(mine))
    assert one["low"] < one["estimate"] < one["high"]
    assert one["bootstrap"] == pytest.approx([one["low"], one["high"]], abs=0.006)


def test_large_differences_are_found_and_the_reference_has_none(study):
  _, summary = study
  assert row(summary, "full")["difference"] is None and row(summary, "head")["over_baseline"] is None
  assert row(summary, "head")["difference"]["verdict"] == "worse"
  assert row(summary, "full")["over_baseline"]["verdict"] == "better"
  lora, full = row(summary, "lora"), row(summary, "full")
  assert lora["difference"]["estimate"] == pytest.approx(lora["estimate"] - full["estimate"])


def test_p_values_are_corrected_over_the_methods(study):
  _, summary = study
  compared = [one["difference"] for one in summary["rows"] if one["difference"]]
  assert len(compared) == 6
  assert all(one["p_holm"] >= one["p"] for one in compared)
  assert min(one["p_holm"] for one in compared) == pytest.approx(6 * min(one["p"] for one in compared))


def test_a_seed_that_one_method_lacks_is_left_out_of_its_differences_only():
  results = [one for one in synthetic.results(seeds=4, examples=300) if one["run"] != "lora/seed-2"]
  summary = analysis.summarize(results, Question())
  assert row(summary, "lora")["difference"]["seeds"] == [0, 1, 3]
  assert row(summary, "ia3")["difference"]["seeds"] == [0, 1, 2, 3]


def test_costs_are_compared_on_a_shape_that_all_methods_compiled():
  results = synthetic.results(seeds=1, examples=50)
  for one in results:
    if one["row"] == "ia3":
      del one["compiled"]["32x48"]
  summary = analysis.summarize(results, Question())
  assert summary["cost_shape"] == "32x24"
  assert row(summary, "lora")["flops_ratio"] == pytest.approx(0.68)
  temporary = results[0]["compiled"]["32x24"]["temp_bytes"]
  assert row(summary, "full")["bytes"]["activations"] == temporary - row(summary, "full")["bytes"]["gradients"]


def test_one_seed_concludes_nothing():
  summary = analysis.summarize(synthetic.results(seeds=1, examples=800), Question())
  assert {one["difference"]["verdict"] for one in summary["rows"] if one["difference"]} == {"inconclusive"}


def test_few_seeds_lend_each_other_their_spread_and_many_do_not():
  few, many = (analysis.summarize(synthetic.results(seeds=n, examples=800), Question()) for n in (2, 5))
  assert few["pooled_seeds"] and not many["pooled_seeds"]
  assert row(few, "head")["difference"]["verdict"] == "worse"
  assert row(few, "lora")["bootstrap"] is None
  two_rows = {name: synthetic.METHODS[name] for name in ("full", "lora")}
  assert not analysis.summarize(synthetic.results(two_rows, 2, 800), Question())["pooled_seeds"]


def test_rows_stand_in_the_order_reference_baseline_size(study):
  names = [one["row"] for one in study[1]["rows"]]
  assert names == ["full", "head", "prompt", "ia3", "bitfit", "lora", "houlsby"]


def test_a_metric_without_examples_is_compared_over_seeds():
  results = synthetic.results(seeds=5, examples=100)
  for one in results:
    one["metric"], one["scores"] = "pearson", {}
    one["metrics"]["test"]["pearson"] = one["metrics"]["test"]["accuracy"]
  summary = analysis.summarize(results, Question())
  assert summary["examples"] is None
  lora = row(summary, "lora")
  values = np.array(lora["by_seed"])
  assert lora["high"] - lora["estimate"] == pytest.approx(2.776 * values.std(ddof=1) / np.sqrt(5), rel=1e-3)


def test_f1_over_entities_comes_from_counts():
  rng = np.random.default_rng(0)
  results = synthetic.results(seeds=3, examples=90)
  for one in results:
    true, found = rng.integers(0, 4, 90), rng.integers(0, 4, 90)
    counts = {"correct_entities": np.minimum(true, found), "found_entities": found, "true_entities": true}
    one["metric"], one["scores"] = "f1", {"test": records.pack_scores(counts)}
    one["metrics"]["test"]["f1"] = 2 * counts["correct_entities"].sum() / (found.sum() + true.sum())
  summary = analysis.summarize(results, Question())
  expected = np.mean([one["metrics"]["test"]["f1"] for one in results if one["row"] == "lora"])
  assert row(summary, "lora")["estimate"] == pytest.approx(expected) and summary["examples"] == 90


def test_the_summary_is_strict_json_and_needs_only_the_results_file(study, tmp_path):
  results, _ = study
  path = records.write_results(results, tmp_path)
  again = analysis.summarize(records.read_results(path), Question())
  assert again == analysis.summarize(results, Question())
  json.dumps(again, allow_nan=False)


def test_packed_scores_come_back():
  correct = np.random.default_rng(1).random(77) < 0.8
  np.testing.assert_array_equal(records.unpack_scores(records.pack_scores({"correct": correct})), correct)
  assert records.pack_scores({"prediction": np.zeros(3)}) is None


def test_every_published_claim_has_a_verdict_and_a_reason(study):
  results, summary = study
  verdicts = claims.judge(summary, results)
  assert len(verdicts) == 32 and len({one["id"] for one in verdicts}) == 32
  for one in verdicts:
    assert one["verdict"] in VERDICTS and one["reason"]
    assert (one["verdict"] == "not testable here") == bool(one["needs"])
  json.dumps(verdicts, allow_nan=False)


def judged(methods, seeds=8, examples=4000, times=None):
  results = synthetic.results(methods, seeds, examples, spread=0.0)
  taken = {name: [0.25 * ratio] * 20 for name, ratio in (times or {}).items()}
  summary = analysis.summarize(results, Question(margin=0.02), timing.summarize(taken, "full") if times else None)
  return {one["id"]: one for one in claims.judge(summary, results)}


def test_claims_follow_the_measurements():
  full, head = synthetic.METHODS["full"], synthetic.METHODS["head"]
  near, far = (0.837, 73_728, 0.68, 1e-3), (0.70, 73_728, 0.68, 1e-3)
  equal = judged({"full": full, "head": head, "lora": near}, times={"full": 1.0, "head": 0.4, "lora": 0.6})
  assert equal["accuracy-comparable-or-superior"]["verdict"] == "supported"
  assert equal["comparable-at-fraction"]["verdict"] == "supported"
  assert equal["time-30-50"]["verdict"] == "supported"
  assert equal["time-30-50"]["effect"] == pytest.approx(0.4)
  assert equal["full-best-with-data"]["verdict"] == "contradicted"
  below = judged({"full": full, "head": head, "lora": far}, times={"full": 1.0, "head": 0.4, "lora": 0.9})
  assert below["accuracy-comparable-or-superior"]["verdict"] == "contradicted"
  assert below["full-best-with-data"]["verdict"] == "supported"
  assert below["time-30-50"]["verdict"] == "contradicted"
  assert set(below["full-best-with-data"]["runs"]) == {f"{r}/seed-{s}" for r in ("full", "lora") for s in range(8)}


def test_claims_about_published_models_stand_on_their_page():
  verdicts = judged({"full": synthetic.METHODS["full"]}, seeds=1, examples=10)
  shown = verdicts["trainable-share-mt0"]
  assert shown["verdict"] == "supported" and shown["page"] == "docs/published_figures.md" and not shown["runs"]
  assert verdicts["accuracy-comparable-or-superior"]["verdict"] == "not testable here"
  assert not {one["id"] for one in claims.measured(list(verdicts.values()))} & {
    name for name, one in verdicts.items() if one["page"]
  }


def test_files_beside_a_large_base_are_this_studys_own():
  large = synthetic.results({name: synthetic.METHODS[name] for name in ("full", "lora")}, seeds=2, examples=50)
  for one in large:
    one["bytes"]["weights"] = int(3e9)
  verdict = {one["id"]: one for one in claims.judge(analysis.summarize(large, Question()), large)}["adapter-mb"]
  assert verdict["page"] == "" and verdict["runs"] == ["lora/seed-0", "lora/seed-1"]
  assert verdict["effect"] == pytest.approx((4 * (73_728 + 770) + 1200) / 1e6) and verdict["verdict"] == "supported"
