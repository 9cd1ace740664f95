"""A run from its config to its summary, and what happens to it when something happens."""

from __future__ import annotations

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from peftjax import masks
from peftjax.data.loader import TrainLoader
from peftjax.errors import UserError
from peftjax.train import finished, loop, splits, watch
from peftjax.train.rows import read_rows
from tests.train.conftest import write_model


def rows_of(folder):
  return read_rows(folder / "metrics.jsonl")


def test_the_summary_counts_the_examples_that_were_read(config, tmp_path):
  config.data.update({"train_examples": 16, "eval_examples": 2})
  config.train.update({"epochs": 0, "steps": 1})
  assert loop.train(config, tmp_path / "run")["examples"] == {"train": 16, "validation": 2, "test": 2}


def test_a_run_and_its_files(config, tmp_path, capsys):
  config.train.final_splits = ("validation", "test")
  config.train.eval_every = 6
  config.train.tensorboard = True
  folder = tmp_path / "run"
  summary = loop.train(config, folder)

  rows = rows_of(folder)
  assert [(row["step"], row.get("split")) for row in rows] == [
    (3, None), (6, None), (6, "validation"), (9, None), (12, None), (12, "validation"), (12, "test"),
  ]  # fmt: skip
  assert rows[0]["loss"] > 0 and set(rows[0]["learning_rate"]) == {"adapter", "head"}
  saved = json.loads((folder / "config.json").read_text())
  assert saved["method"]["name"] == "lora" and saved["resolved"]["total_steps"] == 12
  assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["10", "12"]
  assert list((folder / "tensorboard").glob("events*"))
  assert "step_seconds" in read_rows(folder / "timing.jsonl")[-1]
  with np.load(folder / "predictions-test.npz", allow_pickle=False) as rows_npz:
    assert rows_npz["correct"].mean() == pytest.approx(summary["metrics"]["test"]["accuracy"])
    assert (np.diff(rows_npz["index"]) > 0).all()

  adapter = 2 * 2 * 2 * 8 * 8  # layers, query and value, A and B, width times rank
  assert summary["parameters"]["adapter"] == adapter and summary["parameters"]["head"] == 2 * 8 + 2
  assert summary["bytes"]["gradients"] == 4 * (adapter + 18)
  assert summary["bytes"]["optimizer"] == 8 * (adapter + 18)
  assert summary["step_flops"] > 0 and summary["compiled"][0]["compile_seconds"] > 0
  assert {one["shape"] for one in summary["compiled"]} == {"8x10", "8x16"}
  assert json.loads((folder / "summary.json").read_text()) == summary
  captured = capsys.readouterr()
  assert captured.out == "" and "step 12 of 12" in captured.err and "\x1b" not in captured.err


def test_a_finished_run_is_not_run_again(config, tmp_path, material, capsys):
  data = tmp_path / "gone.csv"
  shutil.copy(material / "reviews.csv", data)
  config.data.name = f"csv:{data}"
  first = loop.train(config, tmp_path / "run")
  data.unlink()
  capsys.readouterr()
  assert loop.train(config, tmp_path / "run") == first
  said = capsys.readouterr().err
  assert said.startswith("already finished, with step 12 in ") and "--config.model.adapter=START" in said
  config.train.keep = 5  # decides nothing that is computed
  assert loop.train(config, tmp_path / "run") == first


def test_a_summary_belongs_to_its_config_and_its_checkpoint(config, tmp_path):
  config.train.steps = 3
  loop.train(config, tmp_path / "run")
  other = config.copy_and_resolve_references()
  other.train.steps = 50
  other.method.rank = 1
  shutil.rmtree(tmp_path / "run" / "checkpoints")
  with pytest.raises(UserError, match=r"method\.rank: 8 \(the default\) -> 1; train\.steps: 3 -> 50"):
    loop.train(other, tmp_path / "run")
  with pytest.raises(UserError, match=r"whose checkpoint of step 3 is gone; remove .*summary\.json to train again"):
    loop.train(config, tmp_path / "run")
  (tmp_path / "run" / "summary.json").unlink()
  assert loop.train(config, tmp_path / "run")["step"] == 3

  saved = json.loads((tmp_path / "run" / "config.json").read_text())
  (tmp_path / "run" / "config.json").write_text(json.dumps({**saved, "seed": 5}))
  config.seed = 5
  with pytest.raises(UserError, match=r"belongs to another config"):
    loop.train(config, tmp_path / "run")
  (tmp_path / "run" / "config.json").unlink()
  with pytest.raises(UserError, match=r"holds a run without its config\.json"):
    loop.train(config, tmp_path / "run")
  assert (tmp_path / "run" / "checkpoints" / "3").is_dir()


