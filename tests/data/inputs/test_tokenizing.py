"""Tokenizing: ids, alignment of tags, what is cut, and damaged folders."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from peftjax.data.inputs.tokenizing import IGNORED, first_tokens, load_tokenizer
from peftjax.errors import UserError
from tests.data.tiny import WORDS, tokenizer_folder


@pytest.fixture
def tokenizer(tmp_path):
  return load_tokenizer(tokenizer_folder(tmp_path), max_length=8)


def words(ids: np.ndarray) -> list[str]:
  return [WORDS[index] for index in ids]


def test_texts_and_pairs_carry_special_tokens_and_types(tokenizer):
  encoded = tokenizer.encode(["Playing a.", ""])
  assert words(encoded.ids[0]) == ["[CLS]", "play", "##ing", "a", ".", "[SEP]"]
  assert words(encoded.ids[1]) == ["[CLS]", "[SEP]"]
  pair = tokenizer.encode(["a"], ["b c"])
  assert words(pair.ids[0]) == ["[CLS]", "a", "[SEP]", "b", "c", "[SEP]"]
  assert pair.type_ids[0].tolist() == [0, 0, 0, 1, 1, 1]
  assert tokenizer.gives_type_ids
  assert tokenizer.pad_id == 0
  assert tokenizer.size == len(WORDS)
  assert tokenizer.decode(encoded.ids[0]) == "playing a."


def test_long_texts_are_cut_and_counted(tokenizer):
  encoded = tokenizer.encode(["a b c a b c a", "a b c a b c"])
  assert [len(ids) for ids in encoded.ids] == [8, 8]
  assert encoded.cut.tolist() == [True, False]
  pair = tokenizer.encode(["a a a a a a a a"], ["b"])
  assert words(pair.ids[0]) == ["[CLS]", "a", "a", "a", "a", "[SEP]", "b", "[SEP]"]
  assert [len(ids) for ids in tokenizer.cut_to(4).encode(["a b c a b c"]).ids] == [4]


def test_the_first_piece_of_a_word_carries_its_tag(tokenizer):
  encoded = tokenizer.encode_words([["playing", "a", "unable"]], [[5, 6, 7]])
  assert words(encoded.ids[0]) == ["[CLS]", "play", "##ing", "a", "un", "##able", "[SEP]"]
  assert encoded.tags is not None
  assert encoded.tags[0].tolist() == [IGNORED, 5, IGNORED, 6, 7, IGNORED, IGNORED]
  assert encoded.lost_words == 0


def test_words_without_a_token_lose_their_tags_and_are_counted(tokenizer):
  encoded = tokenizer.encode_words(
    [["playing", "playing", "playing", "plays", "a"], ["a", "\u200b", "b"]], [[1] * 5, [1, 2, 3]]
  )
  assert encoded.tags is not None
  assert encoded.tags[0].tolist() == [IGNORED, 1, IGNORED, 1, IGNORED, 1, IGNORED, IGNORED]
  assert encoded.tags[1].tolist() == [IGNORED, 1, 3, IGNORED]
  assert encoded.lost_words == 3
  assert encoded.cut.tolist() == [True, False]


@given(st.lists(st.integers(0, 9).map(lambda word: None if word == 9 else word)))
def test_first_tokens_are_first(word_ids):
  places = first_tokens(word_ids)
  assert set(places) == {word for word in word_ids if word is not None}
  for word, place in places.items():
    assert word_ids.index(word) == place


def test_what_a_folder_stored_of_padding_and_cutting_does_not_matter(tmp_path):
  plain = load_tokenizer(tokenizer_folder(tmp_path / "a"), max_length=16)
  fast = plain._fast
  fast.enable_padding(length=16)
  fast.enable_truncation(3)
  (tmp_path / "b").mkdir()
  fast.save(str(tmp_path / "b" / "tokenizer.json"))
  loaded = load_tokenizer(tmp_path / "b", max_length=16)
  assert loaded.encode(["a b c a"]).ids[0].tolist() == [2, 5, 6, 7, 5, 3]


def test_equal_tokenizers_have_equal_fingerprints_and_travel(tmp_path, tokenizer):
  other = load_tokenizer(tokenizer_folder(tmp_path / "other"), max_length=8)
  assert other.fingerprint() == tokenizer.fingerprint()
  assert other.cut_to(9).fingerprint() != tokenizer.fingerprint()
  travelled = pickle.loads(pickle.dumps(tokenizer))
  assert travelled.fingerprint() == tokenizer.fingerprint()
  np.testing.assert_array_equal(travelled.encode(["unable"]).ids, tokenizer.encode(["unable"]).ids)


def test_the_padding_id_is_found_in_the_settings(tmp_path):
  folder = tokenizer_folder(tmp_path)
  (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "[MASK]"}}))
  assert load_tokenizer(folder).pad_id == WORDS.index("[MASK]")


def test_a_model_that_does_not_fit_is_said(tokenizer):
  tokenizer.check_fits(len(WORDS), positions=8)
  with pytest.raises(UserError, match="14 ids but the model embeds 13"):
    tokenizer.check_fits(13)
  with pytest.raises(UserError, match="max_length=8, but the model has 7 positions"):
    tokenizer.check_fits(14, positions=7)
  with pytest.raises(UserError, match="max_length=2: expected more than the 2 special tokens"):
    tokenizer.cut_to(2)


def sparse_folder(folder, config=None, **tokens):
  """A tokenizer of four words and of "z", whose id is 100; `tokens` are roles of special ones."""
  folder.mkdir(parents=True)
  words = {"<unk>": 0, "a": 1, "b": 2, "</s>": 3, "z": 100}
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
  made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  made.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
  (folder / "config.json").write_text(json.dumps({"model_type": "llama", **(config or {})}))
  return folder


def test_the_highest_id_decides_what_fits_not_their_number(tmp_path):
  """Rows beyond a table are NaN, which a run would lay on its learning rate."""
  tokenizer = load_tokenizer(sparse_folder(tmp_path / "model"))
  tokenizer.check_fits(101)
  assert tokenizer.size == 5 and tokenizer.encode(["a z"]).ids[0].tolist() == [1, 100]
  with pytest.raises(UserError, match="the tokenizer has the id 100 but the model embeds 100: they do not belong"):
    tokenizer.check_fits(100)


def test_ids_that_only_config_json_has_may_be_beyond_the_table_where_nothing_reads_them(tmp_path):
  config = {"pad_token_id": 32000, "eos_token_id": 32000}
  tokenizer = load_tokenizer(sparse_folder(tmp_path / "model", config))
  cut = tokenizer.cut_to(7)
  before = cut.fingerprint()
  tokenizer.check_fits(101)
  assert tokenizer.pad_id == cut.pad_id == 0 and cut.fingerprint() == before  # padding is masked
  with pytest.raises(UserError, match="a text ends with token 32000, .* and the model embeds 101"):
    cut.eos_id  # noqa: B018


def test_what_is_cut_from_a_tokenizer_that_was_checked_refuses_what_the_model_does_not_embed(tmp_path):
  """A token of the class, which no file names; a collate cuts its tokenizer before there is a model."""
  folder = sparse_folder(tmp_path / "model", tokenizer_class="LlamaTokenizer")
  made = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "<unk>": 2}, []))
  made.save(str(folder / "tokenizer.json"))
  tokenizer = load_tokenizer(folder)
  cut = tokenizer.cut_to(9)
  tokenizer.check_fits(3)
  for one in (tokenizer, cut, pickle.loads(pickle.dumps(cut))):
    assert one.encode_bare(["ab"]) == [[0, 1]]
    with pytest.raises(UserError, match="a text holds '</s>', token 4, and the model embeds 3"):
      one.encode_bare(["ab</s>"])


def test_a_post_processors_own_id_is_looked_at_too(tmp_path):
  folder = sparse_folder(tmp_path / "model")
  stated = json.loads((folder / "tokenizer.json").read_text())
  stated["model"]["vocab"]["z"] = 4
  text, end = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "z", "type_id": 0}}
  stated["post_processor"] = {"type": "TemplateProcessing", "single": [text, end], "pair": [text, end]}
  stated["post_processor"]["special_tokens"] = {"z": {"id": "z", "ids": [999], "tokens": ["z"]}}
  (folder / "tokenizer.json").write_text(json.dumps(stated))
  tokenizer = load_tokenizer(folder)
  tokenizer.check_fits(10)
  with pytest.raises(UserError, match="token 999, and the model embeds 10"):
    tokenizer.encode(["a"])


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("tokenizer.json", '{"model": ', "tokenizer.json: no JSON"),
    ("tokenizer.json", '{"model": {}}', "tokenizer files .* are damaged"),
    ("tokenizer_config.json", "{", "tokenizer_config.json: no JSON"),
    ("config.json", "{}", "no tokenizer.json, vocab.txt"),
  ],
)
def test_damaged_and_empty_folders_are_one_line(tmp_path, name, content, message):
  (tmp_path / name).write_text(content)
  with pytest.raises(UserError, match=message):
    load_tokenizer(tmp_path)


def test_a_decoder_without_padding_fills_with_its_end(tmp_path):
  (tmp_path / "vocab.json").write_text(json.dumps({"x": 0, "y": 1, "<end>": 2}))
  (tmp_path / "merges.txt").write_text("#version: 0.2\n")
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
  tokenizer = load_tokenizer(tmp_path)
  assert tokenizer.pad_id == 2
  assert not tokenizer.gives_type_ids
  assert tokenizer.encode(["xy<end>"]).ids[0].tolist() == [0, 1, 2]


def test_a_pattern_of_a_tokenizer_without_end_is_one_line(tmp_path):
  """The library gives up and panics, which is no Exception."""
  fast = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
  fast.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("((a+)+)+$"), "isolated")
  fast.save(str(tmp_path / "tokenizer.json"))
  with pytest.raises(UserError, match="the tokenizer cannot encode a text: .*retry-limit"):
    load_tokenizer(tmp_path).encode(["a" * 40 + "!"])
