"""Masked language modelling: the tokens that stand where some are hidden."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.sources.types import Header
from peftjax.tasks.base import Arrays, Batch, Forward, Task, model_inputs
from peftjax.tasks.causal_lm import SPECS, by_example, check_unsmoothed, summed_losses, token_metrics, token_rows


class MaskedLM(Task):
  """Cross entropy of the tokens in `labels` [B, L] int32, `IGNORED` where none was hidden. The logits of a whole batch
  never exist: the model is told the labels and gives losses.

  Metrics, over hidden tokens: loss (nats a token), perplexity (exp of the loss), log_likelihood (-loss) and accuracy of
  the likeliest token. In evaluations the same tokens are hidden every time.
  """

  name = "masked_lm"
  head = "masked_lm"
  main_metric = "log_likelihood"
  label_names: tuple[str, ...] = ()
  num_labels = 0
  specs = SPECS
  input = "masked_tokens"
  fields = ("text",)
  needs_no_labels = True

  @classmethod
  def make(cls, settings: ConfigDict, header: Header) -> MaskedLM:
    check_unsmoothed(cls.name, settings)
    return cls()

  def loss(self, forward: Forward, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Arrays]:
    return summed_losses(forward({**model_inputs(batch), "targets": batch["labels"]}), batch["labels"], batch)

  def predict(self, forward: Forward, batch: Batch) -> Arrays:
    return by_example(forward({**model_inputs(batch), "targets": batch["labels"]}), batch["labels"], batch)

  def per_example(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return token_rows(predictions)

  def metrics(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    return token_metrics(predictions)
