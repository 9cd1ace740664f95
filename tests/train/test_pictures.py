"""A classifier of pictures from the command line: trained, drawn, resumed to the same bytes, and what is wrong said."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from peftjax import cli
from peftjax import config as configs
from peftjax.compare.dimensions.base import Trained
from peftjax.compare.dimensions.confusion import measure, pictures
from peftjax.train import loop
from peftjax.train.evaluators import detections
from peftjax.train.evaluators import pictures as sheets
from tests.data.pictures import coloured, encoded, picture

VIT = {
  "model_type": "vit",
  "architectures": ["ViTModel"],
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "intermediate_size": 24,
  "image_size": 12,
  "patch_size": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("pictures")
  (root / "vit").mkdir()
  (root / "vit" / "config.json").write_text(json.dumps(VIT))
  coloured(root / "data", {"train": 16, "val": 4, "test": 6})
  return root


def overrides(folder, *more):
  return (
    f"model.path={folder / 'vit'}",
    "model.init=random",
    f"data.name=folder:{folder / 'data'}",
    "method.name=full",
    "optim.learning_rate=3e-3",
    "train.batch_size=12",
    "train.steps=12",
    "train.save_every=4",
    "train.tensorboard=False",
    "train.final_splits=('test',)",
    *more,
  )


MIXED = ("input.crop=0.5", "input.flip=True", "input.rand_augment=1", "input.mixup=0.2")


def test_a_run_learns_colours_draws_what_it_found_and_goes_on_where_it_died(folder, tmp_path, train_in_two):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  config = configs.load("", overrides(folder, *MIXED))
  summary = loop.train(config, whole)
  assert summary["metrics"]["test"]["accuracy"] > 0.8 and summary["main_metric"] == "accuracy"
  for name, least in (("examples", 100), ("confusion", 200)):
    assert min(Image.open(whole / f"{name}-test.png").size) > least

  with np.load(whole / "predictions-test.npz") as rows:
    matrix = measure(Trained(config, whole, summary, {"split": "test"}))
    assert np.trace(np.array(matrix["matrix"])) == rows["correct"].sum() and len(matrix["pictures"]) == 12
  assert pictures(matrix["pictures"], narrow=True).get_axes()

  train_in_two(config, parts, 7)
  for name in ("metrics.jsonl", "predictions-test.npz", "examples-test.png"):
    assert (parts / name).read_bytes() == (whole / name).read_bytes(), name


def test_pictures_that_cannot_be_used_end_the_run_in_one_line_with_their_file(folder, tmp_path, capsys):
  coloured(tmp_path / "data", {"train": 4, "test": 2})

  def said():
    given = [f"--config.{one}" for one in overrides(folder, f"data.name=folder:{tmp_path / 'data'}")]
    assert cli.main(["train", f"--workdir={tmp_path / 'run'}", *given]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]

  path = tmp_path / "data" / "train" / "red" / "2.png"
  content = path.read_bytes()
  path.write_bytes(content[:60])
  assert re.search(r"train/red/2.png: the image cannot be read", said())
  path.rename(path.with_suffix(".txt"))
  assert re.search(r"train/red/2.txt is no picture or recording by its ending", said())
  path.with_suffix(".txt").unlink()
  (tmp_path / "data" / "test" / "rde").mkdir()
  (tmp_path / "data" / "test" / "rde" / "0.png").write_bytes(content)
  assert re.search(r"test/rde/0.png: class 'rde' is none of the 3 .*; did you mean 'red'", said())
  shutil.rmtree(tmp_path / "data")
  (tmp_path / "data").mkdir()
  assert re.search(r"data'? holds no folder of a class", said())


@pytest.mark.parametrize("names", [("a\nb", "c"), ("$x_$", "c"), ("\ud800", "c"), ("", "c")])
def test_names_of_classes_that_no_line_or_formula_holds_are_drawn(tmp_path, names):
  source = [{"image": encoded(picture(seed=at))} for at in range(2)]
  rows = {"index": np.arange(2), "prediction": np.array([0, 1]), "label": np.array([0, 0]), "correct": np.array([1, 0])}
  sheets.save(tmp_path, "test", source, rows, names)
  boxes = np.tile(np.array([2.0, 2.0, 9.0, 9.0]), (2, 1, 1))
  found = {"true_boxes": boxes, "true_labels": np.zeros((2, 1), int), "scores": np.ones((2, 1)), "boxes": boxes}
  detections.save(tmp_path, "test", source, {**rows, **found, "prediction": np.zeros((2, 1), int)}, names, 2, 0.5)
  for name in ("examples", "confusion", "detections"):
    assert min(Image.open(tmp_path / f"{name}-test.png").size) > 100
