"""The LLaMA family against transformers on torch: logits, saved models, options of every member."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

import peftjax
from peftjax.models.layers import Runtime
from tests.oracles.decoders import VOCABULARY, assert_close, load_pair, run_theirs, token_batch

SHAPE = {
  "vocab_size": VOCABULARY,
  "hidden_size": 36,
  "intermediate_size": 28,
  "num_hidden_layers": 4,
  "num_attention_heads": 6,
  "num_key_value_heads": 2,
  "head_dim": 10,
  "max_position_embeddings": 64,
  "pad_token_id": 0,
  "bos_token_id": 1,
  "eos_token_id": 2,
}
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 500.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
MSCALE = {"mscale": 0.7, "mscale_all_dim": 0.5, "truncate": False}
MOE = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 14}
CASES = {
  "llama": ("Llama", {}),
  "llama-tied": ("Llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
  "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
  "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}}),
  "llama-dynamic": (
    "Llama",
    {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 3.0}, "max_position_embeddings": 8},
  ),
  "llama-llama3": ("Llama", {"rope_parameters": LLAMA3}),
  "llama-yarn": ("Llama", {"rope_parameters": YARN}),
  "llama-yarn-mscale": ("Llama", {"rope_parameters": {**YARN, **MSCALE}}),
  "mistral": ("Mistral", {"sliding_window": 4}),
  "mistral-full": ("Mistral", {"sliding_window": None}),
  "qwen2": ("Qwen2", {}),
  "qwen2-windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}),
  "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
  "qwen3-biases": ("Qwen3", {"attention_bias": True, "rope_parameters": YARN}),
  "gemma": ("Gemma", {}),
  "gemma2": ("Gemma2", {"sliding_window": 4, "query_pre_attn_scalar": 17, "attn_logit_softcapping": 2.0}),
  "gemma3": ("Gemma3Text", {"sliding_window": 4, "query_pre_attn_scalar": 17, "num_hidden_layers": 7}),
  "gemma3-scaled": (
    "Gemma3Text",
    {
      "sliding_window": 4,
      "layer_types": ["sliding_attention", "full_attention"] * 2,
      "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
      },
    },
  ),
  "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 4}),
  "qwen3_moe": ("Qwen3Moe", {**MOE, "norm_topk_prob": True}),
  "qwen3_moe-mixed": ("Qwen3Moe", {**MOE, "num_hidden_layers": 3, "mlp_only_layers": [1]}),
  "granite": (
    "Granite",
    {"attention_multiplier": 0.3, "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 2.0},
  ),
}


def config_of(name):
  family, options = CASES[name]
  return getattr(transformers, f"{family}Config")(**{**SHAPE, **options})


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name, tmp_path):
  theirs, ours = load_pair(config_of(name), tmp_path / "model")
  ids, mask = token_batch()
  expected = run_theirs(theirs, input_ids=ids, attention_mask=mask, output_hidden_states=True)
  found = ours(input_ids=ids, attention_mask=mask)
  assert_close(found["logits"], expected.logits, mask)
  assert_close(found["last_hidden_state"], expected.hidden_states[-1], mask)


@pytest.mark.parametrize("name", ["llama-tied", "qwen2", "gemma3", "mistral", "mixtral", "qwen3_moe-mixed"])
def test_saved_model_loads_in_transformers(name, tmp_path):
  theirs, ours = load_pair(config_of(name), tmp_path / "model")
  ours.save(tmp_path / "saved")
  again, report = type(theirs).from_pretrained(tmp_path / "saved", output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
  ids, _ = token_batch(seed=1)
  again.set_attn_implementation("eager")
  again.set_experts_implementation("eager")
  assert torch.equal(run_theirs(again.eval(), input_ids=ids).logits, run_theirs(theirs, input_ids=ids).logits)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_unrolled_hidden_states_and_both_attention_backends(name, tmp_path):
  runtime = Runtime(scan_layers=False, output_hidden_states=True, attention="heads")
  theirs, ours = load_pair(config_of(name), tmp_path / "model", runtime=runtime)
  ids, mask = token_batch()
  expected = run_theirs(theirs, input_ids=ids, attention_mask=mask, output_hidden_states=True)
  found = ours(input_ids=ids, attention_mask=mask)
  assert_close(found["logits"], expected.logits, mask)
  for layer, states in enumerate(expected.hidden_states):
    assert_close(found["hidden_states"][layer], states, mask)


def test_sequence_classifier_pools_the_last_token(tmp_path):
  config = config_of("qwen2")
  config.num_labels = 3
  theirs, ours = load_pair(config, tmp_path / "model", kind="SequenceClassification")
  for padding in ("right", "left"):
    ids, mask = token_batch(padding=padding)
    expected = run_theirs(theirs, input_ids=ids, attention_mask=mask).logits
    assert_close(ours(input_ids=ids, attention_mask=mask)["logits"], expected)
    assert_close(ours(input_ids=ids)["logits"], run_theirs(theirs, input_ids=ids).logits)


def test_new_classifier_on_a_language_model(tmp_path):
  _, language_model = load_pair(config_of("llama"), tmp_path / "model")
  ours = peftjax.load(tmp_path / "model", task="text_classification", num_labels=5)
  assert ours.drawn == ("score.kernel",)
  ids, mask = token_batch()
  assert ours(input_ids=ids, attention_mask=mask)["logits"].shape == (3, 5)
  kernel = language_model.params["model"]["layers"]["mlp"]["up_proj"]["kernel"]
  np.testing.assert_array_equal(ours.params["model"]["layers"]["mlp"]["up_proj"]["kernel"], kernel)


def test_old_spellings_of_rope_settings_mean_the_same():
  from peftjax.models.llama_config import parse

  new = {"model_type": "llama", "rope_parameters": LLAMA3, "max_position_embeddings": 64}
  scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
  old = {"model_type": "llama", "rope_theta": 500.0, "rope_scaling": scaling, "max_position_embeddings": 64}
  assert parse(new).ropes == parse(old).ropes
  gemma = {"model_type": "gemma3_text", "num_hidden_layers": 2, "sliding_window_pattern": 2}
  nested = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
  }
  old_gemma = {**gemma, "rope_theta": 1e6, "rope_local_base_freq": 20.0}
  old_gemma["rope_scaling"] = {"type": "linear", "factor": 8.0}
  assert parse({**gemma, "rope_parameters": nested}).ropes == parse(old_gemma).ropes
