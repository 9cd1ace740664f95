"""Loaders: what is in a batch, which rows a process reads, and exact positions across processes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from peftjax import config as configs
from peftjax.data import load_tokenizer, open_data
from peftjax.data.inputs.tokenizing import IGNORED
from peftjax.errors import UserError
from tests.data.tiny import jsonl, reviews, text_loaders, tokenizer_folder

ROWS = reviews(47)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tokenizer(tmp_path):
  return load_tokenizer(tokenizer_folder(tmp_path / "model"))


@pytest.fixture
def config(tmp_path):
  jsonl(tmp_path / "data" / "train.jsonl", ROWS)
  jsonl(tmp_path / "data" / "validation.jsonl", ROWS[:11])
  return tiny_config(tmp_path / "data")


def tiny_config(folder: Path, **overrides):
  values = {"data.max_length": 12, "data.buckets": "(5, 8)", "train.batch_size": 8, "train.eval_batch_size": 4}
  values |= {"data.name": f"jsonl:{folder}", **overrides}
  return configs.load("", [f"{key}={value}" for key, value in values.items()])


def digest(batches) -> str:
  whole = hashlib.sha256()
  for batch in batches:
    for name in sorted(batch):
      whole.update(f"{name}{batch[name].dtype}{batch[name].shape}".encode() + batch[name].tobytes())
  return whole.hexdigest()


def take(iterator, count: int) -> list:
  return [next(iterator) for _ in range(count)]


def test_a_batch_holds_its_examples(config, tokenizer):
  train = text_loaders(config, tokenizer).train
  assert (train.examples, train.steps_per_epoch) == (47, 6)
  seen = Counter()
  for batch in take(train, 6):
    length = batch["input_ids"].shape[1]
    assert length in (5, 8, 12)
    assert {name: (array.dtype.name, array.shape) for name, array in batch.items()} == {
      "input_ids": ("int32", (8, length)),
      "attention_mask": ("int32", (8, length)),
      "token_type_ids": ("int32", (8, length)),
      "labels": ("int32", (8,)),
      "weight": ("float32", (8,)),
      "index": ("int32", (8,)),
    }
    for row, (index, weight) in enumerate(zip(batch["index"], batch["weight"], strict=True)):
      mask = batch["attention_mask"][row]
      if weight == 0:
        assert (index, batch["labels"][row], mask.sum()) == (-1, 0, 1)
        continue
      seen[int(index)] += 1
      ids = tokenizer.encode([ROWS[index]["text"]]).ids[0]
      assert batch["input_ids"][row][mask == 1].tolist() == ids.tolist()
      assert (batch["input_ids"][row][mask == 0] == tokenizer.pad_id).all()
      assert batch["labels"][row] == ROWS[index]["label"]
  assert seen == Counter(range(47))


def test_restoring_a_position_gives_bitwise_equal_batches_in_a_new_process(config, tokenizer, tmp_path):
  train = text_loaders(config, tokenizer).train
  take(train, 9)
  state = json.loads(json.dumps(train.get_state()))
  expected = digest(take(train, 7))
  code = f"""
