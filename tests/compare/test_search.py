"""The search on trials that take no time: it finds a peak, spends the same on every row, and resumes.

How often luck decides it is simulated in ``test_rates.py``.
"""

from __future__ import annotations

import json
import math

import pytest

from peftjax import config as config_lib
from peftjax.compare import search
from peftjax.compare.rates import SearchPoint
from peftjax.compare.report import sections
from peftjax.compare.study import run_study
from peftjax.errors import UserError
from peftjax.train.watch import Diverged
from tests.compare import test_study

PEAKS = {"full": 3e-5, "head": 1e-3, "lora": 4e-2}  # far below, at, and far above the middle of the grid


def config(**fields):
  made = test_study.config()
  for row in PEAKS:
    made.compare.methods[row] = {"optim": {"learning_rate": 1e-3}}
  made.compare.search.update({"seeds": (100, 101), **fields})
  return made


def score(one):
  """A smooth hill over the logarithm of the rate; a smaller weight decay is a little better."""
  away = math.log10(one.optim.learning_rate / PEAKS[one.method.name])
  return 0.8 - 0.1 * away**2 - 0.01 * one.optim.weight_decay + 0.001 * (one.seed % 2)


class Trainer(test_study.Trainer):
  """Trains nothing; notes what it was asked for."""

  def __init__(self, diverges=()):
    self.asked, self.diverges = [], diverges

  def train(self, configs, folders):
    self.asked += [folder.parts[-3:] for folder in folders]
    return [self.one(config, folder) for config, folder in zip(configs, folders)]

  def one(self, one, folder):
    folder.mkdir(parents=True)
    if one.optim.learning_rate in self.diverges:
      return Diverged("step 2: loss nan")
    assert one.train.final_splits == ("validation",)
    return {"main_metric": "accuracy", "metrics": {"validation": {"accuracy": score(one), "loss": 0.0}}}


def run(made, folder, trainer=None):
  choices = search.search_rows(made, folder, list(PEAKS), trainer or Trainer(), lambda line: None)
  return {choice.row: choice for choice in choices}


def test_every_row_has_as_many_runs_and_its_peak_is_found(tmp_path):
  trainer = Trainer()
  choices = run(config(trials=8), tmp_path, trainer)
  for row, choice in choices.items():
    assert choice.runs == 16 and choice.interior
    assert {one.seeds for one in choice.tried} == {(100,), (100, 101)}
    chosen = next(one for one in choice.tried if one.setting == choice.best)
    assert chosen.seeds == (100, 101) and chosen.value == pytest.approx(chosen.mean, abs=0.005)
    assert abs(math.log10(choice.best.rate / PEAKS[row])) < 0.2
  assert len(trainer.asked) == 3 * 8 * 2 and len(set(trainer.asked)) == len(trainer.asked)
  saved = json.loads((tmp_path / "search.json").read_text())
  assert [one["row"] for one in saved] == list(PEAKS) and saved[0]["learning_rate"] == choices["full"].best.rate


def test_a_peak_out_of_reach_is_said_to_be_at_the_edge(tmp_path):
  choices = run(config(trials=4, seeds=(100,)), tmp_path)
  assert not choices["full"].interior and not choices["lora"].interior and choices["head"].interior
  assert choices["full"].best.rate == min(one.learning_rate for one in choices["full"].tried)


def test_among_equal_scores_the_lower_loss_decides(tmp_path):
  class Coarse(Trainer):
    def one(self, one, folder):
      return {"main_metric": "accuracy", "metrics": {"validation": {"accuracy": 0.5, "loss": 1.0 - score(one)}}}

  for row, choice in run(config(trials=8), tmp_path, Coarse()).items():
    assert abs(math.log10(choice.best.rate / PEAKS[row])) < 0.2
    assert all(len(one.losses) == len(one.scores) == len(one.seeds) for one in choice.tried)


def test_knobs_are_tried_at_the_best_rate(tmp_path):
  made = config(trials=6, seeds=(100,))
  made.compare.methods.head.search = {"optim": {"weight_decay": (0.0, 0.3)}, "train": {"batch_size": (16,)}}
  choice = run(made, tmp_path)["head"]
  assert choice.knobs == {"optim.weight_decay": 0.0}
  tried = [one.setting for one in choice.tried]
  assert tried[3] == SearchPoint(1e-3, (("optim.weight_decay", 0.0),))
  assert tried[5].knobs == (("optim.weight_decay", 0.0), ("train.batch_size", 16))
  final = choice.best.laid_on(config_lib.default())
  assert final.optim.weight_decay == 0.0 and final.optim.learning_rate == choice.best.rate


