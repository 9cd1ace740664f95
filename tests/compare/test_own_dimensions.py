"""Dimensions that follow from the records: curves over sizes, other test sets, a run's way, and what it forgets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from peftjax.compare import analysis, claims
from peftjax.compare.claims import accuracy, learning
from peftjax.compare.dimensions import convergence, data_efficiency, forgetting, shift
from peftjax.compare.report import page
from peftjax.compare.scores import pack_scores
from peftjax.compare.search import Choice
from peftjax.compare.study import conclusions
from tests.compare import synthetic

METHODS = {name: synthetic.METHODS[name] for name in ("full", "head", "lora")}
QUESTION = analysis.Question()
FROM_DIMENSIONS = (
  *learning.RULES,
  *(name for name in accuracy.RULES if "far" in name or "niche" in name),
  "modular-switch",
  "inference-complexity",
)


def sized(accuracy):
  """Records of each size; `accuracy` is size -> row -> truth."""
  found = []
  for number, (size, truths) in enumerate(accuracy.items()):
    methods = {row: (truth, *METHODS[row][1:]) for row, truth in truths.items()}
    found += [
      dataclasses.replace(record, size=size, run=f"{record.row}/n={size}/seed-{record.seed}")
      for record in synthetic.results(methods, seeds=6, examples=700, steps=10, random_seed=number)
    ]
  return found


@pytest.fixture(scope="module")
def curves():
  held = sized(
    {
      32: {"full": 0.60, "head": 0.60, "lora": 0.70},
      128: {"full": 0.74, "head": 0.66, "lora": 0.77},
      512: {"full": 0.85, "head": 0.70, "lora": 0.80},
    }
  )
  held = [with_curves(record) for record in held]
  return held, conclusions(held, QUESTION, ())


def with_curves(record):
  away = np.arange(300) < 300 * (record.score("test") - 0.1)
  gain, slower = record.score("test") - 0.5, 1.0 + 2.0 * (record.row == "lora")
  steps = [0, 10, 20, 40]
  scores = [0.5 + gain * (1 - np.exp(-step / (8 * slower))) for step in steps]
  cost = {"full": 3.0, "head": 0.0, "lora": 1.0}[record.row]
  losses = [2.0 + cost * (score - 0.5) ** 2 + 0.001 * record.seed * (score - 0.5) for score in scores]
  return dataclasses.replace(
    record,
    shifted=("news",),
    metrics={**record.metrics, "news": {"accuracy": float(away.mean())}},
    scores={**record.scores, "news": pack_scores({"correct": away}, synthetic.ACCURACY)},
    trajectory={
      "validation": {"step": steps, "accuracy": scores, "loss": [1 - score for score in scores]},
      "retained": {"step": steps, "loss": losses},
    },
  )


def test_curves_over_sizes_and_where_they_cross(curves):
  found = curves[1].dimensions["data_efficiency"]
  assert [curve["size"] for curve in found["sizes"]] == [32, 128, 512]
  assert [row.row for row in found["sizes"][0]["rows"]] == ["full", "head", "lora"]
  crossing = {one["row"]: one for one in found["crossovers"]}["lora"]
  assert crossing["ahead"] == "below" and 128 < crossing["estimate"] < 512
  assert crossing["low"] <= crossing["estimate"] <= crossing["high"]
  assert len(crossing["runs"]) == 18 and "lora/n=32/seed-0" in crossing["runs"]


def ahead_by(one):
  """LoRA's row at one size."""
  same = {"p": 1.0, "p_equivalence": 1.0, "p_sign_flip": 1.0, "p_holm": 1.0, "verdict": "inconclusive"}
  less = analysis.Difference(estimate=one, by_seed=(one, one), to="full", seeds=(0, 1), **same)
  return data_efficiency.AtSize(row="lora", runs=(), seeds=(0, 1), estimate=0.5, difference=less)


@pytest.mark.parametrize(
  ("differences", "expected"),
  [
    ([0.1, 0.1, -0.1], (100, None)),  # half way from 10 to 1000 in the logarithm
    ([0.2, 0.1, 0.1], (None, "all")),
    ([-0.1, -0.2, -0.2], (None, "none")),
  ],
)
def test_a_crossover_between_sizes(differences, expected):
  made = [{"size": size, "rows": [ahead_by(one)]} for size, one in zip((1, 10, 1000), differences)]
  one = data_efficiency.crossover("lora", made)
  assert (one["estimate"], one["ahead_at"]) == expected
  assert one["low"] == one["high"] == expected[0]


def test_a_row_that_gets_ahead_with_more_data():
  made = [{"size": size, "rows": [ahead_by(one)]} for size, one in ((10, -0.1), (1000, 0.1))]
  one = data_efficiency.crossover("lora", made)
  assert one["ahead"] == "above" and one["estimate"] == 100


