"""The best checkpoint, ending early, and the moving average of what trains."""

from __future__ import annotations

import copy
import json

import jax
import numpy as np
import pytest
from flax.training.early_stopping import EarlyStopping
from ml_collections import ConfigDict

from peftjax import predicting
from peftjax.errors import UserError
from peftjax.masks import flatten
from peftjax.tasks import Metric
from peftjax.train import finished, loop, plan, sweep, together
from peftjax.train.best import Found, Wanted, best_step
from peftjax.train.rows import read_rows
from peftjax.train.stacked import DoNotFit
from peftjax.train.state import averaged
from peftjax.train.watch import Watch
from tests.train.test_together import variants

LOSS = Metric("loss", "per-example", value="loss", higher_is_better=False)


@pytest.mark.parametrize("least", [0.0, 0.3])
def test_best_and_end_are_those_of_flax(least):
  """flax counts one evaluation more before it stops, so its patience is one less."""
  random = np.random.default_rng(0)
  for patience in (2, 3, 5):
    found, wanted = Found(), Wanted("validation", LOSS, least, patience)
    theirs = EarlyStopping(min_delta=least, patience=patience - 1)
    for step, value in enumerate(2 * np.exp(-0.1 * np.arange(40)) + random.normal(size=40), 1):
      found, theirs = wanted.after(found, step, value), theirs.update(value)
      assert found.value == theirs.best_metric
      assert wanted.is_over(found) == theirs.should_stop
      if theirs.should_stop:
        break
    assert theirs.should_stop and found.step == step - patience
  accuracy = Wanted("test", Metric("accuracy", "per-example", value="correct"))
  rises = accuracy.after(accuracy.after(accuracy.after(Found(), 3, 0.5), 6, float("nan")), 9, 0.6)
  assert rises == Found(9, 0.6, 0) and not accuracy.is_over(Found(3, 0.5, 100))


def test_the_average_is_that_of_diffusers():
  import torch
  from diffusers.training_utils import EMAModel

  random = np.random.default_rng(0)
  leaves = random.normal(size=(30, 5, 3)).astype(np.float32)
  parameter = torch.nn.Parameter(torch.from_numpy(leaves[0]).clone())
  theirs = EMAModel([parameter], decay=0.7, use_ema_warmup=False)
  ours = {"kernel": leaves[0]}
  for count, leaf in enumerate(leaves):
    parameter.data = torch.from_numpy(leaf)
    theirs.step([parameter])
    ours = averaged(ours, {"kernel": leaf}, np.int32(count), 0.7)
    np.testing.assert_allclose(ours["kernel"], theirs.shadow_params[0].numpy(), rtol=1e-5, atol=1e-6)


@pytest.fixture
def ending(config):
  """Too high a rate: the evaluations soon get worse. Evaluated every second update of at most 24."""
  config.data.buckets = ()
  config.optim.update({"learning_rate": 0.3, "schedule": "constant", "warmup": 0.0})
  config.train.update({"steps": 24, "save_every": 5, "eval_every": 2, "keep": 1, "ema": 0.9})
  config.train.update({"best": "validation/loss", "patience": 3, "min_delta": 0.001, "result": "best"})
  return config


def test_a_run_that_ends_early_and_was_interrupted(ending, tmp_path, train_in_two, capsys):
  """Bit for bit the whole one, whether it died before the best evaluation, after it, or while it was scored."""
  summary = loop.train(ending, whole := tmp_path / "whole")
  rows = [row for row in read_rows(whole / "metrics.jsonl") if row.get("split") == "validation"]
  during, final = ([row for row in rows if row.get("final", False) is flag] for flag in (False, True))
  best = min(during, key=lambda row: row["loss"])
  assert summary["best"] == {"step": best["step"], "split": "validation", "metric": "loss", "value": best["loss"]}
  assert summary["step"] == best["step"] + 6 < 24 and summary["result_step"] == best["step"] == best_step(whole)
  assert summary["ended"] == "3 evaluations of validation/loss were no better"
  (last,) = final
  assert last["loss"] == best["loss"] and summary["metrics"]["validation"]["loss"] == best["loss"]
  assert sorted(int(one.name) for one in (whole / "checkpoints").iterdir()) == [best["step"], summary["step"]]

  for step in (best["step"] + 1, summary["step"]):
    train_in_two(ending, parts := tmp_path / str(step), step)
    for name in ("metrics.jsonl", "best.json", "predictions-validation.npz", "config.json"):
      assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
  (parts / "summary.json").unlink()  # it died while its result was scored
  assert loop.train(ending, parts)["best"] == summary["best"]
  assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
  for which in ("last", "best"):
    params = [flatten(finished.load_model(folder, checkpoint=which)[2].params) for folder in (whole, parts)]
    for name, leaf in params[0].items():
      np.testing.assert_array_equal(leaf, params[1][name])

  found = {which: finished.evaluate_run(whole, ("validation",), checkpoint=which) for which in ("", "best", "last")}
  assert found[""] == found["best"] and found["best"]["step"] == best["step"]
  assert found["best"]["metrics"]["validation"]["loss"] == best["loss"]
  assert found["last"]["step"] == summary["step"]
  assert found["last"]["metrics"]["validation"]["loss"] == during[-1]["loss"]
  text = ["a good film"]
  said = {which: predicting.predict(whole, text, checkpoint=which)[0]["probability"] for which in ("best", "last")}
  assert said["best"] != said["last"]
  assert finished.export(whole, "peft", tmp_path / "adapter")["step"] == best["step"]
  with pytest.raises(UserError, match="--checkpoint=bset: did you mean 'best'"):
    finished.load_model(whole, checkpoint="bset")


