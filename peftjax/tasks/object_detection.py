"""Objects in images as a set: every box is matched to the prediction that suits it best, and all others say "none".

The loss is that of DETR (Carion et al. 2020, arXiv 2005.12872, equations 1 and 2, appendix A.2), and YOLOS's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.sources.types import OBJECT_DETECTION, Header, Source
from peftjax.errors import UserError
from peftjax.tasks.assignment import assign
from peftjax.tasks.average_precision import COCO_METRICS, average_precision
from peftjax.tasks.base import Arrays, Batch, Forward, Row, Task, check_data, cross_entropy, model_inputs, own_setting
from peftjax.tasks.boxes import corners, generalized_iou
from peftjax.tasks.metric import Metric

_SURE = 0.05  # the least score of what is told of new pictures
_WHOLE = (0.5, 0.5, 1.0, 1.0)  # a box where there is none, so that no area is 0


@dataclasses.dataclass(frozen=True)
class Weights:
  """What the parts of matching and loss count: fields of `config.task`, whose names and defaults are transformers'.

  Attributes:
    class_cost, bbox_cost, giou_cost: of the matching: the class's probability, the L1 distance, and the GIoU.
    bbox_loss_coefficient, giou_loss_coefficient: of the loss, beside the cross entropy's 1.
    eos_coefficient: in the cross entropy, of predictions that are to say "none".
  """

  class_cost: float = 1.0
  bbox_cost: float = 5.0
  giou_cost: float = 2.0
  bbox_loss_coefficient: float = 5.0
  giou_loss_coefficient: float = 2.0
  eos_coefficient: float = 0.1


class ObjectDetection(Task):
  """Set prediction over "logits" [B, Q, labels + 1] and "pred_boxes" [B, Q, 4], (centre x, centre y, width, height) as
  shares of the image; of models that give "auxiliary_logits" and "auxiliary_boxes" [layers, B, Q, ...], over these too.

  A batch's loss is transformers': cross entropy over all predictions, by its weights, plus L1 and GIoU of matched boxes
  over their number in the batch; each micro-batch is divided by its own. In evaluations an image is a batch.

  Metrics: "map", the mean average precision of COCO over IoU .50 to .95; "map50" and "map75" at one; the loss.
  """

  name = head = OBJECT_DETECTION
  fields = ("image", "boxes", "labels")
  input = "boxes"
  evaluators = ("detect",)
  settings = {field.name: field.default for field in dataclasses.fields(Weights)}
  main_metric = "map"
  specs = (
    Metric("loss", "per-example", value="loss", higher_is_better=False),
    *(Metric(name, "corpus", share=True) for name in COCO_METRICS),
  )

  def __init__(self, label_names: Sequence[str], weights: Weights):
    self.label_names, self.num_labels, self.weights = tuple(label_names), len(label_names), weights

  @classmethod
  def make(cls, settings: ConfigDict, header: Header) -> ObjectDetection:
    check_data(settings.name, header)
    given = {name: own_setting(cls, settings, name) for name in cls.settings}
    for name, value in given.items():
      if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(f"task.{name}={value!r}: expected a number of at least 0")
    return cls(header.label_names, Weights(**given))

  def loss(self, forward: Forward, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Arrays]:
    outputs, count = forward(self.inputs(batch)), batch["weight"].sum()
    parts = [self.parts(*one, batch) for one in _layers(outputs)]
    sums = [{name: (part * batch["weight"]).sum() for name, part in one.items()} for one in parts]
    return sum(self.total(one) for one in sums) * count, count, {}

  def inputs(self, batch: Batch) -> dict[str, Any]:
    return {name: array for name, array in model_inputs(batch).items() if name != "boxes"}

  def total(self, parts: Mapping[str, jax.Array]) -> jax.Array:
    """The loss of images whose `parts` were added up."""
    count = jnp.maximum(parts["count"], 1.0)
    distance = self.weights.bbox_loss_coefficient * parts["distance"]
    overlap = self.weights.giou_loss_coefficient * parts["overlap"]
    weight = jnp.where(parts["entropy_weight"] > 0, parts["entropy_weight"], 1.0)  # 0: no object, eos_coefficient=0
    return parts["entropy"] / weight + (distance + overlap) / count

  def parts(self, logits: jax.Array, boxes: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """float32 [B] each, for every image: "entropy", the weighted cross entropies, and "entropy_weight", their weights;
    "distance", Σ |b - b̂|₁ of matched boxes, "overlap", Σ 1 - GIoU, and "count", the number of boxes."""
    logits, boxes = logits.astype(jnp.float32), boxes.astype(jnp.float32)
    labels, is_box = batch["labels"], batch["labels"] >= 0
    targets = jnp.where(is_box[..., None], batch["boxes"], jnp.asarray(_WHOLE))
    matched = self.matching(logits, boxes, batch)
    classes = jnp.full(logits.shape[:2], self.num_labels, jnp.int32)
    classes = jax.vmap(lambda row, at, label: row.at[at].set(label, mode="drop"))(classes, matched, labels)
    weight = jnp.where(classes == self.num_labels, self.weights.eos_coefficient, 1.0)
    chosen = jnp.take_along_axis(boxes, jnp.minimum(matched, boxes.shape[1] - 1)[..., None], axis=1)
    distance = jnp.abs(chosen - targets).sum(axis=-1)
    overlap = 1.0 - generalized_iou(corners(chosen), corners(targets))
    return {
      "entropy": (weight * cross_entropy(logits, classes)).sum(axis=1),
      "entropy_weight": weight.sum(axis=1),
      "distance": jnp.where(is_box, distance, 0.0).sum(axis=1),
      "overlap": jnp.where(is_box, overlap, 0.0).sum(axis=1),
      "count": is_box.sum(axis=1).astype(jnp.float32),
    }

  def matching(self, logits: jax.Array, boxes: jax.Array, batch: Batch) -> jax.Array:
    """int32 [B, T]: the prediction that each box is matched to; Q for rows that hold none.

    Args:
      logits, boxes: [B, Q, labels + 1] and [B, Q, 4].
      batch: "labels" [B, T], below 0 where there is no box, and "boxes" [B, T, 4].
    """
    logits, boxes = jax.lax.stop_gradient((logits, boxes))
    weights, labels = self.weights, batch["labels"]
    targets = jnp.where((labels >= 0)[..., None], batch["boxes"], jnp.asarray(_WHOLE))[:, :, None]
    predicted = boxes[:, None]
    probability = jnp.take_along_axis(jax.nn.softmax(logits), jnp.maximum(labels, 0)[:, None], axis=2)
    distance = jnp.abs(predicted - targets).sum(axis=-1)
    overlap = generalized_iou(corners(predicted), corners(targets))
    cost = weights.bbox_cost * distance - weights.class_cost * probability.swapaxes(1, 2) - weights.giou_cost * overlap
    return jax.vmap(assign)(cost, (labels >= 0).sum(axis=1))

  def predict(self, forward: Forward, batch: Batch) -> Arrays:
    outputs = forward(self.inputs(batch))
    logits, boxes = outputs["logits"].astype(jnp.float32), outputs["pred_boxes"].astype(jnp.float32)
    probabilities = jax.nn.softmax(logits)[..., :-1]
    losses = sum(self.total(self.parts(*one, batch)) for one in _layers(outputs))
    return {
      "loss": losses,
      "weight": batch["weight"],
      "scores": probabilities.max(axis=-1),
      "prediction": probabilities.argmax(axis=-1).astype(jnp.int32),
      "boxes": corners(boxes),
    }

  def finish(self, predictions: dict[str, np.ndarray], source: Source) -> dict[str, np.ndarray]:
    """With boxes in pixels of the images as they are stored, and beside them the objects that there are.

    Adds "true_boxes" float32 [N, T, 4] (x0, y0, x1, y1), "true_labels" int32 [N, T], below 0 where there is none, and
    "crowd" bool [N, T], of boxes that hold several objects.
    """
    examples = [source[int(index)] for index in predictions["index"]]
    most = max([len(one["labels"]) for one in examples], default=0)
    sides = np.array([one["size"][::-1] * 2 for one in examples], np.float32).reshape(-1, 1, 4)
    found = {
      "boxes": predictions["boxes"] * sides,
      "true_boxes": np.zeros((len(examples), most, 4), np.float32),
      "true_labels": np.full((len(examples), most), -100, np.int32),
      "crowd": np.zeros((len(examples), most), bool),
    }
    for row, one in enumerate(examples):
      place = (row, slice(len(one["labels"])))
      found["true_boxes"][place], found["true_labels"][place] = one["boxes"], one["labels"]
      found["crowd"][place] = one["crowd"]
    return {**predictions, **found}

  def per_example(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = ("scores", "prediction", "boxes", "true_boxes", "true_labels", "crowd")
    return {name: predictions[name] for name in names}

  def answers(self, predictions: Mapping[str, np.ndarray], source: Source) -> list[Row]:
    """The "objects" that were found with a score of at least `_SURE`, the surest first: "label", "score" and "box", the
    corners (x0, y0, x1, y1) in pixels."""
    del source
    said: list[Row] = []
    for scores, labels, boxes in zip(*(predictions[name] for name in ("scores", "prediction", "boxes"))):
      order = [at for at in np.argsort(-scores, kind="stable") if scores[at] >= _SURE]
      objects = [
        {"label": self.label_names[labels[at]], "score": float(scores[at]), "box": boxes[at].tolist()} for at in order
      ]
      said.append({"objects": objects})
    return said

  def metrics(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    found = average_precision(self.per_example(predictions), self.num_labels)
    return {"loss": float(np.mean(predictions["loss"], dtype=np.float64)), **found}


def _layers(outputs: Mapping[str, jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
  """Logits and boxes of the last layer, and of those before it where the model gives them."""
  last = [(outputs["logits"], outputs["pred_boxes"])]
  if "auxiliary_logits" not in outputs:
    return last
  return [*last, *zip(outputs["auxiliary_logits"], outputs["auxiliary_boxes"])]