import json, sys
from peftjax.data import load_tokenizer
from tests.data.test_loader import digest, take, text_loaders, tiny_config
from pathlib import Path
train = text_loaders(tiny_config(Path({str(tmp_path / "data")!r})), load_tokenizer({str(tmp_path / "model")!r})).train
train.set_state(json.loads(sys.argv[1]))
print(digest(take(train, 7)))
"""
  done = subprocess.run([sys.executable, "-c", code, json.dumps(state)], capture_output=True, text=True, check=True)
  assert done.stdout.split()[-1] == expected


def test_going_back_and_far_ahead_is_exact(config, tokenizer):
  train = text_loaders(config, tokenizer).train
  start = train.get_state()
  first = digest(take(train, 3))
  train.set_state({**start, "step": 6_000_000})
  ahead = take(train, 6)
  assert sorted(index for batch in ahead for index in batch["index"] if index >= 0) == list(range(47))
  train.set_state(start)
  assert digest(take(train, 3)) == first


def test_a_position_in_other_data_is_refused(config, tokenizer):
  state = text_loaders(config, tokenizer).train.get_state()
  for key, value, message in (
    ("train.batch_size", 4, "train.batch_size was 8, is 4"),
    ("seed", 1, "seed was 0, is 1"),
    ("data.train_examples", 9, "data.train_examples was 0, is 9"),
    ("data.max_length", 9, "data.buckets was|tokenizer was"),
  ):
    other = config.copy_and_resolve_references()
    configs.apply(other, f"{key}={value}")
    with pytest.raises(UserError, match=message):
      text_loaders(other, tokenizer).train.set_state(state)


def test_two_processes_read_the_halves_of_what_one_reads(config, tokenizer):
  whole = text_loaders(config, tokenizer)
  halves = [text_loaders(config, tokenizer, process_index=process, process_count=2) for process in (0, 1)]
  pairs = [
    (take(whole.train, 13), [take(half.train, 13) for half in halves]),
    (list(whole.evals["validation"]), [list(half.evals["validation"]) for half in halves]),
  ]
  for batches, parts in pairs:
    for batch, *split in zip(batches, *parts, strict=True):
      for name, array in batch.items():
        np.testing.assert_array_equal(array, np.concatenate([part[name] for part in split]))
        assert all(part[name].dtype == array.dtype for part in split)
  with pytest.raises(UserError, match="a batch of 8 does not divide over 3 processes"):
    text_loaders(config, tokenizer, process_index=0, process_count=3)


def test_evaluation_reads_every_example_once_and_the_same_each_time(config, tokenizer):
  loader = text_loaders(config, tokenizer).evals["validation"]
  batches = list(loader)
  assert len(batches) == len(loader) == 3
  assert loader.examples == 11
  indices = [int(index) for batch in batches for index in batch["index"]]
  assert sorted(indices) == [-1, *range(11)]
  assert sum(batch["weight"].sum() for batch in batches) == 11
  assert digest(loader) == digest(batches)


def test_subsets_nest_and_seeds_do_not_change_them(config, tokenizer):
  def seen(count: int, seed: int) -> set[int]:
    config.data.train_examples, config.seed = count, seed
    train = text_loaders(config, tokenizer).train
    return {int(index) for batch in take(train, train.steps_per_epoch) for index in batch["index"] if index >= 0}

  assert len(seen(9, 0)) == 9
  assert seen(9, 0) == seen(9, 1)
  assert seen(9, 0) < seen(20, 0) < seen(0, 0)


def test_reading_in_other_processes_changes_nothing(config, tokenizer):
  expected = digest(take(text_loaders(config, tokenizer).train, 8))
  config.data.workers = 2
  train = text_loaders(config, tokenizer).train
  assert digest(take(train, 8)) == expected
  state = train.get_state()
  config.data.workers = 0
  alone = text_loaders(config, tokenizer).train
  alone.set_state(state)
  assert digest(take(alone, 3)) == digest(take(train, 3))


def test_tags_pairs_numbers_and_several_labels_reach_the_batch(tokenizer, tmp_path):
  def one_batch(name: str, rows: list[dict], **overrides):
    jsonl(tmp_path / name / "train.jsonl", rows)
    return next(text_loaders(tiny_config(tmp_path / name, **overrides), tokenizer).train)

  tagged = one_batch("tags", [{"tokens": ["playing", "a"], "tags": ["B-X", "O"]}, {"tokens": ["b"], "tags": ["O"]}])
  row = tagged["index"].tolist().index(0)
  assert tagged["labels"][row].tolist() == [IGNORED, 1, IGNORED, 0, IGNORED]
  assert (tagged["labels"][tagged["weight"] == 0] == IGNORED).all()
  pair = one_batch(
    "pairs", [{"text": "a", "text_pair": "b", "label": "x"}, {"text": "b", "text_pair": "c", "label": "y"}]
  )
  assert pair["token_type_ids"][0].tolist() == [0, 0, 0, 1, 1]
  rated = one_batch("rated", [{"text": "a", "label": 0.5}, {"text": "b", "label": 2}])
  assert rated["labels"].dtype == np.float32
  assert sorted(rated["labels"][rated["weight"] == 1]) == [0.5, 2.0]
  several = one_batch("several", [{"text": "a", "labels": ["x", "z"]}, {"text": "b", "labels": ["y"]}])
  assert several["labels"].shape == (8, 3)
  assert several["labels"].sum() == 3


def test_packaged_sources_and_inputs_are_known_by_their_content(config, tokenizer, tmp_path):
  """A new release changes neither what a saved position must fit nor where lengths are kept."""
  made = text_loaders(config, tokenizer)
  kinds = {
    "data.name",
    "data's content",
    "data.train_examples",
    "train.batch_size",
    "seed",
    "tokenizer",
    "data.buckets",
  }
  assert set(made.train.get_state()["identity"]) == kinds
  key = hashlib.sha256(f"{made.dataset.fingerprint()} train {made.inputs.fingerprint()}".encode()).hexdigest()
  assert [one.name for one in (tmp_path / "cache" / "lengths").iterdir()] == [f"{key}.npz"]


def test_what_is_cut_is_told(tokenizer, tmp_path):
  jsonl(
    tmp_path / "long" / "train.jsonl",
    [{"tokens": ["a"] * 20, "tags": ["O"] * 19 + ["B-X"]}, {"tokens": ["b"], "tags": ["O"]}],
  )
  assert text_loaders(tiny_config(tmp_path / "long"), tokenizer).train.notes == [
    "column 'tags' holds a tag for every word, of 2 (O, B-X)",
    "train: 1 of 2 texts (50.0%) are cut at 12 tokens",
    "train: 10 words lose their tags, being cut off or unknown to the tokenizer",
  ]
  again = text_loaders(tiny_config(tmp_path / "long"), tokenizer).train.measured
  assert (again.lengths.tolist(), again.cut, again.lost) == ([12, 3], 1, 10)
  for saved in (tmp_path / "cache" / "lengths").iterdir():
    saved.write_bytes(saved.read_bytes()[:40])
  assert text_loaders(tiny_config(tmp_path / "long"), tokenizer).train.measured.lengths.tolist() == [12, 3]


def test_texts_beyond_what_the_tokenizer_says_the_model_is_made_for_are_told(tmp_path):
  folder = tokenizer_folder(tmp_path / "tokenizer")
  (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 8}')
  jsonl(tmp_path / "long" / "train.jsonl", [{"text": "a " * 7, "label": "x"}, {"text": "b", "label": "y"}])
  notes = text_loaders(tiny_config(tmp_path / "long"), load_tokenizer(folder, 12)).train.notes
  assert "train: texts are longer than the 8 tokens that the tokenizer says the model is made for" in notes


def test_a_file_that_breaks_while_training_is_one_error(config, tokenizer, tmp_path):
  train = text_loaders(config, tokenizer).train
  (tmp_path / "data" / "train.jsonl").write_text("")
  with pytest.raises(UserError, match=r"train.jsonl:\d+: no JSON"):
    take(train, 6)


def text_loaders_with(config, tokenizer, override):
  configs.apply(config, override)
  return text_loaders(config, tokenizer)


def test_settings_that_do_not_fit_are_said(config, tokenizer, tmp_path):
  for key, value, message in (
    ("task.name", "token_classification", "holds data for 'text_classification'"),
    ("train.batch_size", 0, "train.batch_size=0"),
    ("train.eval_batch_size", 0, "train.eval_batch_size=0"),
    ("data.train_examples", 48, "data.train_examples=48: the training split has 47"),
  ):
    other = config.copy_and_resolve_references()
    with pytest.raises(UserError, match=message):
      text_loaders_with(other, tokenizer, f"{key}={value}")
  jsonl(tmp_path / "plain" / "train.jsonl", [{"text": "a", "mood": "x"}])
  with pytest.raises(UserError, match="set data.label_column to one of text, mood"):
    text_loaders(tiny_config(tmp_path / "plain"), tokenizer, task="text_classification")


def test_an_opened_data_set_can_be_given(config, tokenizer):
  dataset = open_data(config.data.name)
  assert text_loaders(config, tokenizer, dataset=dataset).dataset is dataset


def test_evaluation_may_read_a_part_that_no_seed_changes(tmp_path, config, tokenizer):
  jsonl(tmp_path / "data" / "validation.jsonl", ROWS)
  whole = {int(index) for batch in text_loaders(config, tokenizer).evals["validation"] for index in batch["index"]}
  parts = []
  for count, seed in ((9, 0), (9, 1), (4, 0)):
    config.data.eval_examples, config.seed = count, seed
    loader = text_loaders(config, tokenizer).evals["validation"]
    parts.append([int(index) for batch in loader for index in batch["index"] if index >= 0])
    assert loader.examples == count == len(set(parts[-1]))
  assert sorted(parts[0]) == sorted(parts[1]) and set(parts[2]) < set(parts[0]) < whole
