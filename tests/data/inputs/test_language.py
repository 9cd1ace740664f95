"""Texts to ids and labels for language models: what is learned, what is cut, what a batch holds."""

from __future__ import annotations

import json
from datetime import datetime

import numpy as np
import pytest
import transformers

from peftjax import config as configs
from peftjax.data import Form, form_of, load_tokenizer
from peftjax.data.inputs.chat import ChatTemplate
from peftjax.data.inputs.language import CausalCollate, Seq2SeqCollate
from peftjax.data.inputs.tokenizer_training import main, smiles_tokens, train_tokenizer, write_folder
from peftjax.data.inputs.tokenizing import IGNORED
from peftjax.errors import UserError
from tests.data.language_folders import LLAMA, language_folder, reversal_data, reversals
from tests.data.tiny import text_loaders

PAIR = {"source": "a b c", "target": "c b a"}
TALK = {
  "messages": [
    {"role": "user", "content": "a b"},
    {"role": "assistant", "content": "b a"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "g g"},
  ]
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return language_folder(tmp_path_factory.mktemp("lm") / "model", LLAMA, chat=True)


@pytest.fixture(scope="module")
def tokenizer(folder):
  return load_tokenizer(folder, 1000)


def learned(tokenizer, ids, labels) -> str:
  assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
  return tokenizer._fast.decode([label for label in labels if label != IGNORED], skip_special_tokens=False)


def test_only_the_response_and_its_end_are_learned(tokenizer, folder):
  plain = CausalCollate(tokenizer, Form(prefix="Turn: ", separator=" = "), 64)
  ((ids, labels),) = plain.encode([PAIR])
  assert tokenizer.decode(ids) == "Turn: a b c = c b a"
  assert learned(tokenizer, ids, labels) == "c b a</s>"
  assert ids[: len(ids) - sum(label != IGNORED for label in labels)] == plain.form.prompt_ids(tokenizer, "a b c")
  data = configs.default().data
  chat = CausalCollate(tokenizer, form_of(data, folder), 64)
  ((ids, labels),) = chat.encode([PAIR])
  assert tokenizer._fast.decode(ids, skip_special_tokens=False) == "<user>a b c</s><assistant>c b a</s>"
  assert learned(tokenizer, ids, labels) == "c b a</s>"
  ((ids, labels),) = chat.encode([TALK])
  assert learned(tokenizer, ids, labels) == "b a</s>g g</s>"


def test_a_text_is_learned_as_a_whole_with_its_end(tokenizer):
  ((ids, labels), *_) = CausalCollate(tokenizer, Form(), 64).encode([{"text": "a b", "label": 1}])
  assert ids == labels
  assert tokenizer._fast.decode(ids, skip_special_tokens=False) == "a b</s>"


def test_what_is_cut_and_what_teaches_nothing_is_counted(tokenizer):
  collate = CausalCollate(tokenizer, Form(), 6)
  long = {"source": "a b c d e f g", "target": "g f"}
  sizes = collate.sizes([{"source": "a", "target": "b"}, PAIR, long])
  assert sizes.lengths.tolist() == [len(collate.encode([{"source": "a", "target": "b"}])[0][0]), 6, 6]
  assert (sizes.cut, sizes.lost) == (2, 1 + (len(collate.form.prompt_ids(tokenizer, PAIR["source"])) >= 6))


def test_data_that_teaches_nothing_is_refused(tokenizer, tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  config = configs.default()
  config.data.name = reversal_data(tmp_path / "data")
  for config.data.packing in (False, True):
    config.data.max_length = 1
    with pytest.raises(UserError, match=r"max_length=1: none of the \d+ training examples has a response left"):
      text_loaders(config, tokenizer, task="causal_lm")
    config.data.max_length = 40
    text_loaders(config, tokenizer, task="causal_lm")


def test_a_causal_batch(tokenizer):
  collate = CausalCollate(tokenizer, Form(), 32)
  batch = collate([PAIR, TALK | PAIR], np.array([4, 2, -1]), 16)
  assert {name: array.shape for name, array in batch.items()} == {
    "input_ids": (3, 16), "attention_mask": (3, 16), "labels": (3, 16), "weight": (3,), "index": (3,)
  }  # fmt: skip
  assert batch["weight"].tolist() == [1, 1, 0] and batch["index"].tolist() == [4, 2, -1]
  assert (batch["labels"][2] == IGNORED).all() and batch["attention_mask"][2].sum() == 1
  assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()


def test_sources_and_targets_for_an_encoder_decoder(tokenizer):
  collate = Seq2SeqCollate(tokenizer.cut_to(12), Form(prefix="back: "), 3)
  batch = collate([PAIR, {"source": "d", "target": "e"}], np.array([0, 1]), 12)
  end = tokenizer.eos_id
  read = batch["input_ids"][0][batch["attention_mask"][0] == 1]
  assert tokenizer.decode(read.tolist()) == "back: a b c" and read[-1] == end
  assert batch["labels"].shape == (2, 3)
  assert batch["labels"][0, 2] == end  # cut, and ended all the same
  assert batch["labels"][1].tolist()[1:] == [end, IGNORED]
  assert collate.sizes([PAIR]).cut == 1
  assert collate.sizes([{"source": "d", "target": "e"}]).cut == 0


def test_formats_that_do_not_fit_are_said(folder, tmp_path, tokenizer):
  data = configs.default().data
  data.format = "chta"
  with pytest.raises(UserError, match="did you mean 'chat'"):
    form_of(data, folder)
  data.format = "chat"
  with pytest.raises(UserError, match="has no chat template"):
    form_of(data, tmp_path)
  data.format = "plain"
  assert form_of(data, folder).chat is None
  with pytest.raises(UserError, match="conversations need a model with a chat template"):
    CausalCollate(tokenizer, form_of(data, folder), 9).encode([TALK])


def test_a_trained_tokenizer_knows_every_text_and_is_read_alike_by_transformers(folder, tokenizer):
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  for text in ("a b c", "Ünïcode ☃", "", "  two  spaces "):
    assert tokenizer.encode([text]).ids[0].tolist() == theirs(text)["input_ids"]
    assert tokenizer.decode(tokenizer.encode([text]).ids[0].tolist()) == text
  assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.size) == (0, 1, 300)


def test_the_command_writes_a_folder_to_start_from(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  name = reversal_data(tmp_path / "data")
  (tmp_path / "like.json").write_text(json.dumps({"model_type": "t5", "vocab_size": 9}))
  flags = [f"--data={name}", f"--like={tmp_path / 'like.json'}", f"--out={tmp_path / 'model'}", "--vocab_size=280"]
  assert main(flags) == 0
  assert json.loads((tmp_path / "model" / "config.json").read_text()) == {"model_type": "t5", "vocab_size": 280}
  assert load_tokenizer(tmp_path / "model").size == 280
  assert main([*flags, "--kind=bpee"]) == 2
  assert "did you mean 'bpe'" in capsys.readouterr().err
  with pytest.raises(UserError, match="the bytes and special tokens alone are 259"):
    train_tokenizer([row["source"] for row in reversals(3)], 100)


def test_a_tokenizer_of_molecules_has_their_atoms_and_is_read_alike_by_transformers(tmp_path):
  strings = ["C[C@H](Cl)c1ccc[nH]1", "O=C(O)/C=C/Br", "C1CC%12CC1C%12"]
  (tmp_path / "like.json").write_text(json.dumps({"model_type": "bert"}))
  write_folder(tmp_path / "model", train_tokenizer(strings, 64, "smiles"), tmp_path / "like.json")
  ours, theirs = load_tokenizer(tmp_path / "model"), transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
  for text in (*strings, "CC[Zn]"):
    ids = ours.encode([text]).ids[0].tolist()
    assert ids == theirs(text)["input_ids"]
    known = [ours.token_of(one) for one in ids[1:-1]]
    assert known == ([*smiles_tokens(text)] if "Zn" not in text else ["C", "C", "[UNK]"])
  assert theirs.mask_token_id == ours.mask_id and theirs.pad_token_id == ours.pad_id
  assert theirs.decode(theirs(strings[0])["input_ids"], skip_special_tokens=True) == strings[0]


def test_a_damaged_template_is_no_missing_one(tmp_path):
  (tmp_path / "tokenizer_config.json").write_text('{"chat_template": [{"name": "rag", "template": "x"}]}')
  with pytest.raises(UserError, match="has chat templates called rag, and none called default"):
    form_of(configs.default().data, tmp_path)


def test_a_template_that_writes_the_date_is_told_and_measured_anew_each_day(tokenizer, tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  source = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
  config = configs.load(
    "", [f"data.name={reversal_data(tmp_path / 'data')}", "data.max_length=64", "task.name=causal_lm"]
  )
  first, second = (
    text_loaders(config, tokenizer, form=Form(chat=ChatTemplate(source, now=datetime(2024, 2, day)))) for day in (3, 4)
  )
  assert "train: the chat template writes the date into every conversation: 2024-02-03" in first.train.notes
  assert first.inputs.fingerprint() != second.inputs.fingerprint()
  second.train.set_state(first.train.get_state())
