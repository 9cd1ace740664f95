"""A tokenizer folder and data small enough to check by eye."""

from __future__ import annotations

import json
from pathlib import Path

from peftjax import tasks
from peftjax.data import Form, Loaders, make_loaders, open_as
from peftjax.data.inputs.tokens import Tokens

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "play", "##ing", "##s", "un", "##able", "."]


def tokenizer_folder(folder: Path) -> Path:
  """WordPiece over `WORDS`, as a ``vocab.txt`` alone."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  return folder


def jsonl(path: Path, rows: list[dict]) -> Path:
  """Writes rows as JSON lines."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def reviews(count: int) -> list[dict]:
  """Rows whose text has 1 to 7 words, all different."""
  names = ["a", "b", "c", "play", "playing", "plays", "unable"]
  return [
    {"text": " ".join(names[(index // 7**place) % 7] for place in range(index % 7 + 1)), "label": index % 3}
    for index in range(count)
  ]


PLAIN = Form()


def text_loaders(config, tokenizer, dataset=None, task: str = "", form: Form = PLAIN, **share) -> Loaders:
  """The loaders of a config with a tokenizer that is at hand; the task is the config's or else the data's."""
  dataset = open_as(config.data.name, config.data) if dataset is None else dataset
  name = task or (dataset.task if config.task.name == "auto" else config.task.name)
  made = tasks.from_config(name, config.task, dataset)
  return make_loaders(config, dataset, lambda header: Tokens(config, header, made, None, tokenizer, form), **share)
