"""Flipped labels, test sets from elsewhere, and text that should be retained."""

from __future__ import annotations

import numpy as np
import pytest

from peftjax.data import load_tokenizer, open_data
from peftjax.data.batching import subset
from peftjax.data.flipping import flipped, flipped_ids
from peftjax.errors import UserError
from tests.data.test_loader import tiny_config
from tests.data.tiny import jsonl, reviews, text_loaders, tokenizer_folder

ROWS = reviews(47)


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  jsonl(tmp_path / "data" / "train.jsonl", ROWS)
  jsonl(tmp_path / "data" / "validation.jsonl", ROWS[:11])
  jsonl(tmp_path / "away" / "train.jsonl", ROWS[20:])
  jsonl(tmp_path / "away" / "test.jsonl", ROWS[13:20])
  return tmp_path


@pytest.fixture
def tokenizer(folder):
  return load_tokenizer(tokenizer_folder(folder / "model"))


def ids_of(loader):
  return sorted(int(index) for batch in loader for index in batch["index"] if index >= 0)


def test_flips_are_exact_nested_in_no_seed_and_never_the_true_label(folder):
  dataset = open_data(f"jsonl:{folder / 'data'}")
  ids = subset(47, 30)
  wrong = flipped_ids(ids, 47, 0.1)
  assert len(wrong) == 3 and set(wrong) <= set(ids)
  made, true = flipped(dataset, ids, 0.1).split("train"), dataset.split("train")
  changed = [index for index in range(47) if made[index]["label"] != true[index]["label"]]
  assert changed == wrong.tolist()
  assert all(made[index]["text"] == true[index]["text"] for index in range(47))
  assert flipped(dataset, ids, 0.0) is dataset
  assert flipped(dataset, ids, 0.1).split("validation")[3] == dataset.split("validation")[3]


def test_a_run_trains_and_is_scored_on_the_flipped_labels(folder, tokenizer):
  config = tiny_config(folder / "data", **{"data.flip_labels": 0.2, "data.train_examples": 20})
  loaders = text_loaders(config, tokenizer)
  assert ids_of(loaders.evals["train"]) == sorted(subset(47, 20).tolist())
  true = open_data(config.data.name).split("train")
  given = {int(i): int(label) for b in loaders.evals["train"] for i, label in zip(b["index"], b["labels"]) if i >= 0}
  assert sum(given[index] != true[index]["label"] for index in given) == 4
  trained = {}
  for _ in range(loaders.train.steps_per_epoch):
    batch = next(loaders.train)
    trained |= {int(i): int(label) for i, label in zip(batch["index"], batch["labels"]) if i >= 0}
  assert trained == given
  plain = text_loaders(tiny_config(folder / "data", **{"data.train_examples": 20}), tokenizer).train
  with pytest.raises(UserError, match=r"data\.flip_labels was None, is 0\.2"):
    text_loaders(config, tokenizer).train.set_state(plain.get_state())


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_out_of_range_is_a_mistake(folder, share):
  with pytest.raises(UserError, match="from 0 to below 1"):
    flipped(open_data(f"jsonl:{folder / 'data'}"), np.arange(47), share)


def test_a_shifted_set_is_a_split_of_its_own(folder, tokenizer):
  config = tiny_config(folder / "data", **{"data.shifted": f"('jsonl:{folder / 'away'}',)", "data.eval_examples": 5})
  loaders = text_loaders(config, tokenizer)
  assert set(loaders.evals) == {"validation", "train", "away"}
  assert len(ids_of(loaders.evals["away"])) == 5


def test_a_shifted_set_with_other_labels_is_a_mistake(folder, tokenizer):
  other = [{"text": row["text"], "label": f"topic {index % 3}"} for index, row in enumerate(ROWS)]
  for split in ("train", "test"):
    jsonl(folder / "topics" / f"{split}.jsonl", other)
  config = tiny_config(folder / "data", **{"data.shifted": f"('jsonl:{folder / 'topics'}',)"})
  with pytest.raises(UserError, match="data.shifted: .*topics has the labels topic 0"):
    text_loaders(config, tokenizer)


def test_retained_text_needs_a_language_model(folder, tokenizer):
  config = tiny_config(folder / "data", **{"data.retained": f"jsonl:{folder / 'away'}"})
  with pytest.raises(UserError, match="only a language model has a loss on text"):
    text_loaders(config, tokenizer)
  config.task.name = "causal_lm"
  batch = next(iter(text_loaders(config, tokenizer).evals["retained"]))
  assert batch["labels"].shape == batch["input_ids"].shape
