"""Instructions and answers to tune a language model on; README.md beside this file describes them."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from peftjax.data.sources.splits import Labelled, divide, hashed_split

FILES = Path(__file__).parents[2] / "files"
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


class Builder(tfds.core.GeneratorBasedBuilder):
  """Configs: self_instruct (tasks of every kind) and gsm8k (school arithmetic). `target` answers `source`."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("self_instruct", "gsm8k")]

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict({"source": tfds.features.Text(), "target": tfds.features.Text()}),
      supervised_keys=("source", "target"),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
    if self.builder_config.name == "gsm8k":
      splits = divide(read_problems("train"), read_problems("test"))
    else:
      tasks = read_tasks()
      splits = {split: [row for row in tasks if hashed_split(row[1], SHARES) == split] for split in SHARES}
    return {split: self._generate_examples(rows) for split, rows in splits.items()}

  def _generate_examples(self, rows: list[Labelled]) -> Iterator[tuple[int, dict[str, str]]]:
    for index, (answer, question) in enumerate(rows):
      yield index, {"source": question, "target": answer}


def read_problems(split: str) -> list[Labelled]:
  """(worked answer, question) of GSM8K; the calculator's marks ``<<48/2=24>>`` are taken out of the answer."""
  return [(re.sub("<<.*?>>", "", row["answer"]), row["question"]) for row in _rows(f"gsm8k/{split}.jsonl.gz")]


def read_tasks() -> list[Labelled]:
  """(output, instruction) of the self-instruct seed; an input stands below its instruction."""
  tasks = []
  for row in _rows("self_instruct_seed/seed_tasks.jsonl.gz"):
    (instance,) = row["instances"]
    parts = [part.strip() for part in (row["instruction"], instance["input"]) if part.strip()]
    tasks.append((instance["output"].strip(), "\n\n".join(parts)))
  return tasks


def _rows(name: str) -> list[dict[str, Any]]:
  return [json.loads(line) for line in gzip.decompress((FILES / name).read_bytes()).decode("utf-8").splitlines()]
