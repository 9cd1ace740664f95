"""A dimension and a task of one's own, in files beside the config, in a study."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from peftjax.compare import __main__ as remake
from peftjax.compare import records
from peftjax.compare.study import run_study
from peftjax.errors import UserError
from peftjax.registry import _named
from tests.compare import test_dimensions, test_runs, test_study, test_study_kills
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

  (beside / "own_task.py").write_text("# more is said of it here\n" + TASK)  # no other code
  sys.modules.pop("own_task")
  assert run_study(config, tmp_path / "study").exit_code == 0
  (beside / "own_task.py").write_text(TASK.replace('1 - rows["correct"]', '1.0 - rows["correct"]'))
  sys.modules.pop("own_task")
  with pytest.raises(UserError, match="comes from other code of own_task:Errors: use another --workdir, or"):
    run_study(config, tmp_path / "study")
  config.data.code_changed = True
  assert run_study(config, tmp_path / "study").summary.to_json() == summary.to_json()


METHOD = """
import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from peftjax.methods import Targeted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale(Targeted):
  name: ClassVar[str] = "scale"
  kinds: ClassVar[tuple[str, ...]] = ("linear",)
  leaf_names: ClassVar[tuple[str, ...]] = ("gain",)
  learning_rate: ClassVar[float] = 5e-3

  def default_targets(self, model_type):
    return ("query", "value")

  def create(self, key, site, base):
    return {"gain": jnp.ones(site.shape[-1])}

  def after(self, leaves, x, y, site, call):
    return y * leaves["gain"]

  def delta(self, leaves, base, site, shared):
    return {name: (leaves["gain"] - 1.0) * base[name] for name in ("kernel", "bias")}
"""
SEARCHED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from peftjax.compare.study import run_study
from tests.compare.test_own_code import searched
run_study(searched(Path(sys.argv[1])), sys.argv[2])
"""


def searched(folder):
  """A study in which the rate of a method of one's own is searched; the file lies beside the data."""
  config = test_runs.make_config(folder)
  config.compare.methods = {"full": {}, "own": {"method": {"name": "own_method:Scale"}}}
  config.compare.seeds = (0,)
  config.compare.search.update({"seeds": (100,), "trials": 3})
  config.compare.update({"timing_rounds": 0, "dimensions": ()})
  config.train.update({"steps": 4, "save_every": 2})
  return config


@pytest.mark.slow
def test_a_searched_row_of_ones_own_method_killed_and_resumed(tmp_path):
  (tmp_path / "own_method.py").write_text(METHOD)
  write_model(tmp_path / "model")
  write_data(tmp_path / "reviews.csv")
  whole, parts = tmp_path / "whole", tmp_path / "parts"

  def started(folder):
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"PEFTJAX_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SEARCHED, str(tmp_path), str(folder)]
    return subprocess.Popen(command, cwd=test_runs.ROOT, env=environment, stderr=subprocess.PIPE)

  test_study_kills.finish(started(whole))
  total = test_study_kills.progress(whole)
  for share in (0.3, 0.7):
    process = started(parts)
    while process.poll() is None and test_study_kills.progress(parts) < share * total:
      time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -9
  test_study_kills.finish(started(parts))
  assert test_study_kills.timeless(parts) == test_study_kills.timeless(whole)
  assert (parts / "search.json").read_bytes() == (whole / "search.json").read_bytes()
  found = json.loads((whole / "search.json").read_text())
  assert "own" in json.dumps(found)
