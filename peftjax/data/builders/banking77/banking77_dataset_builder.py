"""Online banking queries with 77 intents; README.md beside this file describes them."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from peftjax.data.sources.splits import Labelled, divide

FILES = Path(__file__).parents[2] / "files" / "banking77"


class Builder(tfds.core.GeneratorBasedBuilder):
  """A query and its intent, with the published test set."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}

  def _info(self) -> tfds.core.DatasetInfo:
    names = sorted({label for label, _ in read_queries("train")})
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=names)}
      ),
      supervised_keys=("text", "label"),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
    splits = divide(read_queries("train"), read_queries("test"))
    return {name: self._generate_examples(rows) for name, rows in splits.items()}

  def _generate_examples(self, rows: list[Labelled]) -> Iterator[tuple[int, dict[str, str]]]:
    for index, (label, text) in enumerate(rows):
      yield index, {"text": text, "label": label}


def read_queries(split: str) -> list[Labelled]:
  """(intent, query) of a file of the project; line breaks inside a query become spaces."""
  text = gzip.decompress((FILES / f"{split}.csv.gz").read_bytes()).decode("utf-8")
  return [(row["category"], " ".join(row["text"].split())) for row in csv.DictReader(io.StringIO(text, newline=""))]
