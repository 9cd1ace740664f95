"""Sentences with a human sentiment rating, in four domains; README.md beside this file describes them."""

from __future__ import annotations

import html
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from peftjax.data.packages import fetch
from peftjax.data.sources.splits import hashed_split, normalised

Row = dict[str, Any]

FILES = {
  "movies": "movieReviewSnippets_GroundTruth.txt",
  "tweets": "tweets_GroundTruth.txt",
  "products": "amazonReviewSnippets_GroundTruth.txt",
  "editorials": "nytEditorialSnippets_GroundTruth.txt",
}
# A domain that serves as a shifted test keeps half of its sentences for that.
SHARES = {
  domain: {"train": 0.7, "validation": 0.1, "test": 0.2}
  if domain == "movies"
  else {"train": 0.4, "validation": 0.1, "test": 0.5}
  for domain in FILES
}


class Builder(tfds.core.GeneratorBasedBuilder):
  """Configs: movies, tweets, products, editorials. The label is the sign of the mean rating; zero is dropped."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=domain) for domain in FILES]

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "id": tfds.features.Text(),
          "text": tfds.features.Text(),
          "rating": np.float32,  # the raters' mean, -4 to 4
          "label": tfds.features.ClassLabel(names=["negative", "positive"]),
        }
      ),
      supervised_keys=("text", "label"),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, Row]]]:
    domain = self.builder_config.name
    rows = read_ratings(fetch("vaderSentiment") / "additional_resources" / "hutto_ICWSM_2014.tar.gz", FILES[domain])
    return {
      name: self._generate_examples([row for row in rows if hashed_split(row["text"], SHARES[domain]) == name])
      for name in SHARES[domain]
    }

  def _generate_examples(self, rows: list[Row]) -> Iterator[tuple[str, Row]]:
    for row in rows:
      yield row["id"], row


def read_ratings(archive: Path, member: str) -> list[Row]:
  """The rated sentences of one file, each `normalised` text once; texts rated both ways and zero ratings left out."""
  with tarfile.open(archive) as tar:
    file = tar.extractfile(f"hutto_ICWSM_2014/{member}")
    assert file is not None
    lines = file.read().decode("utf-8").splitlines()
  rows: dict[str, Row] = {}
  contradicted = set()
  for line in lines:
    number, rating, text = line.split("\t")
    text = html.unescape(text).strip()
    if not text or float(rating) == 0:
      continue
    row = {"id": number, "text": text, "rating": float(rating), "label": int(float(rating) > 0)}
    first = rows.setdefault(normalised(text), row)
    if first["label"] != row["label"]:
      contradicted.add(normalised(text))
  return [row for text, row in rows.items() if text not in contradicted]
