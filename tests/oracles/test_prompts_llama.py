"""Prompts, prefixes, gated attention and trainable tokens on a decoder against live PEFT; a prefix read from text."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from peftjax import masks, methods
from peftjax.methods.inject import acting
from peftjax.models.kv_cache import grow
from tests.oracles.decoders import VOCABULARY, assert_close, load_pair, run_theirs, token_batch

HIDDEN, LAYERS, HEADS, KV_HEADS, SIZE, N = 24, 3, 4, 2, 6, 5
TASK = {"task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("llama")


def pair(folder, **changes):
  config = transformers.LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=28, num_hidden_layers=LAYERS,
    num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=64, pad_token_id=0, **changes,
  )  # fmt: skip
  return load_pair(config, folder)


def adapted(theirs, config):
  """The PEFT model with random values in everything that trains."""
  model = peft.get_peft_model(theirs, config).eval()
  torch.manual_seed(1)
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.requires_grad:
        parameter.copy_(torch.randn_like(parameter) * 0.5)
  return model


def trained(model):
  """name -> array of what trains."""
  return {name: parameter.detach().numpy() for name, parameter in model.named_parameters() if parameter.requires_grad}


def with_leaves(model, leaves):
  flat = masks.flatten(model.params)
  own = {path for path, group in masks.flatten(model.labels()).items() if group != masks.FROZEN}
  assert set(leaves) == own
  for path, value in leaves.items():
    assert flat[path].shape == value.shape, path
    flat[path] = jnp.asarray(value)
  return model.with_params(masks.unflatten(flat))


def compare(ours, theirs, cut=0):
  ids, mask = token_batch(padding="right")
  wanted = run_theirs(theirs, input_ids=ids, attention_mask=mask).logits[:, cut:]
  assert_close(ours(input_ids=ids, attention_mask=mask)["logits"], wanted, mask, tolerance=2e-5)
  count = sum(value.size for value in trained(theirs).values())
  labels = masks.flatten(ours.labels())
  assert count == sum(leaf.size for path, leaf in masks.flatten(ours.params).items() if labels[path] != masks.FROZEN)


def test_prompt(folder):
  theirs, ours = pair(folder)
  theirs = adapted(theirs, peft.PromptTuningConfig(num_virtual_tokens=N, **TASK))
  (prompt,) = trained(theirs).values()
  ours = with_leaves(ours.add(methods.Prompt(num_virtual_tokens=N)), {"from_embeds.prompt_embeddings": prompt})
  compare(ours, theirs, cut=N)


def test_prefix_of_grouped_heads(folder):
  theirs, ours = pair(folder)
  config = peft.PrefixTuningConfig(
    num_virtual_tokens=N, token_dim=KV_HEADS * SIZE, num_attention_heads=KV_HEADS, num_layers=LAYERS, **TASK
  )
  theirs = adapted(theirs, config)
  (flat,) = trained(theirs).values()
  pairs = flat.reshape(N, LAYERS, 2, KV_HEADS, SIZE).transpose(2, 1, 0, 3, 4)
  place = "model.layers.self_attn.attend"
  leaves = {f"{place}.prefix_k": pairs[0], f"{place}.prefix_v": pairs[1]}
  compare(with_leaves(ours.add(methods.Prefix(num_virtual_tokens=N)), leaves), theirs)


@pytest.mark.parametrize("layers", [LAYERS, 2])
def test_llama_adapter(folder, layers):
  theirs, ours = pair(folder)
  theirs = adapted(theirs, peft.AdaptionPromptConfig(adapter_len=N, adapter_layers=layers, **TASK))
  ours = ours.add(methods.LlamaAdapter(num_virtual_tokens=N, adapter_layers=layers))
  found = trained(theirs)
  each = {
    index: {leaf: value for name, value in found.items() if f".{index}.self_attn" in name
            for leaf in ("adaption_prompt", "adaption_gate") if name.endswith(leaf)}
    for index in range(LAYERS - layers, LAYERS)
  }  # fmt: skip
  prompts = {index: {**leaves, "adaption_prompt": leaves["adaption_prompt"][0]} for index, leaves in each.items()}
  if layers == LAYERS:
    flat = {f"model.layers.self_attn.attend.{leaf}": np.stack([one[leaf] for one in prompts.values()])
            for leaf in ("adaption_prompt", "adaption_gate")}  # fmt: skip
  else:
    flat = {f"model.layers.{index}.self_attn.attend.{leaf}": value
            for index, one in prompts.items() for leaf, value in one.items()}  # fmt: skip
  compare(with_leaves(ours, flat), theirs)


def test_trainable_tokens_with_a_tied_output_layer(folder):
  theirs, ours = pair(folder, tie_word_embeddings=True)
  tokens = (40, 7, 22)
  theirs = adapted(theirs, peft.TrainableTokensConfig(token_indices=list(tokens), **TASK))
  (values,) = trained(theirs).values()
  ours = ours.add(methods.TrainableTokens(token_indices=tokens))
  ours = with_leaves(ours, {"model.embed_tokens.token_rows": values})
  compare(ours, theirs)
  ids, mask = token_batch(padding="right")
  merged = ours.merge()
  np.testing.assert_allclose(merged(input_ids=ids)["logits"], ours(input_ids=ids)["logits"], rtol=1e-4, atol=1e-4)
  targets = np.roll(ids, -1, axis=1)
  chunked = ours(input_ids=ids, attention_mask=mask, targets=targets)["token_losses"]
  logits = ours(input_ids=ids, attention_mask=mask)["logits"]
  whole = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(targets)[..., None], axis=-1)[..., 0]
  np.testing.assert_allclose(chunked, whole, rtol=1e-4, atol=1e-4)


def test_layer_norms(folder):
  theirs, ours = pair(folder)
  theirs = peft.get_peft_model(theirs, peft.LNTuningConfig(**TASK))
  wanted = sum(parameter.numel() for parameter in theirs.parameters() if parameter.requires_grad)
  labels = masks.flatten(ours.add(methods.LayerNormTuning()).labels())
  flat = masks.flatten(ours.params)
  assert sum(flat[path].size for path, group in labels.items() if group != masks.FROZEN) == wanted


FAMILIES = {
  "gpt2": (
    "GPT2Config", {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 40}, "transformer.h.attn",
  ),
  "opt": (
    "OPTConfig",
    {"hidden_size": HIDDEN, "word_embed_proj_dim": HIDDEN, "ffn_dim": 28, "num_hidden_layers": LAYERS,
     "num_attention_heads": HEADS, "max_position_embeddings": 40, "pad_token_id": 1},
    "model.decoder.layers.self_attn",
  ),
  "bloom": (
    "BloomConfig", {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS}, "transformer.h.self_attention",
  ),
  "gpt_neox": (
    "GPTNeoXConfig",
    {"hidden_size": HIDDEN, "intermediate_size": 28, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS},
    "gpt_neox.layers.attention",
  ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", ["right", "none"])
def test_prefix_on_other_decoders(family, padding, tmp_path):
  name, sizes, place = FAMILIES[family]
  theirs, ours = load_pair(getattr(transformers, name)(vocab_size=VOCABULARY, **sizes), tmp_path)
  theirs = adapted(theirs, peft.PrefixTuningConfig(num_virtual_tokens=N, **TASK))
  (flat,) = trained(theirs).values()
  pairs = flat.reshape(N, LAYERS, 2, HEADS, HIDDEN // HEADS).transpose(2, 1, 0, 3, 4)
  leaves = {f"{place}.attend.prefix_k": pairs[0], f"{place}.attend.prefix_v": pairs[1]}
  ours = with_leaves(ours.add(methods.Prefix(num_virtual_tokens=N)), leaves)
  ids, mask = token_batch(padding="right")
  mask = mask if padding == "right" else np.ones_like(mask)
  wanted = run_theirs(theirs, input_ids=ids, attention_mask=mask).logits
  assert_close(ours(input_ids=ids, attention_mask=mask)["logits"], wanted, mask, tolerance=2e-5)


def test_a_prefix_goes_with_a_cache_and_padding_on_the_left(folder):
  """Prompts of different lengths, then two more tokens one by one: as each row alone, without padding or cache."""
  _, ours = pair(folder)
  ours = ours.add(methods.Prefix(num_virtual_tokens=N))
  ids, mask = token_batch(padding="left")
  more = np.array([[9, 4], [30, 2], [17, 6]])

  def run(params, cache, ids, mask=None):
    variables = {"params": params} if cache is None else {"params": params, "cache": cache}
    with acting(ours.bound, params) as whole:
      variables["params"] = whole
      outputs, changed = ours.module.apply(variables, ids, mask, mutable=("cache",))
    return outputs["logits"][:, -1], changed["cache"]

  _, cache = run(ours.params, None, ids, mask)
  cache = grow(cache, 2)
  for index in range(2):
    found, cache = run(ours.params, cache, more[:, index : index + 1])
    for row in range(len(ids)):
      whole = np.concatenate([ids[row][mask[row] == 1], more[row, : index + 1]])[None]
      np.testing.assert_allclose(found[row], ours(input_ids=whole)["logits"][0, -1], rtol=1e-4, atol=1e-4)


def test_a_prefix_read_from_text_is_that_text(folder):
  """Of a causal model: its own keys and values of the text, then the sequence behind it."""
  _, ours = pair(folder)
  text = (5, 17, 33, 8, 21)
  prefixed = ours.add(methods.Prefix(num_virtual_tokens=len(text), init="text", init_ids=text))
  ids, mask = token_batch(padding="right")
  whole = np.concatenate([np.tile(text, (len(ids), 1)), ids], axis=1)
  whole_mask = np.concatenate([np.ones((len(ids), len(text)), np.int64), mask], axis=1)
  wanted = np.asarray(ours(input_ids=whole, attention_mask=whole_mask)["logits"])[:, len(text) :]
  found = np.asarray(prefixed(input_ids=ids, attention_mask=mask)["logits"])
  np.testing.assert_allclose(found[mask == 1], wanted[mask == 1], rtol=1e-4, atol=1e-4)
