"""Ids and lengths beyond a model's tables take one line; none reads a value that is not there."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from peftjax.errors import UserError
from peftjax.loading import from_config, initialise
from peftjax.models.registry import FAMILIES
from tests.oracles.decoders import VOCABULARY

LLAMA = {
  "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4,
  "intermediate_size": 8,
}  # fmt: skip
SMALL = {
  "bert": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
  "roberta": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
  "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 20},
  "gptj": {"n_embd": 8, "n_layer": 1, "n_head": 2, "rotary_dim": 4, "n_positions": 20},
  "opt": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 8},
  "gpt_neox": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
  "bloom": {"hidden_size": 8, "n_layer": 1, "n_head": 2},
  "clip_text_model": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
  "t5": {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2},
  "mt5": {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2},
  **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite"), LLAMA),
  "mixtral": {**LLAMA, "num_local_experts": 2},
  "qwen3_moe": {**LLAMA, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8},
}
PICTURES = {
  "vit",
  "deit",
  "dinov2",
  "dinov2_with_registers",
  "clip_vision_model",
  "clip",
  "detr",
  "yolos",
  "UNet2DConditionModel",
  "AutoencoderKL",
  "wav2vec2",
  "whisper",  # of its decoder's ids see tests/oracles/test_whisper.py
}  # no input_ids
LEARNED = {
  "bert": 20,
  "roberta": 18,
  "gpt2": 20,
  "gptj": 20,
  "opt": 20,
  "clip_text_model": 20,
}  # tokens of 20 positions


@pytest.fixture(scope="module")
def model_of():
  made = {}

  def model(name):
    if name not in made:
      config = {"model_type": name, "vocab_size": VOCABULARY, "max_position_embeddings": 20, **SMALL[name]}
      if name in ("gpt2", "gptj", "t5", "mt5", "bloom"):
        del config["max_position_embeddings"]
      made[name] = initialise(from_config(config), jax.random.key(0))
    return made[name]

  return model


@pytest.mark.parametrize("name", SMALL)
def test_ids_that_are_not_embedded(name, model_of):
  inputs = {"decoder_input_ids": np.array([[0, 3]])} if name.endswith("t5") else {}
  for wrong in (VOCABULARY, -1, 10**6):
    with pytest.raises(UserError, match=f"input_ids has {wrong}; the model has {VOCABULARY}, from 0 to"):
      model_of(name)(input_ids=np.array([[3, wrong]]), **inputs)
  with pytest.raises(UserError, match="input_ids: expected whole numbers, got float64"):
    model_of(name)(input_ids=np.array([[3.0]]), **inputs)


def test_every_family_is_here():
  assert SMALL.keys() == FAMILIES.keys() - {"deci"} - PICTURES  # deci: Llama's layers of several sizes


@pytest.mark.parametrize("name", SMALL)
def test_lengths_beyond_the_table_are_computed_or_refused(name, model_of):
  """Never read past the end: rotations, biases and slopes go on for ever, rows of a table do not."""
  inputs = {"decoder_input_ids": np.full((1, 33), 5)} if name.endswith("t5") else {}
  if name in LEARNED:
    with pytest.raises(UserError, match="do not fit the model's"):
      model_of(name)(input_ids=np.full((1, 33), 5))
  else:
    outputs = model_of(name)(input_ids=np.full((1, 33), 5), **inputs)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(outputs))


@pytest.mark.parametrize("name", LEARNED)
def test_more_tokens_than_positions(name, model_of):
  model, most = model_of(name), LEARNED[name]
  ids = np.full((1, most), 5)
  assert np.isfinite(np.asarray(model(input_ids=ids)["last_hidden_state"])).all()
  with pytest.raises(UserError, match=f"{most + 1} tokens.* do not fit the model's {most} positions"):
    model(input_ids=np.full((1, most + 1), 5))
  with pytest.raises(UserError, match="position_ids has 20; the model has 20, from 0 to 19"):
    model(input_ids=ids[:, :2], position_ids=np.array([[0, 20]]))


def test_token_types_and_targets(model_of):
  ids = np.array([[3, 4]])
  with pytest.raises(UserError, match="token_type_ids has 2; the model has 2, from 0 to 1"):
    model_of("bert")(input_ids=ids, token_type_ids=np.array([[0, 2]]))
  with pytest.raises(UserError, match="decoder_input_ids has 61"):
    model_of("t5")(input_ids=ids, decoder_input_ids=np.array([[0, 61]]))
  with pytest.raises(UserError, match="targets has -1"):
    model_of("llama")(input_ids=ids, targets=np.array([[-100, -1]]))
