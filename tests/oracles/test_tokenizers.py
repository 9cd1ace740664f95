"""Token ids and word alignment against `transformers`."""

from __future__ import annotations

import json
import random
import string

import numpy as np
import pytest
import tokenizers
import transformers

from peftjax.data import load_tokenizer, model_folder
from peftjax.data.inputs.tokenizing import first_tokens

TEXTS = [
  "The rock is destined to be the 21st Century's new ''Conan'' .",
  "Jirí Hubac's script is a gem — naïve, déjà-vu; 100% 中文 ok?",
  "",
  " leading and trailing \t space \n",
  "word " * 60,
]
PAIRS = ["Second text.", "x", "", "longer " * 20, "b"]
WORDS = [["Ada", "Lovelace's", "engine", ",", "1843"], ["déjà-vu", "中文", "(unbelievable)"], ["w"] * 40]


@pytest.fixture(scope="module")
def bpe_folder(tmp_path_factory):
  """A byte-level BPE vocabulary, trained here, as the two files that RoBERTa and GPT-2 folders used to hold."""
  folder = tmp_path_factory.mktemp("bpe")
  trainer = tokenizers.ByteLevelBPETokenizer()
  rng = random.Random(0)
  lines = ["".join(rng.choices(string.ascii_letters + "   .,'", k=40)) for _ in range(200)] + TEXTS
  trainer.train_from_iterator(lines, 600, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
  trainer.save_model(str(folder))
  return folder


def written(folder, bpe_folder, config):
  for name in ("vocab.json", "merges.txt"):
    (folder / name).write_text((bpe_folder / name).read_text())
  (folder / "config.json").write_text(json.dumps(config))
  return folder


def same_ids(ours, theirs, max_length=24):
  for pairs in (None, PAIRS):
    expected = theirs(TEXTS, pairs, truncation=True, max_length=max_length)
    found = ours.encode(TEXTS, pairs)
    assert [ids.tolist() for ids in found.ids] == expected["input_ids"]
    if "token_type_ids" in expected:
      assert [ids.tolist() for ids in found.type_ids] == expected["token_type_ids"]
  assert ours.pad_id == theirs.pad_token_id
  assert ours.size == len(theirs)


def same_alignment(ours, theirs, max_length=24):
  expected = theirs(WORDS, is_split_into_words=True, truncation=True, max_length=max_length)
  found = ours.encode_words(WORDS, [list(range(len(words))) for words in WORDS])
  assert [ids.tolist() for ids in found.ids] == expected["input_ids"]
  lost = 0
  for row, words in enumerate(WORDS):
    places = first_tokens(expected.word_ids(row))
    assert {word: place for place, word in enumerate(found.tags[row]) if word >= 0} == places
    lost += len(words) - len(places)
  assert found.lost_words == lost > 0


def test_minilm_from_its_tokenizer_json_and_from_its_vocabulary_alone(tmp_path):
  folder = model_folder("minilm")
  theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
  for name in ("vocab.txt", "config.json"):
    (tmp_path / name).write_bytes((folder / name).read_bytes())
  for ours in (load_tokenizer(folder, 24), load_tokenizer(tmp_path, 24)):
    same_ids(ours, theirs)
    same_alignment(ours, theirs)
    assert ours.gives_type_ids


def test_roberta_from_vocabulary_and_merges(tmp_path, bpe_folder):
  folder = written(tmp_path, bpe_folder, {"model_type": "roberta"})
  files = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
  theirs = transformers.RobertaTokenizer(**files)
  ours = load_tokenizer(folder, 24)
  same_ids(ours, theirs)
  same_alignment(ours, transformers.RobertaTokenizer(**files, add_prefix_space=True))
  assert not ours.gives_type_ids
  theirs.save_pretrained(str(folder))
  again = load_tokenizer(folder, 24)
  same_ids(again, theirs)
  same_alignment(again, transformers.RobertaTokenizer(**files, add_prefix_space=True))


def test_gpt2_from_vocabulary_and_merges(tmp_path, bpe_folder):
  folder = written(tmp_path, bpe_folder, {"model_type": "gpt2", "eos_token_id": 2})
  (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>"}))
  theirs = transformers.GPT2Tokenizer(
    vocab=str(folder / "vocab.json"),
    merges=str(folder / "merges.txt"),
    eos_token="</s>",
    unk_token=None,
    bos_token=None,
  )
  ours = load_tokenizer(folder, 24)
  expected = theirs(TEXTS, truncation=True, max_length=24)["input_ids"]
  assert [ids.tolist() for ids in ours.encode(TEXTS).ids] == expected
  assert ours.pad_id == 1  # <pad> is in the vocabulary, though no setting names it
  assert not np.any([ids.any() for ids in ours.encode(TEXTS).type_ids])