def test_the_last_one_is_alone_where_it_is_the_best(config, tmp_path, monkeypatch):
  """Its evaluation comes after the last save, which kept the one that was the best until then."""
  config.data.buckets = ()
  config.train.update({"steps": 4, "save_every": 2, "eval_every": 2, "keep": 1, "best": "validation/loss"})
  monkeypatch.setattr(Wanted, "after", lambda self, found, step, value: Found(step, value))  # each is the best
  summary = loop.train(config, tmp_path)
  assert summary["best"]["step"] == summary["step"] == 4
  assert [one.name for one in (tmp_path / "checkpoints").iterdir()] == ["4"]
  assert finished.load_model(tmp_path, checkpoint="best")[1] == 4


def test_what_is_evaluated_and_exported_is_the_average(config, tmp_path, monkeypatch):
  """The mean of the leaves after each update, as this test counts it."""
  config.train.update({"steps": 6, "ema": 0.5, "save_every": 0, "log_every": 1})
  seen = []
  real = loop.CompiledStep.__call__

  def noting(self, state, frozen, batch):
    state, metrics = real(self, state, frozen, batch)
    seen.append({name: np.array(leaf) for name, leaf in flatten(state.trainable).items()})
    return state, metrics

  monkeypatch.setattr(loop.CompiledStep, "__call__", noting)
  summary = loop.train(config, tmp_path / "run")
  mean = seen[0]
  for count, leaves in enumerate(seen[1:], 1):
    kept = min(0.5, (1 + count) / (10 + count))
    mean = {name: kept * mean[name] + (1 - kept) * leaf for name, leaf in leaves.items()}
  _, step, model = finished.load_model(tmp_path / "run")
  params = flatten(model.params)
  assert step == 6
  for name, leaf in mean.items():
    np.testing.assert_allclose(params[name], leaf, rtol=1e-5, atol=1e-6)
  held = plan.plan(config, arguments=True)["arguments_by_kind"]
  assert summary["bytes"]["optimizer"] == 3 * 4 * summary["parameters"]["trainable"]  # two moments and the average
  config.train.ema = 0.0
  without = plan.plan(config, arguments=True)["arguments_by_kind"]
  assert held["optimizer"] - without["optimizer"] == 4 * summary["parameters"]["trainable"]
  evaluated = finished.evaluate_run(tmp_path / "run", ("validation",))["metrics"]["validation"]
  assert evaluated == summary["metrics"]["validation"]


def test_runs_of_one_program_have_their_own_best(ending, tmp_path, monkeypatch):
  """Died and gone on with, at ranks that differ: each as it ends alone."""
  ending.train.update({"patience": 0, "steps": 8})
  ending.model.dropout = 0.0
  ending.optim.name = "sgd"
  configs = variants(ending, name="lora")[:2]
  for one, rate in zip(configs, (0.5, 0.05)):
    one.optim.learning_rate = rate
  folders = [tmp_path / "all" / str(index) for index in range(2)]
  plain = Watch.fetch

  def dying(self):
    if self._held is not None and self._held[0] == 7:
      raise RuntimeError("died")
    return plain(self)

  with monkeypatch.context() as patch:
    patch.setattr(Watch, "fetch", dying)
    with pytest.raises(RuntimeError, match="died"):
      together.train_together(configs, folders)
  summaries = together.train_together(configs, folders)
  for index, (one, summary) in enumerate(zip(configs, summaries)):
    alone = loop.train(one, tmp_path / "alone" / str(index))
    assert summary["best"]["step"] == alone["best"]["step"] == summary["result_step"]
    assert summary["best"]["value"] == pytest.approx(alone["best"]["value"], rel=1e-4)
    assert summary["metrics"]["validation"]["loss"] == pytest.approx(summary["best"]["value"], rel=1e-5)
    ours, theirs = (flatten(finished.load_model(tmp_path / kind / str(index))[2].params) for kind in ("all", "alone"))
    jax.tree.map(lambda leaf, other: np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-5), ours, theirs)
  assert len({one["best"]["step"] for one in summaries} | {one["seed"] for one in summaries}) > 1
  again = copy.deepcopy(ending)
  again.train.patience, again.sweep = 2, ConfigDict({"seed": (0, 1)})
  with pytest.raises(DoNotFit, match="train.patience=2: runs of one program end together"):
    sweep.train_sweep(again, tmp_path / "sweep")


@pytest.mark.parametrize(
  ("fields", "line"),
  [
    ({"patience": 2}, "train.patience=2: say what is best, such as train.best=validation"),
    ({"result": "best"}, "train.result=best: say what is best"),
    ({"best": "validation", "eval_every": 0}, "no evaluation would decide; set train.eval_every"),
    ({"best": "validaton"}, "no split 'validaton' is evaluated in training; did you mean 'validation'"),
    ({"best": "validation/acuracy"}, "no metric 'acuracy'; did you mean 'accuracy'"),
  ],
)
def test_what_cannot_be_best(config, tmp_path, fields, line):
  config.train.update({"eval_every": 2, **fields})
  with pytest.raises(UserError, match=line):
    loop.train(config, tmp_path / "run")
  assert not (tmp_path / "run" / "summary.json").exists()


def test_a_run_without_a_best(config, tmp_path):
  config.train.steps = 2
  summary = loop.train(config, tmp_path / "run")
  assert summary["best"] is None and summary["ended"] == "after all updates" and summary["result_step"] == 2
  assert json.loads((tmp_path / "run" / "summary.json").read_text()) == json.loads(json.dumps(summary))
  with pytest.raises(UserError, match="has no best checkpoint: train with train.best=validation"):
    finished.load_model(tmp_path / "run", checkpoint="best")