@pytest.mark.parametrize("at", [6, 12])
def test_an_evaluation_that_fails_costs_no_update(config, tmp_path, monkeypatch, at):
  """The state is saved before it is evaluated; the next start evaluates it, and leaves the same bytes."""
  config.train.update({"eval_every": 6, "save_every": 6, "final_splits": ("validation", "test")})
  loop.train(config, tmp_path / "whole")
  plain = splits.score_split

  def fail(run, evaluators, split, *rest, **more):
    if rows_of(tmp_path / "parts")[-1]["step"] == at and split == ("test" if at == 12 else "validation"):
      raise UserError("the split cannot be read")
    return plain(run, evaluators, split, *rest, **more)

  monkeypatch.setattr(splits, "score_split", fail)
  with pytest.raises(UserError, match="the split cannot be read"):
    loop.train(config, tmp_path / "parts")
  monkeypatch.undo()
  assert (tmp_path / "parts" / "checkpoints" / str(at)).is_dir()
  read = []
  following = TrainLoader.__next__
  monkeypatch.setattr(TrainLoader, "__next__", lambda self: read.append(1) or following(self))
  loop.train(config, tmp_path / "parts")
  assert len(read) == 12 - at
  for name in ("metrics.jsonl", "predictions-test.npz"):
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_killed_between_the_first_evaluation_and_the_first_checkpoint(config, tmp_path):
  """The next start evaluates step 0 again, and its row stands there once."""
  config.train.update({"eval_first": True, "eval_every": 6, "steps": 6})
  loop.train(config, tmp_path / "run")
  whole = (tmp_path / "run" / "metrics.jsonl").read_bytes()
  assert rows_of(tmp_path / "run")[0]["step"] == 0
  shutil.rmtree(tmp_path / "run" / "checkpoints")
  (tmp_path / "run" / "summary.json").unlink()
  loop.train(config, tmp_path / "run")
  assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == whole


def test_a_folder_with_another_run_is_left_alone(config, tmp_path):
  loop.train(config, tmp_path / "run")
  before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
  config.optim.learning_rate = 1e-3
  config.method.rank = 4
  with pytest.raises(UserError, match=r"method\.rank: 8 \(the default\) -> 4; optim\.learning_rate: 0\.02 -> 0\.001"):
    loop.train(config, tmp_path / "run")
  assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def interrupted(at_step):
  """A `make_run` whose data sends SIGTERM to this process before a step."""

  def make_run(config):
    resolved = loop.make_run(config)
    plain = type(resolved.loaders.train).__next__

    class Loader(type(resolved.loaders.train)):
      def __next__(self):
        if self.get_state()["step"] == at_step - 1:
          os.kill(os.getpid(), signal.SIGTERM)
        return plain(self)

    resolved.loaders.train.__class__ = Loader
    return resolved

  return make_run


def test_sigterm_saves_and_the_same_command_goes_on(config, tmp_path):
  config.model.dropout = 0.1
  loop.train(config, tmp_path / "whole")
  with pytest.raises(SystemExit) as caught:
    loop.train(config, tmp_path / "parts", interrupted(7))
  assert caught.value.code == 143
  assert (tmp_path / "parts" / "checkpoints" / "7").is_dir()
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  assert not (tmp_path / "parts" / "summary.json").exists()
  loop.train(config, tmp_path / "parts")
  for name in ("metrics.jsonl", "predictions-validation.npz"):
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
  whole, parts = (finished.load_model(tmp_path / name)[2].params for name in ("whole", "parts"))
  jax.tree.map(np.testing.assert_array_equal, whole, parts)


