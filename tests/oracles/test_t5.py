"""T5 and mT5 against transformers on torch: logits, saved models, tied and untied output layers, the classifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

import peftjax
from peftjax import masks
from peftjax.models.layers import Runtime
from peftjax.models.t5_layers import T5Config, bucket_table
from tests.oracles.decoders import VOCABULARY, assert_close, load_pair, random_model, run_theirs, token_batch

SHAPE = {
  "vocab_size": VOCABULARY,
  "d_model": 20,
  "d_kv": 6,
  "d_ff": 28,
  "num_layers": 3,
  "num_decoder_layers": 2,
  "num_heads": 5,
  "relative_attention_num_buckets": 10,
  "relative_attention_max_distance": 9,
  "decoder_start_token_id": 0,
}
CASES = {
  "t5": ("T5", {}),
  "t5-v1.1-tied": ("T5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
  "t5-silu": ("T5", {"feed_forward_proj": "gated-silu", "layer_norm_epsilon": 1e-3}),
  "mt5": ("MT5", {"feed_forward_proj": "gated-gelu"}),
}


def config_of(name):
  family, options = CASES[name]
  return getattr(transformers, f"{family}Config")(**{**SHAPE, **options})


def batch(padding="right"):
  ids, mask = token_batch(length=14, padding=padding)
  decoder_ids, decoder_mask = token_batch(length=8, seed=3)
  return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder_ids}, decoder_mask


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name, tmp_path):
  theirs, ours = load_pair(config_of(name), tmp_path / "model", kind="Seq2SeqLM")
  inputs, decoder_mask = batch()
  inputs["decoder_attention_mask"] = decoder_mask
  expected, found = run_theirs(theirs, **inputs), ours(**inputs)
  assert_close(found["logits"], expected.logits, decoder_mask)
  assert_close(found["encoder_last_hidden_state"], expected.encoder_last_hidden_state, inputs["attention_mask"])


def untied(folder):
  model = random_model(config_of("t5-v1.1-tied"), kind="Seq2SeqLM")
  model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.3)
  model.save_pretrained(folder)
  return model


def test_an_output_layer_of_its_own_is_found_and_saved_though_the_config_says_tied(tmp_path):
  theirs = untied(tmp_path / "model")
  ours = peftjax.load(tmp_path / "model", runtime=Runtime(output_hidden_states=True))
  assert "lm_head.kernel" in masks.flatten(ours.params)
  inputs, _ = batch(padding="left")
  expected = run_theirs(theirs, **inputs, output_hidden_states=True)
  found = ours(**inputs)
  assert_close(found["logits"], expected.logits)
  for mine, their in zip(found["hidden_states"], expected.decoder_hidden_states):
    assert_close(mine, their)
  ours.save(tmp_path / "saved")
  again, report = type(theirs).from_pretrained(tmp_path / "saved", output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
  again.set_attn_implementation("eager")
  assert torch.equal(run_theirs(again.eval(), **inputs).logits, expected.logits)


def test_classifier_reads_the_state_at_the_end_of_the_sequence(tmp_path):
  config = config_of("t5")
  config.num_labels = 3
  theirs, ours = load_pair(config, tmp_path / "model", kind="SequenceClassification")
  ids, mask = token_batch()
  ids[np.arange(3), mask.sum(axis=1) - 1] = config.eos_token_id
  found = ours(input_ids=ids, attention_mask=mask)
  assert_close(found["logits"], run_theirs(theirs, input_ids=ids, attention_mask=mask).logits)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_equal_transformers(bidirectional):
  config = T5Config()
  distances = torch.arange(config.relative_attention_max_distance + 1)
  expected = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket(-distances, bidirectional)
  np.testing.assert_array_equal(bucket_table(config, bidirectional), expected.numpy())


def test_float16_keeps_its_states_finite_where_transformers_does(tmp_path):
  made = random_model(config_of("t5-silu"), kind="Seq2SeqLM")
  with torch.no_grad():
    for name, value in made.named_parameters():
      if ".wi_" in name:
        value.mul_(20)
      if name.endswith("wo.weight"):
        value.mul_(1000)  # the feed-forward network's output passes 65504, which float16 ends at
  made.save_pretrained(tmp_path / "model")
  theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model", dtype=torch.float16).eval()
  ours = peftjax.load(tmp_path / "model", dtype="float16")
  inputs, mask = batch()
  expected = run_theirs(theirs, **inputs).logits.float().numpy()[mask.astype(bool)]
  found = np.asarray(ours(**inputs)["logits"], np.float32)[mask.astype(bool)]
  exact = np.asarray(peftjax.load(tmp_path / "model")(**inputs)["logits"])[mask.astype(bool)]
  scale = np.abs(exact).max()
  assert np.abs(found - exact).max() < 1.5 * np.abs(expected - exact).max() + 1e-3 * scale
  assert np.abs(found - exact).max() < 0.02 * scale
  kernels = {path: leaf.dtype for path, leaf in masks.flatten(ours.params).items()}
  assert {path for path, dtype in kernels.items() if dtype == np.float32} == {
    f"{half}.block.layer.{at}.DenseReluDense.wo.kernel" for half, at in (("encoder", 1), ("decoder", 2))
  }