def test_other_test_sets_are_scored_against_home_and_reference(curves):
  groups = [one for one in curves[1].dimensions["shift"]["groups"] if one.size == 512]
  assert [one.row for one in groups] == ["full", "head", "lora"] and groups[0].set == "news"
  for one in groups:
    assert one.drop.estimate == pytest.approx(0.1, abs=0.005)
    assert one.drop.low < 0.1 < one.drop.high
  assert groups[1].difference.verdict == "worse" and groups[0].difference is None


def test_a_drop_has_the_width_of_both_sets(curves):
  rng = np.random.default_rng(0)
  covered = 0
  for _ in range(400):
    made = [rng.random(900) < 0.8, rng.random(400) < 0.6]
    scores = [analysis.Scores(tuple(range(6)), np.stack([one] * 6).astype(float), True, True) for one in made]
    one = shift.drop(*scores)
    covered += one.low <= 0.2 <= one.high
  assert 0.92 < covered / 400 < 0.98


def test_updates_to_the_target_between_evaluations(curves):
  groups = {(one.row, one.size): one for one in curves[1].dimensions["convergence"]["groups"]}
  assert 20 < groups["full", 128].estimate < 40
  assert groups["head", 512].estimate is None and groups["head", 512].reached == 0
  assert groups["full", 512].flops == pytest.approx(groups["full", 512].estimate * 3.1e10)
  steps, scores = np.array([0.0, 10.0, 30.0]), np.array([0.5, 0.6, 0.8])
  assert convergence.first_at(0.7, scores, steps) == pytest.approx(20.0)
  assert convergence.first_at(0.9, scores, steps) is None


def test_the_median_counts_those_that_never_arrive_as_last():
  assert convergence.median([5, 1, 2, 4, 3, 6]) == (3, 1, 6)
  assert convergence.median([5, 1, None, 4, 3, None]) == (4, 1, None)
  assert convergence.median([1, None, None]) == (None, None, None)
  assert convergence.median([1, 2]) == (1, None, None)
  rng = np.random.default_rng(0)
  ends = [convergence.median(rng.normal(size=9)) for _ in range(1000)]
  assert np.mean([low <= 0 <= high for _, low, high in ends]) > 0.94


def test_forgetting_at_the_end_and_at_equal_gains(curves):
  found = curves[1].dimensions["forgetting"]
  assert found["before"] == 2.0
  last = {(one.row, one.size): one for one in found["groups"]}
  assert last["full", 512].estimate > last["lora", 512].estimate > 0
  matched = {(one["row"], one["size"]): one for one in found["matched"]}["lora", 512]
  assert matched["own"].estimate < last["full", 512].estimate
  assert matched["difference"].estimate < 0 and matched["difference"].high < 0
  path = (np.array([0, 1, 2]), np.array([0.5, 0.6, 0.9]), np.array([2.0, 2.1, 2.7]))
  assert forgetting.rise_at(path, 0.75) == pytest.approx(0.4)
  assert forgetting.rise_at(path, 0.5) == 0.0


def test_every_section_is_in_the_report_and_draws(curves):
  held, summary = curves
  html = page.html({"model": {"path": "m"}, "data": {"name": "packaged:d"}}, summary, held, [])
  for heading in ("Data efficiency", "Out of domain", "Convergence", "Forgetting"):
    assert f">{heading}<" in html
  for plot in ("data_efficiency-curves", "shift-news", "shift-drops", "convergence-curves", "forgetting-paths"):
    assert f'id="{plot}"' in html
  text = page.markdown({"model": {"path": "m"}, "data": {"name": "packaged:d"}}, summary, held, [])
  assert "## Forgetting" in text and "| lora/n=512/seed-5 |" in text


def judged(summary, held):
  return {one.id: one for one in claims.judge(summary, held)}


def test_claims_are_judged_from_the_dimensions(curves):
  held, summary = curves
  gaps = {"full": 0.3, "head": 0.02, "lora": 0.1}
  found = []
  for record in held:
    gap = gaps[record.row] + 0.01 * record.seed / record.size
    own = {"overfitting": {"train": 0.9, "validation": 0.9 - gap, "gap": gap, "train_examples": record.size}}
    found.append(dataclasses.replace(record, dimensions=own))
  summary = conclusions(found, QUESTION)
  verdicts = judged(summary, found)
  assert verdicts["forgetting-full"].verdict == "supported" and verdicts["forgetting-full"].effect < 0
  assert verdicts["full-overfits-small"].verdict == "supported"
  assert verdicts["full-overfits-small"].effect == pytest.approx(30, abs=0.2)
  assert verdicts["low-data"].verdict == "supported" and "ahead below" in verdicts["low-data"].reason
  assert verdicts["few-hundred-examples"].verdict in ("inconclusive", "contradicted")
  assert verdicts["full-slower-convergence"].verdict == "contradicted"
  assert verdicts["knowledge-retained"].verdict == "contradicted"  # lora rises by more than 1% of 2 nats
  assert verdicts["no-forgetting"].verdict == "supported"
  assert verdicts["less-overfitting"].verdict in ("contradicted", "inconclusive")
  for one in verdicts.values():
    if one.verdict != "not testable here" and one.id in FROM_DIMENSIONS:
      assert one.runs and one.reason and one.counts, one.id


