"""Evaluators: those of the task, those that the config names, and a user's own."""

from __future__ import annotations

import json

import numpy as np
import pytest

from peftjax import config as configs
from peftjax.errors import UserError
from peftjax.train import finished
from peftjax.train.loop import train

MODULE = """
import json

import numpy as np

from peftjax.masks import flatten
from peftjax.tasks import Metric
from peftjax.train.evaluators import Evaluated, Evaluator


class Norm(Evaluator):
  name = "norm"
  settings = {"power": 2.0}
  specs = (Metric("norm", "corpus", unit="per example", higher_is_better=False),)

  def check(self, loader):
    if self.options.power <= 0:
      raise ValueError("checked after the first update")

  def run(self, leaves, loader):
    total = sum(float(np.sum(np.abs(leaf) ** self.options.power)) for leaf in flatten(leaves.trainable).values())
    return Evaluated({"norm": total / loader.examples}, [loader.examples])

  def save(self, folder, split, moment, rows):
    (folder / f"norm-{split}-{moment}.json").write_text(json.dumps(rows))


class Loss(Norm):
  name = "loss"
  specs = (Metric("loss", "corpus"),)


class Again(Norm):
  pass


class Late(Norm):
  moments = ("finally",)


class Text(Norm):
  moments = "during"
"""


@pytest.fixture
def own(config, tmp_path, monkeypatch):
  (tmp_path / "own_norm.py").write_text(MODULE)
  monkeypatch.syspath_prepend(str(tmp_path))
  config.train.update({"evaluators": ("own_norm:Norm",), "steps": 4, "eval_first": True, "eval_every": 2})
  return config


def test_an_own_evaluator_runs_before_the_first_and_after_the_last_step(own, tmp_path):
  configs.apply(own, "evaluators.norm.power=1.0")
  folder = tmp_path / "run"
  summary = train(own, folder)
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  scores = {row["step"]: row for row in rows if row.get("split") == "validation"}
  assert {step: "norm" in row for step, row in scores.items()} == {0: True, 2: False, 4: True}
  assert list(scores[4])[2:] == ["loss", "accuracy", "macro_f1", "mcc", "norm"]
  assert summary["metrics"]["validation"]["norm"] == scores[4]["norm"] != scores[0]["norm"]
  assert summary["metrics_spec"]["norm"]["unit"] == "per example" and "accuracy" in summary["metrics_spec"]
  kept = np.load(folder / "predictions-validation.npz")
  assert json.loads((folder / "norm-validation-before.json").read_text()) == [len(kept["index"])]
  again = finished.evaluate_run(folder)
  assert again["metrics"]["validation"]["norm"] == pytest.approx(scores[4]["norm"])
  assert (folder / "norm-test-eval.json").is_file()


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("train.evaluators=own_norm:Nrom", "did you mean 'Norm'"),
    ("train.evaluators=generat", "did you mean 'generate'"),
    ("evaluators.norm.pwoer=1.0", "did you mean 'power'"),
    ("evaluators.nrom.power=1.0", "evaluators.nrom: no such evaluator in this run; did you mean 'norm'"),
    ("train.evaluators=own_norm:Loss", "'loss' has a metric 'loss' and task text_classification has one too"),
    ("train.evaluators=own_norm:Late", r"moments=\('finally',\): no 'finally'; known: after, before, during, eval"),
    ("train.evaluators=own_norm:Text", "moments='during'; expected a tuple of some of 'before', 'during'"),
    ("train.evaluators=('own_norm:Norm','own_norm:Again')", "'own_norm:Norm' and 'own_norm:Again' are both called"),
    ("task.generate=True", "task 'text_classification' writes no text"),
  ],
)
def test_mistakes_are_found_before_the_first_update(own, tmp_path, override, message):
  configs.apply(own, override)
  with pytest.raises(UserError, match=message):
    train(own, tmp_path / "run")
  assert not (tmp_path / "run" / "metrics.jsonl").exists()
