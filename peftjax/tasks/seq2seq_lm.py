"""Sequence to sequence: translation, summarisation, transduction with an encoder-decoder."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from peftjax.tasks.base import Arrays, Batch, Forward, model_inputs
from peftjax.tasks.causal_lm import by_example, check_unlabelled, summed, token_metrics, token_rows


class Seq2SeqLM:
  """Cross entropy of the target sequence `labels` [B, L] int32, `IGNORED` where it is padded.

  The decoder reads the labels behind its start token, unless the batch has `decoder_input_ids`.

  Metrics: loss (nats a token), perplexity, log_likelihood (-loss) and accuracy over tokens; all_tokens_right, the share
  of sequences of which every token is the likeliest given the true ones before it.
  """

  name = "seq2seq_lm"
  head = "seq2seq_lm"
  main_metric = "log_likelihood"
  num_labels = 0

  def __init__(self, label_names: tuple[str, ...] = (), label_smoothing: float = 0.0):
    check_unlabelled(self.name, label_names, label_smoothing)
    self.label_names: tuple[str, ...] = ()

  def loss(self, forward: Forward, batch: Batch) -> tuple[jax.Array, jax.Array, Arrays]:
    return summed(forward({**model_inputs(batch), "targets": batch["labels"]}), batch["labels"], batch)

  def predict(self, forward: Forward, batch: Batch) -> Arrays:
    return by_example(forward({**model_inputs(batch), "targets": batch["labels"]}), batch["labels"], batch)

  def per_example(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows = token_rows(predictions)
    return {**rows, "correct": (rows["hits"] == rows["tokens"]).astype(np.int32)}

  def metrics(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    right = float(self.per_example(predictions)["correct"].mean())
    return {**token_metrics(predictions), "all_tokens_right": right}