@pytest.mark.parametrize("name", ["full", "bitfit"])
def test_other_masks_run_the_same_lines(config, tmp_path, name):
  config.method.name = name
  config.train.update({"steps": 3, "accumulate": 2, "predictions": False})
  summary = loop.train(config, tmp_path / "run")
  groups = summary["parameters"]["groups"]
  assert summary["parameters"]["trainable"] == sum(n for group, n in groups.items() if group != "frozen") > 18
  assert not (tmp_path / "run" / "predictions-validation.npz").exists()


def test_it_learns(config, tmp_path):
  config.method.name = "full"
  config.model.dropout = 0.0
  config.optim.learning_rate = 1e-2
  config.train.update({"steps": 60, "log_every": 10, "save_every": 0})
  loop.train(config, tmp_path / "run")
  losses = [row["loss"] for row in rows_of(tmp_path / "run") if "split" not in row]
  assert losses[-1] < 0.5 * losses[0]


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
  config.optim.update({"learning_rate": 1e30, "warmup": 0.0, "weight_decay": 0.0})
  with pytest.raises(watch.Diverged, match=r"step 2: loss .*, gradient norm nan, on examples \[\d+, "):
    loop.train(config, tmp_path / "run")


def test_a_loss_that_is_not_finite_is_left_out(config, tmp_path):
  config.optim.update({"learning_rate": 1e30, "warmup": 0.0, "weight_decay": 0.0})
  config.train.nonfinite = "skip"
  loop.train(config, tmp_path / "run")
  skipped = [row for row in rows_of(tmp_path / "run") if row.get("skipped")]
  assert skipped and skipped[0]["grad_norm"] is None


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"accumulate": 3}, r"train\.accumulate=3 does not divide train\.batch_size=8"),
    ({"nonfinite": "ignore"}, "expected one of 'stop', 'skip'"),
    ({"keep": 0}, r"train\.keep=0: expected a whole number from 1"),
    ({"final_splits": ("tset",)}, "did you mean 'test'"),
    ({"steps": 0, "epochs": 0.0}, "expected a positive number"),
  ],
)
def test_mistakes_are_named_before_anything_is_written(config, tmp_path, fields, message):
  config.train.update(fields)
  with pytest.raises(UserError, match=message):
    loop.train(config, tmp_path / "run")
  assert not (tmp_path / "run" / "config.json").exists()


def test_after_the_run(config, tmp_path, material):
  summary = loop.train(config, tmp_path / "run")
  result = finished.evaluate_run(tmp_path / "run")
  assert result["step"] == 12 and set(result["metrics"]) == {"validation", "test"}
  assert result["metrics"]["validation"] == summary["metrics"]["validation"]
  with pytest.raises(UserError, match="did you mean 'test'"):
    finished.evaluate_run(tmp_path / "run", ("tests",))
  _, step, model = finished.load_model(tmp_path / "run")
  assert step == 12 and float(np.abs(masks.flatten(model.params)["classifier.kernel"]).max()) > 0
  exported = finished.export(tmp_path / "run", "merged", tmp_path / "merged")
  assert exported["bytes"] > 0 and (tmp_path / "merged" / "model.safetensors").is_file()
  with pytest.raises(UserError, match="known: diffusers, embeds, merged, peft"):
    finished.export(tmp_path / "run", "onnx", tmp_path / "x")
  with pytest.raises(UserError, match="holds no run"):
    finished.load_model(tmp_path / "nowhere")


def test_another_base_is_refused(config, tmp_path, material):
  model = tmp_path / "model"
  shutil.copytree(material / "model", model)
  config.model.path = str(model)
  loop.train(config, tmp_path / "run")
  shutil.rmtree(model)
  write_model(model, seed=1)
  with pytest.raises(UserError, match="another base model"):
    finished.evaluate_run(tmp_path / "run")
