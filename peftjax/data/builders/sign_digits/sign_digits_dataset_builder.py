"""Pictures of hands that sign a digit; README.md beside this file describes them."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

ARCHIVE = Path(__file__).parents[2] / "files" / "sign_digits" / "images.zip"
HELD_OUT = {"test": 15, "validation": 8}  # of each digit


class Builder(tfds.core.GeneratorBasedBuilder):
  """A picture and its digit."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(100, 100, 3), encoding_format="jpeg"),
          "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
    splits = divided(read_pictures())
    return {name: self._generate_examples(rows) for name, rows in splits.items()}

  def _generate_examples(self, rows: list[tuple[str, bytes]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, content in rows:
      yield name, {"image": content, "label": name.partition("/")[0]}


def read_pictures() -> list[tuple[str, bytes]]:
  """("DIGIT/FILE", bytes) of all pictures."""
  with zipfile.ZipFile(ARCHIVE) as archive:
    return [(name, archive.read(name)) for name in sorted(archive.namelist())]


def divided(pictures: list[tuple[str, bytes]]) -> dict[str, list[tuple[str, bytes]]]:
  """The splits: of every digit the pictures with the smallest hashes are held out."""
  found: dict[str, list[tuple[str, bytes]]] = {"train": [], "validation": [], "test": []}
  for digit in sorted({name.partition("/")[0] for name, _ in pictures}):
    of_digit = [one for one in pictures if one[0].startswith(f"{digit}/")]
    of_digit.sort(key=lambda one: hashlib.sha256(one[1]).digest())
    start = 0
    for split, count in HELD_OUT.items():
      found[split] += of_digit[start : start + count]
      start += count
    found["train"] += of_digit[start:]
  return found
