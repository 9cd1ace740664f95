"""What Whisper writes against transformers' `generate`: greedily and by beams, forced and suppressed tokens, ends."""

from __future__ import annotations

import copy
import functools
import json
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import peftjax
from peftjax.errors import UserError
from peftjax.models.generate import generate
from peftjax.models.generation_config import stated
from peftjax.models.sampling import Sampling
from tests.oracles import speech

FIRST = [3, 50, 51, 60]  # start, a language, a task, no times
RULES = {
  "plain": {},
  "suppressed": {"suppress_tokens": [9, 10, 33, 41], "begin_suppress_tokens": [2, 44]},
  "penalty": {"repetition_penalty": 1.6, "no_repeat_ngram_size": 3},
}


@functools.cache
def lively():
  """(torch model whose words follow from what it hears and how far it is, its folder)."""
  made = copy.deepcopy(speech.model()[0])
  with torch.no_grad():
    made.model.decoder.embed_positions.weight.mul_(6)
    for layer in made.model.decoder.layers:
      layer.encoder_attn.out_proj.weight.mul_(8)
      layer.encoder_attn.q_proj.weight.mul_(4)
  folder = Path(tempfile.mkdtemp(prefix="tiny-"))
  made.save_pretrained(folder)
  return made, folder


def theirs(features, new_tokens, end, **options):
  """The tokens that transformers writes behind `FIRST`, up to the end."""
  made, _ = lively()
  said = {
    "pad_token_id": 0,
    "eos_token_id": end,
    "decoder_start_token_id": FIRST[0],
    "is_multilingual": True,
    "lang_to_id": {"<|xx|>": FIRST[1]},
    "task_to_id": {"transcribe": FIRST[2], "translate": 52},
    "no_timestamps_token_id": FIRST[3],
    "max_length": None,
    "suppress_tokens": options.pop("suppress_tokens", None),
    "begin_suppress_tokens": options.pop("begin_suppress_tokens", None),
  }
  for name, value in said.items():
    setattr(made.generation_config, name, value)
  rows = []
  for one in features:  # a batch would be padded
    with torch.no_grad():
      found = made.generate(
        torch.tensor(one)[None], language="<|xx|>", task="transcribe", max_new_tokens=new_tokens, **options
      )
    row = found[0].tolist()
    row = row[len(FIRST) :] if row[: len(FIRST)] == FIRST else row
    rows.append(row[: row.index(end) + 1] if end in row else row)
  return rows


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
  "name", ["suppressed", *(pytest.param(one, marks=pytest.mark.slow) for one in ("plain", "penalty"))]
)
def test_tokens_are_transformers(name, beams):
  ours, features = peftjax.load(lively()[1]), speech.features(batch=2)
  rules = {key: tuple(one) if isinstance(one, list) else one for key, one in RULES[name].items()}
  sampling = Sampling(max_new_tokens=20, num_beams=beams, eos_ids=(2,), **rules)
  found = generate(ours, [FIRST] * 2, sampling, encoder_inputs={"input_features": jnp.asarray(features)})
  assert found == theirs(features, 20, 2, num_beams=beams, **RULES[name])
  assert len({tuple(row) for row in found}) == 2 and len(set(found[0])) > 3


def test_prompts_that_do_not_fit_the_recordings():
  ours = peftjax.load(speech.model()[1])
  read = {"input_features": jnp.asarray(speech.features(batch=2))}
  for prompts in ([FIRST], [FIRST, FIRST[:2]]):
    with pytest.raises(UserError, match="prompts of one length and as many rows of input_features expected"):
      generate(ours, prompts, Sampling(max_new_tokens=3), encoder_inputs=read)
  with pytest.raises(UserError, match="WhisperForConditionalGeneration reads sound"):
    generate(ours, [FIRST], Sampling(max_new_tokens=3))
  with pytest.raises(UserError, match="do not fit the model's 40 positions"):
    generate(ours, [FIRST] * 2, Sampling(max_new_tokens=39), encoder_inputs=read)


def test_forced_tokens_of_old_folders_are_passed_over_where_language_and_task_are_given(tmp_path):
  (tmp_path / "generation_config.json").write_text(json.dumps({"forced_decoder_ids": [[1, 5]], "eos_token_id": 4}))
  with pytest.raises(UserError, match="forced_decoder_ids"):
    stated(tmp_path, {})
  assert stated(tmp_path, {}, passed_over=("forced_decoder_ids",)).eos_ids == (4,)


def test_a_cache_gives_what_whole_passes_give():
  ours, features = peftjax.load(lively()[1]), speech.features(batch=1)
  (found,) = generate(
    ours, [FIRST], Sampling(max_new_tokens=6), encoder_inputs={"input_features": jnp.asarray(features)}
  )
  whole = ours(input_features=features, decoder_input_ids=np.array([FIRST + found]))["logits"]
  assert found == whole[0, len(FIRST) - 1 : -1].argmax(axis=-1).tolist()
