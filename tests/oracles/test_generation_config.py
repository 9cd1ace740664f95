"""What generation_config.json says, as transformers' `generate` does it from the same folder."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
import torch
import transformers

from peftjax import UserError
from peftjax.models.generate import generate
from peftjax.models.generation_config import FIELDS, FILE, stated
from peftjax.text_generation import sampling_of
from tests.oracles import test_llama, test_t5
from tests.oracles.test_generate import load_pair

PROMPT = [7, 30, 7, 30, 7]
SAID = {
  "rules": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "max_new_tokens": 9},
  "lengths": {"min_length": 11, "max_length": 13, "eos_token_id": list(range(3, 40, 2))},
  "least": {"min_new_tokens": 5, "max_new_tokens": 7, "eos_token_id": list(range(3, 40, 2))},
  "suppressed": {"suppress_tokens": [*range(3, 30), 900], "begin_suppress_tokens": [*range(30, 50)],
                 "max_new_tokens": 6, "bad_words_ids": [[50], [51]]},
  "beams": {"num_beams": 3, "length_penalty": 0.5, "early_stopping": True, "max_new_tokens": 8,
            "eos_token_id": [9, 21]},
}  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("models")
  decoder = load_pair(test_llama.config_of("llama"), folder / "llama")
  return {"llama": (folder / "llama", *decoder),
          "t5": (folder / "t5", *load_pair(test_t5.config_of("t5"), folder / "t5", kind="Seq2SeqLM"))}  # fmt: skip


def flags(**given: str) -> SimpleNamespace:
  return SimpleNamespace(**given)


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_what_the_file_says_is_obeyed(kind, name, pairs):
  folder, theirs, ours = pairs[kind]
  path = folder / FILE
  path.write_text(json.dumps({"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": None, **SAID[name]}))
  config = transformers.GenerationConfig.from_pretrained(folder)
  ids = torch.tensor([PROMPT])
  with torch.no_grad():
    (expected,) = theirs.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config).tolist()
  expected = expected[len(PROMPT) if kind == "llama" else 1 :]
  sampling = sampling_of(flags(), stated(folder, {}), len(PROMPT) if kind == "llama" else 1, pad_id=0)
  (found,) = generate(ours, [PROMPT], sampling)
  assert found == expected
  plain = generate(ours, [PROMPT], sampling_of(flags(max_new_tokens="9"), stated(None, {}), 1, pad_id=0))
  assert found != plain[0]


def test_flags_come_before_the_file(tmp_path):
  (tmp_path / FILE).write_text(json.dumps({"repetition_penalty": 2.0, "num_beams": 4, "top_k": 3, "stop_strings": "x"}))
  said = stated(tmp_path, {"eos_token_id": 5})
  given = sampling_of(flags(repetition_penalty="1.5", temperature="0.7", max_new_tokens="4"), said, 3, pad_id=0)
  assert (given.repetition_penalty, given.num_beams, given.top_k, given.temperature) == (1.5, 1, 3, 0.7)
  assert (said.stop, given.eos_ids) == (("x",), (5,))


def test_drawing_is_noted_and_what_is_not_computed_refused(tmp_path, caplog):
  path = tmp_path / FILE
  path.write_text(json.dumps({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "min_p": 0.1}))
  with caplog.at_level(logging.WARNING):
    assert sampling_of(flags(), stated(tmp_path, {}), 3, pad_id=0).temperature == 0.0
  assert "this is the likeliest text: --temperature=0.6, --top_k=50, --top_p=0.9 draws" in caplog.text
  with pytest.raises(UserError, match="min_p is not computed here"):
    sampling_of(flags(temperature="0.6"), stated(tmp_path, {}), 3, pad_id=0)
  for value, says in (
    ({"forced_eos_token_id": 2}, "forced_eos_token_id=2 is not computed here"),
    ({"bad_words_ids": [[1, 2]]}, "words of several tokens"),
    ({"repetition_penalty": "x"}, 'repetition_penalty="x": expected a finite number above 0'),
    ({"eos_token_id": "</s>"}, 'eos_token_id="</s>": expected a token id or a list of them'),
    ({"early_stopping": "never"}, 'early_stopping="never": expected true or false'),
    ({"eos_token_id": [1, 40]}, "eos_token_id: 40 is none of the model's 40 tokens"),
    ({"max_time": 3.0}, "max_time=3.0 is not computed here"),
    ({"renormalize_logits": True}, "renormalize_logits=true is not computed here"),
    ({"decoder_start_token_id": 4}, "decoder_start_token_id=4, and config.json has 0"),
  ):
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=says):
      stated(tmp_path, {"decoder_start_token_id": 0, "vocab_size": 40})
  path.unlink()
  with pytest.raises(UserError, match=r"config\.json: eos_token_id: 99 is none of the model's 40 tokens"):
    stated(tmp_path, {"vocab_size": 40, "eos_token_id": [2, 99]})


def test_a_value_that_is_said_counts_where_it_is_what_transformers_does_without(tmp_path):
  path = tmp_path / FILE
  for value, names, wanted in (
    ({"max_length": 20}, {}, {"max_new_tokens": 17}),
    ({"top_k": 50}, {"temperature": "0.7"}, {"top_k": 50}),
    ({"do_sample": True, "top_k": 0}, {"temperature": "0.7"}, {"top_k": 0}),
    ({"do_sample": True}, {"temperature": "0.7"}, {"top_k": 50}),
  ):
    path.write_text(json.dumps(value))
    given = sampling_of(flags(**names), stated(tmp_path, {}), 3, pad_id=0)
    assert {name: getattr(given, name) for name in wanted} == wanted, value


def test_every_field_of_transformers_is_obeyed_refused_or_irrelevant():
  fields = {name for name in vars(transformers.GenerationConfig()) if not name.startswith("_")}
  assert fields - set(FIELDS) == set() and len(FIELDS) == len(set(FIELDS))
