"""A detector from the command line: trained, drawn, resumed to the same bytes, and what is wrong said in one line."""

from __future__ import annotations

import json
import re
import types

import numpy as np
import pytest
from PIL import Image

from peftjax import cli
from peftjax import config as configs
from peftjax.data.inputs.boxes import Boxes, cropped
from peftjax.data.sources.types import Header
from peftjax.errors import UserError
from peftjax.train import loop

YOLOS = {
  "model_type": "yolos",
  "architectures": ["YolosModel"],
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "intermediate_size": 24,
  "image_size": [24, 24],
  "patch_size": 6,
  "num_detection_tokens": 4,
}
COLOURS = ((220, 40, 30), (30, 60, 220))


def lay(root, splits):
  """Squares in two colours on grey, in COCO's layout; one image of each split has none."""
  for split, count in splits.items():
    (root / split).mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
      random = np.random.default_rng([number, len(split)])
      image = Image.new("RGB", (24, 20), (128, 128, 128))
      for _ in range(random.integers(1, 3) if number else 0):
        label, (x, y), side = int(random.integers(2)), random.integers(0, 12, 2), int(random.integers(5, 8))
        image.paste(COLOURS[label], (int(x), int(y), int(x) + side, int(y) + side))
        annotations.append({"id": len(annotations), "image_id": number, "category_id": label, "iscrowd": 0,
                            "bbox": [int(x), int(y), side, side]})  # fmt: skip
      image.save(root / split / f"{number}.png")
      images.append({"id": number, "file_name": f"{number}.png", "width": 24, "height": 20})
    categories = [{"id": label, "name": name} for label, name in enumerate(("red", "blue"))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / split / "_annotations.coco.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("detection")
  (root / "yolos").mkdir()
  (root / "yolos" / "config.json").write_text(json.dumps(YOLOS))
  lay(root / "data", {"train": 24, "valid": 4, "test": 6})
  return root


def overrides(folder, *more):
  return (
    f"model.path={folder / 'yolos'}",
    "model.init=random",
    f"data.name=coco:{folder / 'data'}",
    "input.size=24",
    "method.name=full",
    "optim.learning_rate=5e-3",
    "train.batch_size=8",
    "train.steps=60",
    "train.log_every=1",
    "train.save_every=20",
    "train.tensorboard=False",
    "train.final_splits=('test',)",
    *more,
  )


def test_a_run_finds_boxes_draws_them_and_goes_on_where_it_died(folder, tmp_path, train_in_two, capsys):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  config = configs.load("", overrides(folder, "input.flip=True", "input.crop=0.9"))
  summary = loop.train(config, whole)
  metrics = summary["metrics"]["test"]
  assert summary["main_metric"] == "map" and 0.0 <= metrics["map"] <= metrics["map50"] <= 1.0
  rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
  losses = [row["loss"] for row in rows if "split" not in row]
  assert len(losses) == 60 and np.mean(losses[-10:]) < np.mean(losses[:10])
  assert min(Image.open(whole / "detections-test.png").size) > 200
  with np.load(whole / "predictions-test.npz") as found:
    assert found["boxes"].shape == (6, 4, 4) and found["true_boxes"].shape[0] == 6
    assert found["true_labels"].max() == 1 and (found["true_labels"][0] < 0).all()

  train_in_two(config, parts, 27)
  for name in ("metrics.jsonl", "predictions-test.npz", "detections-test.png"):
    assert (parts / name).read_bytes() == (whole / name).read_bytes(), name

  capsys.readouterr()
  file = folder / "data" / "test" / "3.png"
  assert cli.main(["predict", f"--workdir={whole}", f"--file={file}"]) == 0
  said = json.loads(capsys.readouterr().out)
  with np.load(whole / "predictions-test.npz") as found:
    row = int(np.flatnonzero(found["index"] == 3)[0])
    order = [at for at in np.argsort(-found["scores"][row]) if found["scores"][row, at] >= 0.05]
    assert said["file"] == str(file) and len(said["objects"]) == len(order) > 0
    for one, at in zip(said["objects"], order):
      assert one["label"] == ("red", "blue")[found["prediction"][row, at]]
      assert one["score"] == pytest.approx(found["scores"][row, at], rel=1e-4)
      np.testing.assert_allclose(one["box"], found["boxes"][row, at], atol=1e-2)


def said(folder, tmp_path, capsys, *more):
  given = [f"--config.{one}" for one in overrides(folder, *more)]
  assert cli.main(["train", f"--workdir={tmp_path / 'run'}", *given]) == 2
  return capsys.readouterr().err.strip().splitlines()[-1]


def test_pictures_that_cannot_be_used_end_the_run_in_one_line_with_their_file(folder, tmp_path, capsys):
  lay(tmp_path / "data", {"train": 8, "test": 2})
  data = f"data.name=coco:{tmp_path / 'data'}"
  path = tmp_path / "data" / "train" / "2.png"
  content = path.read_bytes()
  path.write_bytes(content[:60])
  assert re.search(r"train/2.png: the image cannot be read", said(folder, tmp_path, capsys, data))
  Image.new("RGB", (24, 21)).save(path)
  line = said(folder, tmp_path, capsys, data)
  assert re.search(r"train/2.png: 24 x 21 pixels; its boxes are told for 24 x 20", line)
  path.unlink()
  assert re.search(r"image 2: no file '2.png' in .*train", said(folder, tmp_path, capsys, data))
  path.write_bytes(content)
  table = tmp_path / "data" / "train" / "_annotations.coco.json"
  boxes = json.loads(table.read_text())
  boxes["annotations"][0]["bbox"][0] = 30
  table.write_text(json.dumps(boxes))
  line = said(folder, tmp_path, capsys, data)
  assert re.search(r"_annotations.coco.json: .*\.png: bbox=\[30, .* lies outside the image of 24 x 20 pixels", line)


def test_a_source_that_does_not_say_how_many_objects_an_image_has():
  inputs = types.SimpleNamespace(header=Header("mine", "object_detection"))
  model = types.SimpleNamespace(example_inputs=("pixel_values",), config=types.SimpleNamespace(num_queries=5))
  with pytest.raises(UserError, match="mine says no most_boxes, which is then 100, and config.json says num_queries=5"):
    Boxes.check(inputs, model)


def test_more_objects_than_the_model_finds_and_settings_out_of_range(folder, tmp_path, capsys):
  (tmp_path / "yolos").mkdir()
  (tmp_path / "yolos" / "config.json").write_text(json.dumps({**YOLOS, "num_detection_tokens": 1}))
  line = said(folder, tmp_path, capsys, f"model.path={tmp_path / 'yolos'}")
  assert "has an image with 2 objects, and config.json says num_detection_tokens=1" in line
  assert "task.eos_coefficient=-1.0: expected a number of at least 0" in said(
    folder, tmp_path, capsys, "task.eos_coefficient=-1.0"
  )
  line = said(folder, tmp_path, capsys, "evaluators.detect.shown=-1")
  assert "evaluators.detect.shown=-1: expected a whole number, none below 0" in line
  line = said(folder, tmp_path, capsys, "evaluators.detect.score=2.0")
  assert "evaluators.detect.score=2.0: expected a number from 0 to 1" in line
  assert "input.crop=2.0: expected a number from 0 to 1" in said(folder, tmp_path, capsys, "input.crop=2.0")


def test_a_crop_keeps_what_is_still_there():
  image = Image.new("RGB", (40, 30))
  image.paste((255, 0, 0), (10, 5, 20, 15))
  boxes = np.array([[10, 5, 20, 15]], np.float32)
  seen = set()
  for seed in range(40):
    part, found, kept = cropped(image, boxes, np.random.default_rng(seed), 0.4)
    red = np.asarray(part)[..., 0] == 255
    seen.add(bool(kept[0]))
    assert kept[0] == (red.sum() > 30) or red.sum() == 30
    if kept[0]:
      rows, columns = np.nonzero(red)
      expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
      np.testing.assert_array_equal(found[0], expected)
  assert seen == {True, False}
