"""Sequence to sequence: translation, summarisation, transduction with an encoder-decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
from ml_collections import ConfigDict

from peftjax.data.sources.types import Header
from peftjax.tasks.base import check_data
from peftjax.tasks.metric import Metric
from peftjax.tasks.token_task import TokenTask


class Seq2SeqLM(TokenTask):
  """Cross entropy of the target sequence `labels` [B, L] int32, `IGNORED` where it is padded.

  The decoder reads the labels behind its start token, unless the batch has `decoder_input_ids`. A metric more than
  tokens have: all_tokens_right, the share of sequences of which every token is the likeliest given those before.
  """

  name = "seq2seq_lm"
  head = "seq2seq_lm"
  specs = (*TokenTask.specs, Metric("all_tokens_right", "per-example", share=True, value="correct"))
  collate = "seq2seq"
  fields = ("source", "target")
  writes_text = True

  @classmethod
  def make(cls, settings: ConfigDict, header: Header) -> Self:
    check_data(cls.name, header)
    return super().make(settings, header)

  def per_example(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows = super().per_example(predictions)
    return {**rows, "correct": (rows["hits"] == rows["tokens"]).astype(np.int32)}

  def metrics(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    right = float(self.per_example(predictions)["correct"].mean())
    return {**super().metrics(predictions), "all_tokens_right": right}
