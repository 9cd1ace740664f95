"""One label, several labels, or a number for every example, whatever it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.sources.types import OTHER_LABELS, OWN_SHARE, Header, Source
from peftjax.errors import UserError
from peftjax.tasks.base import (
  Arrays,
  Batch,
  Forward,
  Row,
  Task,
  check_data,
  cross_entropy,
  model_inputs,
  own_setting,
  weighted_mean,
)
from peftjax.tasks.metric import Metric

LOSS = Metric("loss", "per-example", value="loss", unit="nats", higher_is_better=False)
ACCURACY = Metric("accuracy", "per-example", value="correct", share=True)
OF_ONE = (LOSS, ACCURACY, Metric("macro_f1", "corpus", share=True), Metric("mcc", "corpus"))
OF_SEVERAL = (LOSS, ACCURACY, Metric("micro_f1", "corpus", share=True))
OF_NUMBERS = (
  Metric("loss", "per-example", value="loss", higher_is_better=False),
  Metric("mse", "per-example", value="loss", higher_is_better=False),
  Metric("pearson", "corpus"),
  Metric("spearman", "corpus"),
)
LIKELIEST = 5  # labels named with their probabilities


class Classification(Task):
  """Cross entropy over `label_names`, or squared error where there are none.

  With `labels` [B] int32 an example has one label. With [B, C] float32 of zeros and ones it may have several (each a
  logistic loss). Without label names `labels` [B] float32 is the number to predict.

  Metrics: accuracy, macro_f1 and mcc (Matthews correlation) of single labels; accuracy (all labels right) and micro_f1
  of several; mse, pearson and spearman of numbers. Examples count by their weight in `loss`, once in the others.

  `task.class_weights`, a number w_c for each label, weighs the training loss as torch's `CrossEntropyLoss(weight)` and
  `BCEWithLogitsLoss(weight)` do: each label's part of it by w_c, and of single labels an example's share in the mean by
  that of its label. Evaluations leave it out.
  """

  settings = {"class_weights": ()}
  reads = ("num_labels", "label_smoothing")

  def __init__(
    self,
    name: str,
    label_names: tuple[str, ...],
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] = (),
    label_kind: str = "",
  ):
    self.name = self.head = name
    self.fields = (name.removesuffix("_classification"), "label")
    self.label_names = label_names
    self.label_smoothing = label_smoothing
    self.regression = not label_names
    self.num_labels = len(label_names) or 1
    self.main_metric = "pearson" if self.regression else "accuracy"
    self.specs = OF_NUMBERS if self.regression else OF_SEVERAL if label_kind == "classes" else OF_ONE
    kind = "multi_label" if label_kind == "classes" else "single_label"
    self.problem_type = "regression" if self.regression else f"{kind}_classification"
    self.class_weights = tuple(float(one) for one in class_weights)

  @classmethod
  def make(cls, settings: ConfigDict, header: Header) -> Classification:
    check_data(settings.name, header)
    if header.fields and "label" not in header.fields:
      raise UserError(f"task.name={settings.name!r} needs a 'label'; {header.name!r} holds {', '.join(header.fields)}")
    if header.label_kind in ("class", "classes") and not header.label_names:
      raise UserError(f"{header.name!r} has label_kind={header.label_kind!r} and no label_names; name its classes, or "
                      "say label_kind='number'")  # fmt: skip
    names, weights = header.label_names, own_setting(cls, settings, "class_weights")
    fits = all(isinstance(one, int | float) and 0 <= one < math.inf for one in weights)
    if weights and not (fits and len(weights) == len(names) and any(weights)):
      each = f"a number for each of {', '.join(names[:8])}, none below 0 and not all 0"
      expected = each if names else "none where a number is predicted"
      raise UserError(f"task.class_weights={weights}: expected {expected}")
    if settings.label_smoothing and not names:
      raise UserError(f"task.label_smoothing={settings.label_smoothing}: expected 0 where a number is predicted")
    return cls(settings.name, names, settings.label_smoothing, weights, header.label_kind)

  def outputs(self, batch: Batch) -> dict[str, tuple[int, ...]]:
    return {"logits": (*batch["weight"].shape, self.num_labels)}

  def loss(self, forward: Forward, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Arrays]:
    logits = forward(model_inputs(batch))["logits"]
    losses, weight = self._weighted(logits, batch["labels"], batch["weight"])
    if OWN_SHARE in batch:
      share = batch[OWN_SHARE]
      other, other_weight = self._weighted(logits, batch[OTHER_LABELS], batch["weight"])
      losses, weight = share * losses + (1 - share) * other, share * weight + (1 - share) * other_weight
    return losses.sum(), weight.sum(), {}

  def _weighted(self, logits: jax.Array, labels: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(losses times weights, weights in the mean), both [B], in training."""
    losses = self._losses(logits, labels, self.label_smoothing, self.class_weights) * weight
    if self.class_weights and labels.ndim == 1:
      weight = weight * jnp.asarray(self.class_weights)[labels]
    return losses, weight

  def predict(self, forward: Forward, batch: Batch) -> Arrays:
    logits = forward(model_inputs(batch))["logits"].astype(jnp.float32)
    losses = self._losses(logits, batch["labels"])
    return {"logits": logits, "labels": batch["labels"], "loss": losses, "weight": batch["weight"]}

  def _losses(
    self, logits: jax.Array, labels: jax.Array, smoothing: float = 0.0, class_weights: Sequence[float] = ()
  ) -> jax.Array:
    logits = logits.astype(jnp.float32)
    if self.regression:
      return (logits[:, 0] - labels.astype(jnp.float32)) ** 2
    if labels.ndim == 2:
      targets = labels * (1.0 - smoothing) + 0.5 * smoothing
      each = -(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits))
      return (each * jnp.asarray(class_weights) if class_weights else each).mean(axis=-1)
    return cross_entropy(logits, labels, smoothing, class_weights)

  def per_example(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    logits, labels = predictions["logits"], predictions["labels"]
    if self.regression:
      return {"prediction": logits[:, 0], "label": labels}
    if labels.ndim == 2:
      found = (logits > 0).astype(np.int32)
      return {"prediction": found, "label": labels, "correct": (found == labels).all(axis=1).astype(np.int32)}
    found = logits.argmax(axis=-1).astype(np.int32)
    return {"prediction": found, "label": labels, "correct": (found == labels).astype(np.int32)}

  def answers(self, predictions: Mapping[str, np.ndarray], source: Source) -> list[Row]:
    """The "label" with its "probability" and the `LIKELIEST` of all by theirs; of several the "labels" above a half; of
    numbers the "value"."""
    from scipy import special  # slow to import

    logits = predictions["logits"].astype(np.float64)
    if self.regression:
      return [{"value": float(one)} for one in logits[:, 0]]
    several = self.problem_type.startswith("multi_label")
    chances = special.expit(logits) if several else special.softmax(logits, axis=1)
    said: list[Row] = []
    for row in chances:
      order = np.argsort(-row, kind="stable")
      shares = {self.label_names[at]: float(row[at]) for at in order[:LIKELIEST]}
      first = {"label": self.label_names[order[0]], "probability": float(row[order[0]])}
      found = {"labels": [self.label_names[at] for at in order if row[at] > 0.5]} if several else first
      said.append(found | {"probabilities": shares})
    return said

  def metrics(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    from sklearn.metrics import f1_score, matthews_corrcoef  # slow to import

    rows = self.per_example(predictions)
    found, labels = rows["prediction"], rows["label"]
    metrics = {"loss": weighted_mean(predictions["loss"], predictions["weight"])}
    if self.regression:
      return metrics | {"mse": float(np.mean((found - labels) ** 2))} | correlations(found, labels)
    metrics["accuracy"] = float(rows["correct"].mean())
    if labels.ndim == 2:
      return metrics | {"micro_f1": float(f1_score(labels, found, average="micro", zero_division=0.0))}
    macro = f1_score(labels, found, average="macro", zero_division=0.0)  # over the labels that occur on either side
    is_constant = len(np.union1d(labels, found)) < 2
    return metrics | {"macro_f1": float(macro), "mcc": 0.0 if is_constant else float(matthews_corrcoef(labels, found))}


def correlations(found: np.ndarray, labels: np.ndarray) -> dict[str, float]:
  """Pearson's and Spearman's (average ranks for ties) correlations; 0 where either side is constant."""
  from scipy import stats  # slow to import

  found, labels = found.astype(np.float64), labels.astype(np.float64)
  if len(found) < 2 or np.ptp(found) == 0 or np.ptp(labels) == 0:
    return {"pearson": 0.0, "spearman": 0.0}
  return {
    "pearson": float(stats.pearsonr(found, labels).statistic),
    "spearman": float(stats.spearmanr(found, labels).statistic),
  }
