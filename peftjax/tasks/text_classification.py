"""One label, several labels, or a number for every text."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.tasks.base import Arrays, Batch, Forward, cross_entropy, model_inputs, weighted_mean


class TextClassification:
  """Cross entropy over `label_names`, or squared error where there are none.

  With `labels` [B] int32 an example has one label. With [B, C] float32 of zeros and ones it may have several (each a
  logistic loss). Without label names `labels` [B] float32 is the number to predict.

  Metrics: accuracy, macro_f1 and mcc (Matthews correlation) of single labels; accuracy (all labels right) and micro_f1
  of several; mse, pearson and spearman of numbers. Examples count by their weight in `loss`, once in the others.
  """

  name = "text_classification"
  head = "sequence_classification"

  def __init__(self, label_names: tuple[str, ...], label_smoothing: float = 0.0):
    self.label_names = label_names
    self.label_smoothing = label_smoothing
    self.regression = not label_names
    self.num_labels = len(label_names) or 1
    self.main_metric = "pearson" if self.regression else "accuracy"

  def loss(self, forward: Forward, batch: Batch) -> tuple[jax.Array, jax.Array, Arrays]:
    losses = self._losses(forward(model_inputs(batch))["logits"], batch["labels"], self.label_smoothing)
    return (losses * batch["weight"]).sum(), batch["weight"].sum(), {}

  def predict(self, forward: Forward, batch: Batch) -> Arrays:
    logits = forward(model_inputs(batch))["logits"].astype(jnp.float32)
    losses = self._losses(logits, batch["labels"], 0.0)
    return {"logits": logits, "labels": batch["labels"], "loss": losses, "weight": batch["weight"]}

  def _losses(self, logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    logits = logits.astype(jnp.float32)
    if self.regression:
      return (logits[:, 0] - labels.astype(jnp.float32)) ** 2
    if labels.ndim == 2:
      targets = labels * (1.0 - smoothing) + 0.5 * smoothing
      return -(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits)).mean(axis=-1)
    return cross_entropy(logits, labels, smoothing)

  def per_example(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    logits, labels = predictions["logits"], predictions["labels"]
    if self.regression:
      return {"prediction": logits[:, 0], "label": labels}
    if labels.ndim == 2:
      found = (logits > 0).astype(np.int32)
      return {"prediction": found, "label": labels, "correct": (found == labels).all(axis=1).astype(np.int32)}
    found = logits.argmax(axis=-1).astype(np.int32)
    return {"prediction": found, "label": labels, "correct": (found == labels).astype(np.int32)}

  def metrics(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    rows = self.per_example(predictions)
    found, labels = rows["prediction"], rows["label"]
    metrics = {"loss": weighted_mean(predictions["loss"], predictions["weight"])}
    if self.regression:
      return metrics | {"mse": float(np.mean((found - labels) ** 2))} | correlations(found, labels)
    metrics["accuracy"] = float(rows["correct"].mean())
    if labels.ndim == 2:
      hits, sizes = np.sum(found * labels), np.sum(found) + np.sum(labels)
      return metrics | {"micro_f1": float(2 * hits / sizes) if sizes else 0.0}
    table = confusion(found, labels, self.num_labels)
    return metrics | {"macro_f1": macro_f1(table), "mcc": matthews(table)}


def confusion(found: np.ndarray, labels: np.ndarray, num_labels: int) -> np.ndarray:
  """[C, C] counts: the row is the true label, the column the predicted one."""
  return np.bincount(labels * num_labels + found, minlength=num_labels**2).reshape(num_labels, num_labels)


def macro_f1(table: np.ndarray) -> float:
  """Mean F1 over the labels that occur among the true or the predicted ones."""
  hits, sizes = np.diag(table), table.sum(axis=0) + table.sum(axis=1)
  occurs = sizes > 0
  return float(np.mean(2 * hits[occurs] / sizes[occurs])) if occurs.any() else 0.0


def matthews(table: np.ndarray) -> float:
  """Matthews correlation for any number of labels (Gorodkin, 2004); 0 where a margin has a single label."""
  table = table.astype(np.float64)
  total, true, found = table.sum(), table.sum(axis=1), table.sum(axis=0)
  covariance = np.trace(table) * total - true @ found
  spread = (total**2 - found @ found) * (total**2 - true @ true)
  return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def correlations(found: np.ndarray, labels: np.ndarray) -> dict[str, float]:
  """Pearson's and Spearman's (average ranks for ties) correlations; 0 where either side is constant."""
  return {"pearson": _pearson(found, labels), "spearman": _pearson(_ranks(found), _ranks(labels))}


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
  a, b = a - a.mean(dtype=np.float64), b - b.mean(dtype=np.float64)
  scale = np.sqrt((a @ a) * (b @ b))
  return float(a @ b / scale) if scale > 0 else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
  _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
