"""Matching, losses and processors of detection against scipy, optax and transformers on torch."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from scipy.optimize import linear_sum_assignment
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss, HungarianMatcher
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

from peftjax import tasks
from peftjax.config import default
from peftjax.data.inputs.boxes import Boxes, shares
from peftjax.data.inputs.image_processing import processor_of
from peftjax.data.inputs.pictures import decode
from peftjax.data.sources.types import Header
from peftjax.tasks.assignment import assign
from tests.data.pictures import encoded, picture

LABELS = 5
WEIGHTS = {"class_cost": 2, "bbox_cost": 4, "giou_cost": 3, "bbox_loss_coefficient": 7, "giou_loss_coefficient": 3,
           "eos_coefficient": 0.2}  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_the_assignment_is_scipys_and_costs_what_optaxs_does(seed):
  random = np.random.default_rng(seed)
  rows = int(random.integers(1, 12))
  columns = rows + int(random.integers(0, 25))
  cost = (random.normal(size=(9, rows, columns)) * random.choice([0.01, 1.0, 30.0])).astype(np.float32)
  counts = random.integers(0, rows + 1, 9)
  found = np.asarray(jax.jit(jax.vmap(assign))(cost, counts))
  for one, count, chosen in zip(cost, counts, found):
    _, expected = linear_sum_assignment(one[:count])
    assert chosen[:count].tolist() == expected.tolist() and (chosen[count:] == columns).all()
  theirs = optax.assignment.hungarian_algorithm(jnp.asarray(cost[0]))
  _, expected = linear_sum_assignment(cost[0])
  np.testing.assert_allclose(cost[0][theirs].sum(), cost[0][np.arange(rows), expected].sum(), rtol=1e-6)


def test_what_is_no_number_is_matched_last():
  cost = np.array([[np.nan, 1.0, np.inf], [0.5, 0.0, np.nan]], np.float32)
  assert assign(jnp.asarray(cost), 2).tolist() == [1, 0]


def case(seed, images=3, queries=11, most=6):
  """(logits, boxes, batch, the same targets as transformers has them); one image has no object."""
  random = np.random.default_rng(seed)
  logits = random.normal(size=(images, queries, LABELS + 1)).astype(np.float32) * 2
  boxes = (1 / (1 + np.exp(-random.normal(size=(images, queries, 4))))).astype(np.float32)
  counts = [*random.integers(1, most + 1, images - 1), 0]
  labels, targets = np.full((images, most), -100, np.int32), np.zeros((images, most, 4), np.float32)
  theirs = []
  for row, count in enumerate(counts):
    labels[row, :count] = random.integers(0, LABELS, count)
    targets[row, :count] = np.concatenate(
      [random.uniform(0.3, 0.7, (count, 2)), random.uniform(0.05, 0.5, (count, 2))], 1
    )
    theirs.append(
      {"class_labels": torch.tensor(labels[row, :count]).long(), "boxes": torch.tensor(targets[row, :count])}
    )
  weight = np.ones(images, np.float32)
  return logits, boxes, {"labels": labels, "boxes": targets, "weight": weight, "index": np.arange(images)}, theirs


def reference(logits, boxes, theirs, auxiliary=()):
  """(loss, its gradient by logits and boxes) of transformers."""
  config = transformers.DetrConfig(num_labels=LABELS, auxiliary_loss=bool(auxiliary), decoder_layers=len(auxiliary) + 1,
                                   **WEIGHTS)  # fmt: skip
  inputs = [torch.tensor(one, requires_grad=True) for one in (logits, boxes)]
  layers = [torch.tensor(np.stack([*one, last])) for one, last in zip(zip(*auxiliary), (logits, boxes))] or (None, None)
  loss, parts, _ = ForObjectDetectionLoss(inputs[0], theirs, "cpu", inputs[1], config, *layers)
  loss.backward()
  return float(loss.detach()), [one.grad.numpy() for one in inputs], parts


@pytest.mark.parametrize("seed", range(3))
def test_loss_gradient_and_matching_are_transformers(seed):
  logits, boxes, batch, theirs = case(seed)
  task = tasks.make("object_detection", [f"l{index}" for index in range(LABELS)], **WEIGHTS)
  expected, gradients, _ = reference(logits, boxes, theirs)

  def loss(logits, boxes):
    total, count, _ = task.loss(lambda inputs: {"logits": logits, "pred_boxes": boxes}, batch, jax.random.key(0))
    return total / count

  found, own = jax.jit(jax.value_and_grad(loss, (0, 1)))(logits, boxes)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  for mine, other in zip(own, gradients):
    np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
  costs = {name: WEIGHTS[name] for name in ("class_cost", "bbox_cost", "giou_cost")}
  matched = HungarianMatcher(**costs)({"logits": torch.tensor(logits), "pred_boxes": torch.tensor(boxes)}, theirs)
  for row, (queries, targets) in enumerate(matched):
    mine = np.asarray(task.matching(jnp.asarray(logits), jnp.asarray(boxes), batch))[row]
    assert {int(target): int(query) for query, target in zip(queries, targets)} == {
      target: int(query) for target, query in enumerate(mine) if query < logits.shape[1]
    }


def test_earlier_layers_count_as_the_last_and_filling_rows_not_at_all():
  logits, boxes, batch, theirs = case(7)
  earlier = [case(seed)[:2] for seed in (8, 9)]
  expected, _, parts = reference(logits, boxes, theirs, earlier)
  assert "loss_giou_1" in parts
  task = tasks.make("object_detection", [f"l{index}" for index in range(LABELS)], **WEIGHTS)
  padded = {name: np.concatenate([array, array[:1]]) for name, array in batch.items()}
  padded["weight"][-1] = 0.0
  outputs = {"logits": logits, "pred_boxes": boxes}
  outputs |= {"auxiliary_logits": np.stack([one[0] for one in earlier])}
  outputs |= {"auxiliary_boxes": np.stack([one[1] for one in earlier])}
  axis = {"logits": 0, "pred_boxes": 0, "auxiliary_logits": 1, "auxiliary_boxes": 1}
  outputs = {name: jnp.concatenate([one, one.take([0], axis[name])], axis[name]) for name, one in outputs.items()}
  total, count, _ = task.loss(lambda inputs: outputs, padded, jax.random.key(0))
  assert count == 3
  np.testing.assert_allclose(total / count, expected, rtol=1e-5)


def test_an_image_of_an_evaluation_is_a_batch_of_its_own():
  logits, boxes, batch, theirs = case(4)
  task = tasks.make("object_detection", [f"l{index}" for index in range(LABELS)], **WEIGHTS)
  found = task.predict(lambda inputs: {"logits": logits, "pred_boxes": boxes}, batch)["loss"]
  for row in range(2):  # transformers has no loss for the image without an object alone
    alone = slice(row, row + 1)
    np.testing.assert_allclose(found[row], reference(logits[alone], boxes[alone], theirs[alone])[0], rtol=1e-5)


def test_an_image_without_an_object_has_a_loss_where_none_counts_nothing():
  logits, boxes, batch, _ = case(4)
  task = tasks.make("object_detection", [f"l{index}" for index in range(LABELS)], **{**WEIGHTS, "eos_coefficient": 0.0})
  found = task.predict(lambda inputs: {"logits": logits, "pred_boxes": boxes}, batch)["loss"]
  assert np.isfinite(found).all() and found[-1] == 0 < found[0]


PROCESSORS = {
  "detr": (DetrImageProcessorPil, {"size": {"shortest_edge": 24, "longest_edge": 40}}),
  "detr-square": (DetrImageProcessorPil, {"size": {"height": 21, "width": 33}, "image_mean": [0.1, 0.2, 0.3]}),
  "detr-old": (DetrImageProcessorPil, {"size": 30, "max_size": 50}),
  "detr-filled": (DetrImageProcessorPil, {"size": {"shortest_edge": 24, "longest_edge": 30}, "pad_size": (50, 40)}),
  "yolos": (YolosImageProcessorPil, {"size": {"shortest_edge": 40, "longest_edge": 70}}),
  "yolos-small": (YolosImageProcessorPil, {"size": {"shortest_edge": 64, "longest_edge": 64}}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_is_transformers(name):
  """Pictures, what they are filled up with, masks, and boxes of pictures that are not filled up."""
  kind, fields = PROCESSORS[name]
  reference = kind(**fields)
  ours = processor_of({**json.loads(reference.to_json_string()), "image_processor_type": kind.__name__}, name)
  for seed, (width, height) in enumerate([(31, 23), (23, 31), (60, 33), (24, 24), (90, 40), (40, 90)]):
    image = picture(width, height, seed)
    box = np.array([[2.0, 3.0, 17.5, 20.25]], np.float32)
    target = {"image_id": 1, "annotations": [{"bbox": [2.0, 3.0, 15.5, 17.25], "category_id": 1, "area": 9.0}]}
    pad = None if ours.pad is None else {"height": ours.pad[0], "width": ours.pad[1]}
    filled = reference(image, return_tensors="np", pad_size=pad)
    alone = reference(image, annotations=target, return_tensors="np", do_pad=False)
    found = ours(decode(encoded(image), name))
    expected = alone["pixel_values"][0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=f"{width}x{height}")
    np.testing.assert_allclose(shares(box, (width, height)), alone["labels"][0]["boxes"], rtol=1e-5)
    if ours.pad is not None:
      below, right = (most - side for most, side in zip(ours.pad, found.shape[1:]))
      whole = np.pad(found, ((0, 0), (0, below), (0, right)))
      np.testing.assert_allclose(whole, filled["pixel_values"][0], rtol=1e-5, atol=1e-5)
      mask = np.pad(np.ones(found.shape[1:], int), ((0, below), (0, right)))
      np.testing.assert_array_equal(mask, filled["pixel_mask"][0])


def test_a_batch_is_filled_up_and_masked(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "detr"}))
  fields = {"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 24, "longest_edge": 40}}
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
  config, task = default(), tasks.make("object_detection", ["a", "b"])
  header = Header("h", fields=("image", "boxes"), label_names=("a", "b"), most_boxes=3)
  inputs = Boxes(config, header, task, tmp_path)
  images = [picture(31, 23, 0), picture(23, 50, 1)]
  examples = [
    {"image": encoded(image), "size": image.size[::-1], "boxes": np.array([[1, 2, 9, 8], [0, 0, 5, 5]], np.float32),
     "labels": np.array([1, 0]), "crowd": np.array([False, row == 1])}
    for row, image in enumerate(images)
  ]  # fmt: skip
  batch = inputs.batch(examples, np.array([4, 2, -1]), 0, [None, None])
  assert {name: (one.shape, one.dtype) for name, one in batch.items()} == {
    name: (one.shape, one.dtype) for name, one in inputs.batch_spec(3).items()
  }
  expected = DetrImageProcessorPil(size=fields["size"], pad_size={"height": 40, "width": 40})(
    images, return_tensors="np"
  )
  np.testing.assert_allclose(batch["pixel_values"][:2], expected["pixel_values"], rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(batch["pixel_mask"][:2], expected["pixel_mask"])
  assert batch["labels"].tolist() == [[1, 0, -100], [1, -100, -100], [-100] * 3]  # a crowd is no object