def test_claims_without_their_measurement_say_what_they_need(curves):
  held, _ = curves
  bare = [one for one in held if one.size == 512]
  verdicts = judged(analysis.summarize(bare, QUESTION), bare)
  for name in FROM_DIMENSIONS:
    assert verdicts[name].verdict == "not testable here" and verdicts[name].needs, name


@pytest.mark.parametrize(
  ("scores", "verdict", "share"),
  [((0.5, 0.6, 0.8, 0.79, 0.6), "supported", 0.4), ((0.8, 0.8, 0.8, 0.79, 0.6), "contradicted", 0.8)],
)
def test_sensitivity_is_the_share_of_rates_near_the_best(curves, scores, verdict, share):
  held, summary = curves
  tried = [{"learning_rate": 10.0**-n, "knobs": {}, "scores": [one]} for n, one in enumerate(scores)]
  choice = {"row": "lora", "learning_rate": 0.01, "knobs": {}, "interior": True, "tried": tried}
  searched = dataclasses.replace(summary, search=(Choice.from_json(choice),))
  one = judged(searched, held)["hp-sensitivity"]
  assert one.verdict == verdict and one.effect == pytest.approx(share)


def test_serving_is_judged_from_compilations_and_flops(curves):
  held, summary = curves
  times = {"switch_seconds": 0.002, "forward_seconds": 0.01}
  serving = {
    "switching": {"rows": [{"row": "lora", "run": "lora/n=512/seed-0", "compilations": 0, **times}]},
    "inference": {"rows": [{"row": "lora", "run": "r", "flops": {"unmerged": 1.02, "merged": 1.0}}]},
  }
  summary = dataclasses.replace(summary, dimensions=serving)
  verdicts = judged(summary, held)
  assert verdicts["modular-switch"].verdict == "supported" and verdicts["modular-switch"].effect == 0.002
  assert verdicts["inference-complexity"].verdict == "supported"
  assert "merging takes it away" in verdicts["inference-complexity"].reason
  serving["switching"]["rows"][0]["compilations"] = 1
  assert judged(summary, held)["modular-switch"].verdict == "contradicted"


def changed(record, change, names=("step", "accuracy", "loss")):
  """The record with columns of its way on validation changed."""
  path = record.trajectory["validation"]
  path = {name: change(values) if name in names else values for name, values in path.items()}
  return dataclasses.replace(record, trajectory={**record.trajectory, "validation": path})


@pytest.mark.parametrize("evaluated", [3, 1])
def test_forgetting_where_validation_was_not_evaluated_last(curves, evaluated):
  held, summary = [changed(record, lambda values: values[:evaluated]) for record in curves[0]], curves[1]
  found = forgetting.summarize(held, summary)
  assert found["groups"] == summary.dimensions["forgetting"]["groups"]  # of retained text alone
  steps = {tuple(path["steps"]) for path in found["paths"]}
  assert steps == ({(0, 10, 20)} if evaluated == 3 else set()) and bool(found["matched"]) == (evaluated == 3)
  section = forgetting.section(found, held, summary)
  assert len(section.rows) == len(held)
  assert [plot.draw(False) is not None for plot in section.plots] == [evaluated == 3, True, evaluated == 3]


@pytest.mark.parametrize("verdict", ["worse", "better", "matches", "inconclusive"])
@pytest.mark.parametrize("far", [True, False])
def test_a_far_task_is_one_whose_loss_was_high(curves, verdict, far):
  before = 3.1 if far else 2.9  # 2.0 on retained text
  held = [changed(record, lambda losses: [before, *losses[1:]], ("loss",)) for record in curves[0]]
  lora = curves[1].row("lora")
  lora = dataclasses.replace(lora, difference=dataclasses.replace(lora.difference, verdict=verdict))
  summary = dataclasses.replace(curves[1], rows=(curves[1].row("full"), curves[1].row("head"), lora))
  found = judged(summary, held)
  favouring = {"full-when-far": "worse", "full-more-accurate-niche": "worse", "peft-when-far": "better matches"}
  against = {"full-when-far": "better matches", "full-more-accurate-niche": "better matches", "peft-when-far": "worse"}
  for name in favouring:
    expected = "supported" if verdict in favouring[name] else "contradicted" if verdict in against[name] else ""
    assert found[name].verdict == ((expected or "inconclusive") if far else "not testable here"), name
    assert ("2.00 on retained data" in found[name].reason) and bool(found[name].needs) != far
