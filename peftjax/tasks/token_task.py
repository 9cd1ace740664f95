"""What tasks share whose loss is a sum over tokens: the cross entropy that the model itself gives of its targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.inputs.base import IGNORED
from peftjax.data.sources.types import Header
from peftjax.tasks.base import Arrays, Batch, Forward, Task, model_inputs
from peftjax.tasks.metric import Metric


class TokenTask(Task):
  """Cross entropy of `targets`, int32[B, L], `IGNORED` where none is wanted. The logits of a whole batch never exist:
  the model is told the targets, and gives `token_losses` and `token_hits`, float32[B, L].

  Metrics, over tokens: loss (nats a token), perplexity (exp of the loss), log_likelihood (-loss) and accuracy (of the
  likeliest token).
  """

  label_names: tuple[str, ...] = ()
  num_labels = 0
  reads = ()
  main_metric = "log_likelihood"
  specs: tuple[Metric, ...] = (
    Metric(
      "loss", "ratio", unit="nats a token", higher_is_better=False, numerator=("losses",), denominator=("tokens",)
    ),
    Metric("perplexity", "corpus", higher_is_better=False),
    Metric("log_likelihood", "ratio", unit="nats a token", numerator=("losses",), denominator=("tokens",), sign=-1.0),
    Metric("accuracy", "ratio", share=True, numerator=("hits",), denominator=("tokens",)),
  )
  needs_no_labels = True

  @classmethod
  def make(cls, settings: ConfigDict, header: Header) -> Self:
    return cls()

  def targets(self, batch: Batch) -> jax.Array:
    """int32[B, L]: the labels as they are."""
    return batch["labels"]

  def loss(self, forward: Forward, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Arrays]:
    outputs, counted = self._outputs(forward, batch)
    return (
      (outputs["token_losses"] * counted).sum(),
      counted.sum(),
      {"token_hits": (outputs["token_hits"] * counted).sum()},
    )

  def predict(self, forward: Forward, batch: Batch) -> Arrays:
    """Of every row: "loss", the mean over its tokens; "weight", their number; "hits"."""
    outputs, counted = self._outputs(forward, batch)
    total = counted.sum(axis=1)
    mean = (outputs["token_losses"] * counted).sum(axis=1) / jnp.where(total > 0, total, 1.0)
    return {"loss": mean, "weight": total, "hits": (outputs["token_hits"] * counted).sum(axis=1)}

  def _outputs(self, forward: Forward, batch: Batch) -> tuple[Mapping[str, jax.Array], jax.Array]:
    """The model's outputs, and float32[B, L]: how much each token counts."""
    targets = self.targets(batch)
    outputs = forward({**model_inputs(batch), "targets": targets})
    return outputs, (targets != IGNORED) * batch["weight"][:, None]

  def per_example(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sums of every row, from which all metrics follow."""
    tokens = predictions["weight"].astype(np.float64)
    losses = predictions["loss"].astype(np.float64) * tokens
    return {"tokens": tokens, "losses": losses, "hits": predictions["hits"].astype(np.float64)}

  def metrics(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """NaN if there is no token."""
    sums = {name: float(values.sum()) for name, values in self.per_example(predictions).items()}
    if not sums["tokens"]:
      return dict.fromkeys(("loss", "perplexity", "log_likelihood", "accuracy"), float("nan"))
    loss = sums["losses"] / sums["tokens"]
    accuracy = sums["hits"] / sums["tokens"]
    return {"loss": loss, "perplexity": float(np.exp(loss)), "log_likelihood": -loss, "accuracy": accuracy}
