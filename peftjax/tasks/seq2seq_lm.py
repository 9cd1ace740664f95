"""Sequence to sequence: translation, summarisation, transduction with an encoder-decoder."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.sources.types import Header
from peftjax.tasks import causal_lm
from peftjax.tasks.base import Arrays, Batch, Forward, Task, check_data, model_inputs
from peftjax.tasks.causal_lm import by_example, check_unsmoothed, summed_losses, token_metrics, token_rows
from peftjax.tasks.metric import Metric


class Seq2SeqLM(Task):
  """Cross entropy of the target sequence `labels` [B, L] int32, `IGNORED` where it is padded.

  The decoder reads the labels behind its start token, unless the batch has `decoder_input_ids`.

  Metrics: loss (nats a token), perplexity, log_likelihood (-loss) and accuracy over tokens; all_tokens_right, the share
  of sequences of which every token is the likeliest given the true ones before it.
  """

  name = "seq2seq_lm"
  head = "seq2seq_lm"
  main_metric = "log_likelihood"
  label_names: tuple[str, ...] = ()
  num_labels = 0
  specs = (*causal_lm.SPECS, Metric("all_tokens_right", "per-example", share=True, value="correct"))
  collate = "seq2seq"
  fields = ("source", "target")
  needs_no_labels = True
  writes_text = True

  @classmethod
  def make(cls, settings: ConfigDict, header: Header) -> Seq2SeqLM:
    check_data(cls.name, header)
    check_unsmoothed(cls.name, settings)
    return cls()

  def loss(self, forward: Forward, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Arrays]:
    return summed_losses(forward({**model_inputs(batch), "targets": batch["labels"]}), batch["labels"], batch)

  def predict(self, forward: Forward, batch: Batch) -> Arrays:
    return by_example(forward({**model_inputs(batch), "targets": batch["labels"]}), batch["labels"], batch)

  def per_example(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows = token_rows(predictions)
    return {**rows, "correct": (rows["hits"] == rows["tokens"]).astype(np.int32)}

  def metrics(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    right = float(self.per_example(predictions)["correct"].mean())
    return {**token_metrics(predictions), "all_tokens_right": right}
