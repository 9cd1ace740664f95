"""GPT-2, OPT, BLOOM, GPT-NeoX and GPT-J against transformers on torch: logits, saved models, classifiers."""

from __future__ import annotations

import pytest
import torch
import transformers

from peftjax import masks
from tests.oracles.decoders import VOCABULARY, assert_close, load_pair, run_theirs, token_batch

GPT = {"vocab_size": VOCABULARY, "n_embd": 30, "n_layer": 3, "n_head": 5, "n_positions": 17, "pad_token_id": 0}
WIDE = {
  "vocab_size": VOCABULARY,
  "hidden_size": 30,
  "num_hidden_layers": 3,
  "num_attention_heads": 5,
  "pad_token_id": 0,
}
OPT = {**WIDE, "ffn_dim": 44, "max_position_embeddings": 17}
NEOX = {**WIDE, "num_attention_heads": 3, "intermediate_size": 44}
BLOOM = {"vocab_size": VOCABULARY, "hidden_size": 30, "n_layer": 3, "n_head": 6, "pad_token_id": 0}
CASES = {
  "gpt2": ("GPT2", GPT),
  "gpt2-options": (
    "GPT2",
    {**GPT, "n_inner": 23, "activation_function": "relu", "scale_attn_by_inverse_layer_idx": True},
  ),
  "gpt2-unscaled": ("GPT2", {**GPT, "scale_attn_weights": False, "tie_word_embeddings": False}),
  "opt": ("OPT", OPT),
  "opt-350m": ("OPT", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 12}),
  "opt-bare": ("OPT", {**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False}),
  "bloom": ("Bloom", BLOOM),
  "bloom-residual": ("Bloom", {**BLOOM, "apply_residual_connection_post_layernorm": True}),
  "neox": ("GPTNeoX", {**NEOX, "rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.4}}),
  "neox-serial": ("GPTNeoX", {**NEOX, "use_parallel_residual": False, "attention_bias": False}),
  "gptj": ("GPTJ", {**GPT, "rotary_dim": 4, "n_inner": 23}),
}


def config_of(name):
  family, options = CASES[name]
  return getattr(transformers, f"{family}Config")(**options)


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name, tmp_path):
  theirs, ours = load_pair(config_of(name), tmp_path / "model")
  ids, mask = token_batch()
  expected = run_theirs(theirs, input_ids=ids, attention_mask=mask, output_hidden_states=True)
  found = ours(input_ids=ids, attention_mask=mask)
  assert_close(found["logits"], expected.logits, mask)
  if name != "opt-350m":  # there the last state comes after another projection
    assert_close(found["last_hidden_state"], expected.hidden_states[-1], mask)


@pytest.mark.parametrize("name", ["opt", "bloom"])
def test_padding_on_the_left_is_not_counted(name, tmp_path):
  theirs, ours = load_pair(config_of(name), tmp_path / "model")
  ids, mask = token_batch(padding="left")
  expected = run_theirs(theirs, input_ids=ids, attention_mask=mask).logits
  assert_close(ours(input_ids=ids, attention_mask=mask)["logits"], expected, mask)


@pytest.mark.parametrize("name", ["gpt2", "opt-350m", "bloom", "neox", "gptj"])
def test_saved_model_loads_in_transformers(name, tmp_path):
  theirs, ours = load_pair(config_of(name), tmp_path / "model")
  ours.save(tmp_path / "saved")
  again, report = type(theirs).from_pretrained(tmp_path / "saved", output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
  ids, _ = token_batch(seed=1)
  again.set_attn_implementation("eager")
  assert torch.equal(run_theirs(again.eval(), input_ids=ids).logits, run_theirs(theirs, input_ids=ids).logits)


@pytest.mark.parametrize("name", ["gpt2", "bloom", "gptj"])
def test_sequence_classifier_pools_the_last_token(name, tmp_path):
  config = config_of(name)
  config.num_labels = 3
  theirs, ours = load_pair(config, tmp_path / "model", kind="SequenceClassification")
  ids, mask = token_batch()
  expected = run_theirs(theirs, input_ids=ids, attention_mask=mask).logits
  assert_close(ours(input_ids=ids, attention_mask=mask)["logits"], expected)


def test_tied_embeddings_are_one_leaf_and_conv1d_kernels_are_stored_as_they_are(tmp_path):
  theirs, ours = load_pair(config_of("gpt2"), tmp_path / "model")
  flat = masks.flatten(ours.params)
  assert [path for path, leaf in flat.items() if VOCABULARY in leaf.shape] == ["transformer.wte.embedding"]
  assert_close(flat["transformer.h.attn.c_attn.kernel"][1], theirs.transformer.h[1].attn.c_attn.weight)
