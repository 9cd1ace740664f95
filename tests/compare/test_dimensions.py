"""The dimensions' protocol on trials that take no time, and the gap of overfitting against its own arithmetic."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from peftjax.compare import dimensions, records
from peftjax.compare.analysis import SeedEstimate, of_seeds
from peftjax.compare.dimensions import base, overfitting
from peftjax.compare.report import page
from peftjax.compare.study import run_study
from peftjax.errors import UserError
from peftjax.files import read_json
from tests.compare import test_study

GAPS = {"full": 0.20, "head": 0.02, "lora": 0.08}


def config():
  made = test_study.config()
  made.compare.dimensions = ("overfitting",)
  return made


def train(config, folder):
  """As `test_study.train_one`, with a validation score and the examples that were trained on."""
  summary = test_study.train_one(config, folder)
  rng = np.random.default_rng(config.seed)
  fitted = 0.7 + GAPS[config.method.name] + 0.01 * rng.random()
  np.savez(folder / "predictions-train.npz", index=np.arange(50), correct=np.ones(50))
  np.savez(folder / "predictions-validation.npz", index=np.arange(30), correct=np.ones(30))
  summary["metrics"] |= {"validation": {"accuracy": 0.7}, "train": {"accuracy": fitted}}
  (folder / "summary.json").write_text(json.dumps(summary))
  return summary


def measure_one(dimension, trained):
  return dimension.measure(trained)


class Trainer(test_study.Trainer):
  """Measures what the finished runs' files say."""

  def __init__(self, measure):
    super().__init__(train)
    self.measure_one = measure

  def measure(self, dimensions, config, folder, study):
    trained = base.Trained(config, folder, read_json(folder / "summary.json"), study)
    for one in dimensions:
      try:
        yield self.measure_one(one, trained)
      except Exception as error:
        yield error


def run(made, folder, measure=measure_one):
  return run_study(made, folder, Trainer(measure))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
  folder = tmp_path_factory.mktemp("measured")
  return folder, run(config(), folder)


def test_a_measurement_is_in_the_record_the_summary_and_the_report(measured):
  folder, outcome = measured
  assert outcome.exit_code == 0
  for record in records.read_results(folder / "results.jsonl"):
    held = record.dimensions["overfitting"]
    assert held["gap"] == pytest.approx(held["train"] - 0.7) and held["train_examples"] == 50
  groups = {one.row: one for one in outcome.summary.dimensions["overfitting"]["groups"]}
  assert list(groups) == ["full", "head", "lora"]
  assert groups["lora"].estimate == pytest.approx(0.08, abs=0.011)
  assert groups["lora"].runs == ("lora/seed-0", "lora/seed-1", "lora/seed-2")
  assert groups["lora"].difference.estimate == pytest.approx(-0.12) and groups["lora"].difference.to == "full"
  assert groups["full"].difference is None
  html = (folder / "report.html").read_text()
  assert "Overfitting" in html and 'id="overfitting-0"' in html and "overfitting-0-phone" in html
  assert "| lora/seed-2 | 7" in (folder / "report.md").read_text()


def test_what_is_measured_is_not_measured_again(measured, tmp_path):
  asked = []

  def watch(dimension, trained):
    asked.append((dimension.name, trained.folder.name))
    if len(asked) == 4:
      raise KeyboardInterrupt
    return measure_one(dimension, trained)

  with pytest.raises(KeyboardInterrupt):
    run(config(), tmp_path, watch)
  assert run(config(), tmp_path, watch).exit_code == 0
  assert len(asked) == 10  # nine trials, and the one that the kill hit
  assert (tmp_path / "results.jsonl").read_text() == (measured[0] / "results.jsonl").read_text()


def test_a_dimension_that_fails_costs_its_own_figure_only(tmp_path):
  def fail(dimension, trained):
    if trained.config.seed == 1:
      raise RuntimeError("no memory")
    return measure_one(dimension, trained)

  outcome = run(config(), tmp_path, fail)
  assert outcome.exit_code == 1
  assert outcome.failed["lora/seed-1, overfitting"] == "RuntimeError: no memory"
  assert len(outcome.summary.rows[0].seeds) == 3
  groups = outcome.summary.dimensions["overfitting"]["groups"]
  assert [one.seeds for one in groups] == [(0, 2)] * 3
  assert run(config(), tmp_path).exit_code == 0


def test_records_without_dimensions_still_report(measured, tmp_path):
  made = config()
  made.compare.dimensions = ()
  assert run(made, tmp_path).summary.dimensions == {}
  assert "Overfitting" not in (tmp_path / "report.html").read_text()
  run(config(), tmp_path)  # a dimension named later is measured from what is there
  assert "Overfitting" in (tmp_path / "report.html").read_text()


def test_a_dimension_of_rows_is_measured_once_a_row(tmp_path, monkeypatch):
  once = dataclasses.replace(overfitting.DIMENSION, per=base.ROW)
  monkeypatch.setitem(dimensions.DIMENSIONS, "overfitting", once)
  asked = []

  def watch(dimension, trained):
    asked.append(trained.folder.parent.name)
    return {"gap": 0.0, "train": 1.0, "validation": 1.0, "train_examples": 3}

  run(config(), tmp_path, watch)
  assert asked == ["full", "head", "lora"]


def test_an_unknown_dimension_is_a_mistake(tmp_path):
  made = config()
  made.compare.dimensions = ("overfiting",)
  with pytest.raises(UserError, match="unknown 'overfiting'.*overfitting"):
    run(made, tmp_path)
  assert not list(tmp_path.iterdir())


def test_one_seed_has_no_interval():
  assert of_seeds([0.5]) == SeedEstimate(estimate=0.5, by_seed=(0.5,))
  made = of_seeds([1.0, 2.0, 3.0])
  assert made.high - 2.0 == pytest.approx(4.302652729 / np.sqrt(3))


def test_trained_scores_come_from_what_the_last_step_left(tmp_path):
  np.savez(tmp_path / "predictions-test.npz", index=np.arange(3), correct=np.array([1, 0, 1]))
  held = base.Trained(config(), tmp_path, {"metrics": {"test": {"accuracy": 2 / 3}}})
  metrics, rows = held.scores("test")
  assert metrics["accuracy"] == 2 / 3 and rows["correct"].tolist() == [1, 0, 1]


def test_the_report_is_drawn_from_records_alone(measured):
  folder, outcome = measured
  held = records.read_results(folder / "results.jsonl")
  again = page.html(json.loads((folder / "config.json").read_text()), outcome.summary, held, [])
  assert again.count("<svg") >= 10
