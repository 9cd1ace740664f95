"""Pairs of online banking queries, with one intent or with two; README.md beside this file describes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from peftjax.data.builders.banking77.banking77_dataset_builder import read_queries
from peftjax.data.sources.splits import Labelled, divide

Pair = dict[str, Any]


class Builder(tfds.core.GeneratorBasedBuilder):
  """Two queries and whether they have one intent (1) or two (0); pairs for training all have one."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}

  def _info(self) -> tfds.core.DatasetInfo:
    texts = {name: tfds.features.Text() for name in ("text", "text_pair")}
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({**texts, "score": np.float32}))

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Pair]]]:
    splits = divide(read_queries("train"), read_queries("test"))
    return {name: self._generate_examples(rows, name != "train") for name, rows in splits.items()}

  def _generate_examples(self, rows: list[Labelled], with_others: bool) -> Iterator[tuple[int, Pair]]:
    yield from enumerate(pairs_of(rows, with_others))


def pairs_of(rows: list[Labelled], with_others: bool) -> Iterator[Pair]:
  """Every query with the next one of its intent, in an order by hash of the text; if asked for, also with the query of
  another intent that comes next in that order."""
  ordered = sorted(rows, key=lambda row: hashlib.sha256(row[1].encode()).digest())
  of_intent: dict[str, list[str]] = {}
  for intent, text in ordered:
    of_intent.setdefault(intent, []).append(text)
  following = {
    text: texts[(place + 1) % len(texts)] for texts in of_intent.values() for place, text in enumerate(texts)
  }
  for place, (intent, text) in enumerate(ordered):
    if following[text] != text:
      yield {"text": text, "text_pair": following[text], "score": 1.0}
    if with_others:
      later = (ordered[(place + step) % len(ordered)] for step in range(1, len(ordered)))
      yield {"text": text, "text_pair": next(other for kind, other in later if kind != intent), "score": 0.0}
