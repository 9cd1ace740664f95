"""A dimension and a task of one's own, in files beside the config, in a study."""

from __future__ import annotations

import json
import shutil

import pytest

from peftjax.compare import __main__ as remake
from peftjax.compare import records
from peftjax.compare.study import run_study
from peftjax.errors import UserError
from peftjax.registry import _named
from tests.compare import test_dimensions, test_runs, test_study
from tests.train.conftest import write_data, write_model

DIMENSION = """
from peftjax.compare.dimensions.base import Dimension, Section, by_group


def measure(trained):
  return {"length": len(trained.config.method.name)}


def summarize(records, summary):
  return {"groups": by_group(records, summary, lambda record: record.dimensions["letters"]["length"])}


def section(found, records, summary):
  return Section("Letters of a name", (", ".join(f"{one.row} {one.estimate:g}" for one in found["groups"]) + ".",))


LETTERS = Dimension("letters", measure, summarize, section)
"""

TASK = '''
from peftjax.tasks.classification import Classification
from peftjax.tasks.metric import Metric


class Errors(Classification):
  """Classification that counts what is wrong."""

  @classmethod
  def make(cls, settings, header):
    return cls("text_classification", header.label_names)

  def __init__(self, *arguments):
    super().__init__(*arguments)
    self.main_metric = "wrong_share"
    self.specs = (*self.specs, Metric("wrong_share", "per-example", unit="", share=True, higher_is_better=False,
                                      value="wrong"))

  def per_example(self, predictions):
    rows = super().per_example(predictions)
    return {**rows, "wrong": 1 - rows["correct"]}

  def metrics(self, predictions):
    found = super().metrics(predictions)
    return {**found, "wrong_share": 1 - found["accuracy"]}
'''


@pytest.fixture
def beside(tmp_path, monkeypatch):
  """A folder on the Python path, as the one of the config file is."""
  monkeypatch.syspath_prepend(str(tmp_path))
  return tmp_path


def test_a_dimension_of_ones_own(beside, tmp_path, capsys):
  (beside / "own_letters.py").write_text(DIMENSION)
  config = test_study.config()
  config.compare.dimensions = ("own_letters:LETTERS",)
  study = tmp_path / "study"
  outcome = run_study(config, study, test_dimensions.Trainer(test_dimensions.measure_one))
  groups = outcome.summary.dimensions["letters"]["groups"]
  assert [(one.row, one.estimate) for one in groups] == [("full", 4.0), ("head", 4.0), ("lora", 4.0)]
  assert "full 4, head 4, lora 4." in (study / "report.md").read_text()
  assert records.read_results(study / "results.jsonl")[0].dimensions == {"letters": {"length": 4}}

  given = shutil.copytree(study, tmp_path / "given")
  _named.discard("own_letters:LETTERS")  # as in another process, of somebody who was given the folder
  assert remake.main([str(given)]) == 2 and "own_letters" in capsys.readouterr().err
  assert remake.main(["--trust=own_letters:LETTERS", str(given)]) == 0
  assert (given / "report.md").read_text() == (study / "report.md").read_text()


def test_a_name_that_is_no_dimension(tmp_path):
  config = test_study.config()
  config.compare.dimensions = ("nowhere_at_all:THING",)
  with pytest.raises(UserError, match="nowhere_at_all"):
    run_study(config, tmp_path, test_study.Trainer())


def test_a_task_of_ones_own_is_studied_by_its_own_metric(beside, tmp_path, monkeypatch):
  (beside / "own_task.py").write_text(TASK)
  write_model(tmp_path / "model")
  write_data(tmp_path / "reviews.csv")
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  config = test_runs.make_config(tmp_path)
  config.task.name = "own_task:Errors"
  config.train.steps = 2
  config.compare.update({"seeds": (0,), "timing_rounds": 0, "dimensions": ("overfitting",)})
  outcome = run_study(config, tmp_path / "study")
  assert outcome.exit_code == 0
  summary = outcome.summary
  assert summary.metric == "wrong_share" and not summary.spec.higher_is_better and summary.spec.share
  for record in records.read_results(tmp_path / "study" / "results.jsonl"):
    assert record.scores["test"]["metric"] == "wrong_share"
    assert record.score("test") == pytest.approx(1 - record.score("test", "accuracy"))
    held = record.dimensions["overfitting"]
    assert held["gap"] == pytest.approx(held["validation"] - held["train"])
  assert summary.examples and summary.row("lora").difference.to == "full"
  assert "wrong_share" in json.dumps(summary.to_json())
