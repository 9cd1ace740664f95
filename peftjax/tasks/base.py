"""The protocol of a task, and the arithmetic that tasks share.

A batch is a dict of arrays whose first axis is the example. `weight` [B] float32 is 0 for rows that only fill the
batch; `labels` and `index` go to the task, everything else to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Batch = Mapping[str, Any]
Forward = Callable[[Batch], Mapping[str, jax.Array]]  # the model's inputs -> its outputs; parameters are bound
Arrays = dict[str, Any]

NOT_INPUTS = ("labels", "weight", "index")


class Task(Protocol):
  """What training and evaluation ask of a task; `loss` and `predict` are traced, the rest runs on the host."""

  name: str
  head: str  # the kind of head the model needs
  label_names: tuple[str, ...]
  num_labels: int
  main_metric: str  # the metric that stands for the task where one number is wanted; more is better

  def loss(self, forward: Forward, batch: Batch) -> tuple[jax.Array, jax.Array, Arrays]:
    """(sum of weighted losses, sum of weights, extra sums): float32 scalars, so that micro-batches add up exactly."""

  def predict(self, forward: Forward, batch: Batch) -> Arrays:
    """Arrays whose first axis is the example, with "loss" and "weight" among them."""

  def per_example(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the metrics are computed from, one row an example: a bootstrap over examples resamples these."""

  def metrics(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics over all examples, from what `predict` gave for them."""


def model_inputs(batch: Batch) -> dict[str, Any]:
  """The part of a batch that the model reads."""
  return {name: array for name, array in batch.items() if name not in NOT_INPUTS}


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
  """-sum_c q_c log softmax(logits)_c in float32, q = (1 - smoothing) onehot(labels) + smoothing / C.

  Args:
    logits: [..., C].
    labels: [...] integers in [0, C).

  Returns:
    [...] float32.
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  chosen = jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
  return -(1.0 - smoothing) * chosen - smoothing * log_probs.mean(axis=-1)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
  """The mean in float64; NaN if all weights are 0."""
  total = np.sum(weights, dtype=np.float64)
  return float(np.sum(values.astype(np.float64) * weights) / total) if total else float("nan")
