"""Encoders of odd sizes with a tokenizer over a few words, and data of the kinds that are not classified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

WORDS = """ada babbage engine wrote the a in of london 1843 notes played ##s ##ed who what where when ? . , bank
lost card""".split()  # noqa: SIM905
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
PLACES = ["london", "ada", "1843", "engine", "babbage"]
QUESTIONS = {"who": "ada", "where": "london", "when": "1843"}


def encoder(folder: Path, architecture: str = "BertModel", **sizes: Any) -> Path:
  """A Hugging Face folder of a BERT with wide random weights, whose words are `WORDS`."""
  given = {"vocab_size": len(VOCABULARY), "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
           "intermediate_size": 20, "max_position_embeddings": 40, "hidden_dropout_prob": 0.0,
           "attention_probs_dropout_prob": 0.0, **sizes}  # fmt: skip
  torch.manual_seed(0)
  made = getattr(transformers, architecture)(transformers.BertConfig(**given))
  for parameter in made.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
  made.save_pretrained(folder)
  (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
  (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
  return folder


def text(random: np.random.Generator, words: int) -> str:
  """Some words of the vocabulary."""
  return " ".join(random.choice(WORDS[:9], words))


def squad(path: Path, contexts: int = 12, unanswerable: bool = True, seed: int = 0) -> Path:
  """SQuAD's JSON: contexts of 4 to 30 words with a name, a place and a year in most, and questions for them."""
  random, paragraphs = np.random.default_rng(seed), []
  for number in range(contexts):
    words = [*random.choice(["engine", "wrote", "the", "in", "of", "notes"], random.integers(4, 31)), f"{number}"]
    held = [kind for kind in QUESTIONS if random.random() < 0.8] or ["who"]
    for kind in held:
      words.insert(int(random.integers(len(words))), QUESTIONS[kind])
    context = " ".join(words)
    asked = [kind for kind in QUESTIONS if kind in held or unanswerable]
    paragraphs.append({"context": context, "qas": [question(f"{number}-{kind}", kind, context) for kind in asked]})
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "x", "paragraphs": paragraphs}]}))
  return path


def question(name: str, kind: str, context: str) -> dict[str, Any]:
  """A question for what stands once in the context, or for what does not."""
  answer = QUESTIONS[kind]
  answers = [{"text": answer, "answer_start": context.index(answer)}] if answer in context.split() else []
  return {"id": name, "question": f" {kind} ?", "answers": answers, "is_impossible": not answers}


def pairs(path: Path, rows: int = 24, scored: bool = True, seed: int = 0) -> Path:
  """CSV of two texts and, if asked for, a score that is the share of words that they have in common."""
  random, lines = np.random.default_rng(seed), ["sentence1,sentence2" + (",score" if scored else "")]
  for _ in range(rows):
    first, second = text(random, int(random.integers(2, 8))), text(random, int(random.integers(2, 8)))
    common = len({*first.split()} & {*second.split()}) / len({*first.split()} | {*second.split()})
    lines.append(f"{first},{second}" + (f",{common:.3f}" if scored else ""))
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("\n".join(lines) + "\n")
  return path


def flags(model: Path, data: str, **more: Any) -> list[str]:
  """Overrides of a run of four updates."""
  given = {"model.path": model, "data.name": data, "data.max_length": 24, "data.buckets": "(16,)",
           "train.batch_size": 4, "train.eval_batch_size": 6, "train.steps": 4, "train.save_every": 2,
           "train.tensorboard": False, "train.final_splits": "('validation','test')", "method.rank": 3,
           "optim.learning_rate": 0.01, **more}  # fmt: skip
  return [f"--config.{name}={value}" for name, value in given.items()]
