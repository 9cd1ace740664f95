"""Next-token prediction: continued pretraining, and instruction tuning with the loss on responses alone."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.inputs.base import IGNORED
from peftjax.data.sources.types import Header
from peftjax.errors import UserError
from peftjax.tasks.base import Arrays, Batch, Forward, Task, model_inputs
from peftjax.tasks.metric import Metric

SPECS = (
  Metric("loss", "ratio", unit="nats a token", higher_is_better=False, numerator=("losses",), denominator=("tokens",)),
  Metric("perplexity", "corpus", higher_is_better=False),
  Metric("log_likelihood", "ratio", unit="nats a token", numerator=("losses",), denominator=("tokens",), sign=-1.0),
  Metric("accuracy", "ratio", share=True, numerator=("hits",), denominator=("tokens",)),
)


class CausalLM(Task):
  """Cross entropy of every token that has a label, given what comes before it.

  `labels` [B, L] int32 are the token ids themselves, or `IGNORED` where no loss is wanted (prompts, padding); without
  them every token counts. In packed rows, which have `segment_ids` [B, L], a segment's first token is not predicted
  from the segment before it.

  Metrics, over tokens: loss (nats a token), perplexity, log_likelihood (-loss) and accuracy (of the likeliest token).
  """

  name = "causal_lm"
  head = "causal_lm"
  main_metric = "log_likelihood"
  label_names: tuple[str, ...] = ()
  num_labels = 0
  specs = SPECS
  collate = "causal"
  fields = ("text",)
  needs_no_labels = True
  writes_text = True

  @classmethod
  def make(cls, settings: ConfigDict, header: Header) -> CausalLM:
    check_unsmoothed(cls.name, settings)
    return cls()

  def loss(self, forward: Forward, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Arrays]:
    return summed_losses(forward({**model_inputs(batch), "targets": targets_of(batch)}), targets_of(batch), batch)

  def predict(self, forward: Forward, batch: Batch) -> Arrays:
    return by_example(forward({**model_inputs(batch), "targets": targets_of(batch)}), targets_of(batch), batch)

  def per_example(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return token_rows(predictions)

  def metrics(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    return token_metrics(predictions)


def targets_of(batch: Batch) -> jax.Array:
  """int32[B, L]: the token after each, `IGNORED` where there is none to predict."""
  ids = batch["input_ids"]
  labels = batch.get("labels")
  if labels is None:
    mask = batch.get("attention_mask")
    labels = ids if mask is None else jnp.where(mask > 0, ids, IGNORED)
  following = labels[:, 1:]
  segments = batch.get("segment_ids")
  if segments is not None:
    following = jnp.where(segments[:, 1:] == segments[:, :-1], following, IGNORED)
  return jnp.pad(following, ((0, 0), (0, 1)), constant_values=IGNORED)


def check_unsmoothed(name: str, settings: ConfigDict) -> None:
  """Raises a `UserError` for a setting that a language model has no use for."""
  if settings.label_smoothing:
    raise UserError(f"task.label_smoothing={settings.label_smoothing}: task {name} trains without it")


def summed_losses(
  outputs: Mapping[str, jax.Array], targets: jax.Array, batch: Batch
) -> tuple[jax.Array, jax.Array, Arrays]:
  """(sum of the tokens' losses, number of them, extra sums), each row by its weight."""
  counted = (targets != IGNORED) * batch["weight"][:, None]
  losses, hits = outputs["token_losses"], outputs["token_hits"]
  return (losses * counted).sum(), counted.sum(), {"token_hits": (hits * counted).sum()}


def by_example(outputs: Mapping[str, jax.Array], targets: jax.Array, batch: Batch) -> Arrays:
  """Of every row: "loss", the mean over its tokens; "weight", their number; "hits"."""
  counted = (targets != IGNORED) * batch["weight"][:, None]
  total = counted.sum(axis=1)
  mean = (outputs["token_losses"] * counted).sum(axis=1) / jnp.where(total > 0, total, 1.0)
  return {"loss": mean, "weight": total, "hits": (outputs["token_hits"] * counted).sum(axis=1)}


def token_rows(predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Sums of every row, from which all metrics follow."""
  tokens = predictions["weight"].astype(np.float64)
  losses = predictions["loss"].astype(np.float64) * tokens
  return {"tokens": tokens, "losses": losses, "hits": predictions["hits"].astype(np.float64)}


def token_metrics(predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
  """loss, perplexity, log_likelihood and accuracy over all tokens; NaN if there is none."""
  sums = {name: float(values.sum()) for name, values in token_rows(predictions).items()}
  if not sums["tokens"]:
    return dict.fromkeys(("loss", "perplexity", "log_likelihood", "accuracy"), float("nan"))
  loss = sums["losses"] / sums["tokens"]
  accuracy = sums["hits"] / sums["tokens"]
  return {"loss": loss, "perplexity": float(np.exp(loss)), "log_likelihood": -loss, "accuracy": accuracy}
