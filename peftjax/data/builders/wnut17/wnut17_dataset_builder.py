"""Noisy user text with rare entities of six types; README.md beside this file describes it."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from peftjax.data.sources.conll import bio_names, read_conll

FILES = Path(__file__).parents[2] / "files" / "wnut17"
TYPES = ("corporation", "creative-work", "group", "location", "person", "product")


class Builder(tfds.core.GeneratorBasedBuilder):
  """Tokens and BIO tags, in the shared task's own three splits."""

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
    return {name: self._generate_examples(name) for name in ("train", "validation", "test")}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, list[str]]]]:
    text = gzip.decompress((FILES / f"{split}.conll.gz").read_bytes()).decode("utf-8")
    for index, (tokens, tags) in enumerate(read_conll(text)):
      yield index, {"tokens": tokens, "tags": tags}
