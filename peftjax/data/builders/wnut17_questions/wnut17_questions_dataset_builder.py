"""Questions for the entities of noisy user text; README.md beside this file describes them."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from peftjax.data.builders.wnut17.wnut17_dataset_builder import FILES
from peftjax.data.sources.conll import Sentence, read_conll
from peftjax.data.sources.splits import hashed_split

SENTENCES = 6  # in a context
QUESTIONS = {
  "corporation": "Which company is named?",
  "creative-work": "Which film, song, book or game is named?",
  "group": "Which team, band or organisation is named?",
  "location": "Which place is named?",
  "person": "Which person is named?",
  "product": "Which product is named?",
}
Question = dict[str, Any]


class Builder(tfds.core.GeneratorBasedBuilder):
  """Contexts of six sentences; for each type of entity that they hold a question, and one for a type that they lack."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}

  def _info(self) -> tfds.core.DatasetInfo:
    answers = tfds.features.Sequence({"text": tfds.features.Text(), "answer_start": np.int32})
    texts = {name: tfds.features.Text() for name in ("id", "question", "context")}
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict({**texts, "answers": answers, "is_impossible": np.bool_}),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Question]]]:
    return {name: self._generate_examples(name) for name in ("train", "validation", "test")}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, Question]]:
    sentences = read_conll(gzip.decompress((FILES / f"{split}.conll.gz").read_bytes()).decode("utf-8"))
    contexts = [sentences[at : at + SENTENCES] for at in range(0, len(sentences), SENTENCES)]
    found = [one for number, each in enumerate(contexts) for one in questions_of(each, f"{split}-{number}")]
    yield from enumerate(found)


def questions_of(sentences: list[Sentence], name: str) -> Iterator[Question]:
  """The questions for some sentences, joined by spaces to one context, with all answers of each in their order."""
  tokens = [token for words, _ in sentences for token in words]
  tags = [tag for _, each in sentences for tag in each]
  starts = np.cumsum([0, *(len(token) + 1 for token in tokens)])
  context, answers = " ".join(tokens), dict[str, list[dict[str, Any]]]()
  for first, tag in enumerate(tags):
    if tag.startswith("B-"):
      last = first
      while tags[last + 1 : last + 2] == [f"I-{tag[2:]}"]:
        last += 1
      text = context[starts[first] : starts[last] + len(tokens[last])]
      answers.setdefault(tag[2:], []).append({"text": text, "answer_start": int(starts[first])})
  missing = [kind for kind in QUESTIONS if kind not in answers]
  asked = [kind for kind in QUESTIONS if kind in answers]
  if missing:
    asked.append(hashed_split(context, {kind: 1 / len(missing) for kind in missing}, "missing"))
  for kind in asked:
    yield {
      "id": f"{name}-{kind}",
      "question": QUESTIONS[kind],
      "context": context,
      "answers": answers.get(kind, []),
      "is_impossible": kind not in answers,
    }