def test_it_goes_on_from_what_is_finished(tmp_path):
  whole = run(config(trials=5), tmp_path / "whole")

  class Killed(Trainer):
    def one(self, one, folder):
      if len(list((tmp_path / "parts").rglob("score.json"))) >= 7:
        raise KeyboardInterrupt
      return super().one(one, folder)

  with pytest.raises(KeyboardInterrupt):
    run(config(trials=5), tmp_path / "parts", Killed())
  done = {path.parent for path in (tmp_path / "parts").rglob("score.json")}
  for folder in (tmp_path / "parts").rglob("seed-*"):
    if folder not in done:
      folder.rmdir()
  rest = Trainer()
  assert run(config(trials=5), tmp_path / "parts", rest) == whole
  assert len(rest.asked) == 3 * 5 * 2 - len(done)


def test_a_setting_that_diverges_is_not_chosen(tmp_path):
  made = config(trials=4)
  made.compare.methods = {"lora": {"optim": {"learning_rate": 1e-3}}}
  choice = search.search_row(made, tmp_path, "lora", Trainer(diverges=(0.00316, 0.01)))
  assert choice.best.rate < 0.00316
  assert next(one for one in choice.to_json()["tried"] if one["learning_rate"] == 0.00316)["scores"][0] is None


def test_a_groups_rate_is_a_knob():
  made = config()
  made.optim.groups = {"head": {"learning_rate": 0.01}}
  tried = SearchPoint(0.002, (("optim.groups.head.learning_rate", 0.3),)).laid_on(made)
  assert (tried.optim.learning_rate, tried.optim.groups.head.learning_rate) == (0.002, 0.3)
  assert made.optim.groups.head.learning_rate == 0.01


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"seeds": (2, 7)}, r"\[2\] are seeds of the final runs too"),
    ({"trials": 2}, "expected 3 settings or more"),
    ({"split": "dev"}, "no such split to search on"),
  ],
)
def test_mistakes(tmp_path, fields, message):
  made = config(**fields)

  class Lax(Trainer):
    def one(self, one, folder):
      return {"main_metric": "accuracy", "metrics": {"validation": {"accuracy": 0.5, "loss": 0.0}}}

  with pytest.raises(UserError, match=message):
    run(made, tmp_path, Lax())


def test_trials_of_an_older_version_are_refused(tmp_path):
  run(config(), tmp_path)
  path = next(tmp_path.rglob("score.json"))
  path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "loss"}))
  with pytest.raises(UserError, match="no 'loss', so an older version wrote it"):
    run(config(), tmp_path)


def test_a_study_trains_with_what_was_found(tmp_path):
  trained = {}

  def train(one, folder):
    if "search" in folder.parts:
      return {"main_metric": "accuracy", "metrics": {"validation": {"accuracy": score(one), "loss": 0.0}}}
    trained[folder.parts[-2]] = one.optim.learning_rate
    return test_study.train_one(one, folder)

  outcome = test_study.run(config(trials=6), tmp_path, train)
  searched = {one.row: one.learning_rate for one in outcome.summary.search}
  assert trained == searched and set(searched) == set(PEAKS)
  assert (
    json.loads((tmp_path / "runs/lora/seed-0/record.json").read_text())["config"]["optim"]["learning_rate"]
    == (searched["lora"])
  )
  page = (tmp_path / "report.html").read_text()
  assert 'id="rates"' in page and "The search" in page and "## The search" in (tmp_path / "report.md").read_text()
  rows = sections.search_section(outcome.summary).rows
  assert len(rows) == sum(len(one.tried) for one in outcome.summary.search)
  assert sum(row[-1].startswith("yes") for row in rows) == 3
  assert sections.rates(outcome.summary, narrow=True) is not None


def test_groups_of_seeds_are_trained_at_once(tmp_path):
  made = test_study.config()
  made.compare.together = 2
  groups = []

  class Watched(test_study.Trainer):
    def train(self, configs, folders):
      groups.append([folder.parts[-2:] for folder in folders])
      return super().train(configs, folders)

  outcome = run_study(made, tmp_path, Watched())
  assert outcome.exit_code == 0 and len(groups) == 6
  assert groups[0] == [("full", "seed-0"), ("full", "seed-1")] and groups[3] == [("full", "seed-2")]


def test_a_metric_of_which_less_is_better_has_its_valley_found(tmp_path):
  spec = {"error": {"name": "error", "kind": "corpus", "higher_is_better": False}}

  class Valley(Trainer):
    def one(self, one, folder):
      metrics = {"validation": {"error": 1.0 - score(one), "loss": 0.0}}
      return {"main_metric": "error", "metrics": metrics, "metrics_spec": spec}

  for row, choice in run(config(trials=8), tmp_path, Valley()).items():
    assert choice.interior and abs(math.log10(choice.best.rate / PEAKS[row])) < 0.2
  assert run(config(trials=8), tmp_path, None)["lora"].interior  # from what is finished
