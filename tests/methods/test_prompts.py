"""Prompts, prefixes, trainable tokens and combinations: how they start, what they refuse, how they merge."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax import UserError, masks, methods
from peftjax.loading import from_config
from peftjax.methods import build
from tests.methods import tiny

TEXT = (7, 9, 11, 4, 5)


def leaf(model, path):
  return masks.flatten(model.params)[path]


# How they start ---------------------------------------------------------------------------------------------------


def test_prompt_starts_from_its_text():
  model = tiny.added(methods.Prompt(num_virtual_tokens=7, init="text", init_ids=TEXT))
  words = leaf(model, "bert.embeddings.word_embeddings.embedding")
  np.testing.assert_array_equal(leaf(model, "from_embeds.prompt_embeddings"), words[jnp.asarray([*TEXT, *TEXT[:2]])])


def test_prompt_starts_from_class_labels():
  method = methods.Prompt(num_virtual_tokens=4, init="class_labels", label_ids=((7, 9), (11,)))
  model = tiny.added(method)
  words = np.asarray(leaf(model, "bert.embeddings.word_embeddings.embedding"))
  prompt = np.asarray(leaf(model, "from_embeds.prompt_embeddings"))
  np.testing.assert_allclose(prompt[:2], [words[[7, 9]].mean(axis=0), words[11]], rtol=1e-6)
  for row in prompt[2:]:
    assert (row == words).all(axis=1).any()


def test_vocabulary_and_random_prompts_differ_by_key():
  for init in ("vocab", "random"):
    method = methods.Prompt(num_virtual_tokens=4, init=init)
    first, again, other = (leaf(tiny.added(method, seed=seed), "from_embeds.prompt_embeddings") for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()


def keys_by_hand(model, ids):
  """The first layer's keys [n, heads, size] of a text, in numpy."""
  flat = {name.removeprefix("bert."): np.asarray(value) for name, value in masks.flatten(model.params).items()}
  tables = [flat[f"embeddings.{name}_embeddings.embedding"] for name in ("word", "position", "token_type")]
  x = tables[0][list(ids)] + tables[1][: len(ids)] + tables[2][0]
  x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-12)
  x = x * flat["embeddings.LayerNorm.scale"] + flat["embeddings.LayerNorm.bias"]
  key = "encoder.layer.attention.self.key"
  return (x @ flat[f"{key}.kernel"][0] + flat[f"{key}.bias"][0]).reshape(len(ids), tiny.HEADS, -1)


def test_prefix_starts_from_what_the_base_computes_for_a_text():
  method = methods.Prefix(num_virtual_tokens=4, init="text", init_ids=TEXT)
  base = tiny.encoder()
  model = base.add(method)
  stacked = {name: leaf(model, f"bert.encoder.layer.attention.self.attend.{name}") for name in ("prefix_k", "prefix_v")}
  np.testing.assert_allclose(stacked["prefix_k"][0], keys_by_hand(base, TEXT)[:4], rtol=1e-4, atol=1e-5)
  unrolled = base.unrolled().add(method)
  for name, value in stacked.items():
    for layer in range(tiny.LAYERS):
      found = leaf(unrolled, f"bert.encoder.layer.{layer}.attention.self.attend.{name}")
      np.testing.assert_allclose(found, value[layer], rtol=1e-5, atol=1e-6)


def test_prefix_from_text_has_its_shapes_on_a_model_of_shapes():
  method = methods.Prefix(num_virtual_tokens=4, init="text", init_ids=TEXT)
  model = from_config(tiny.config(), task="text_classification").add(method)
  assert leaf(model, "bert.encoder.layer.attention.self.attend.prefix_k").shape == (tiny.LAYERS, 4, tiny.HEADS, 4)


def test_a_zero_network_makes_zero_prefixes():
  model = tiny.added(methods.Prefix(num_virtual_tokens=3, reparametrize=True, init="zero"))
  same = tiny.added(methods.Prefix(num_virtual_tokens=3, init="zero"))
  np.testing.assert_allclose(model(**tiny.batch())["logits"], same(**tiny.batch())["logits"], rtol=1e-6)


def test_a_network_gives_the_model_of_its_prefixes():
  method = methods.Prefix(num_virtual_tokens=3, reparametrize=True, encoder_hidden_size=5)
  model = tiny.added(method)
  (bound,) = model.bound
  derived = bound.method.derive(model.params["prefix"], bound.sites)
  plain = tiny.added(methods.Prefix(num_virtual_tokens=3))
  flat = masks.flatten(plain.params)
  for site, leaves in zip(bound.sites, derived):
    flat |= {".".join((*site.leaf_path, name)): value for name, value in leaves.items()}
  plain = plain.with_params(masks.unflatten(flat))
  np.testing.assert_allclose(model(**tiny.batch())["logits"], plain(**tiny.batch())["logits"], rtol=1e-5)


def test_texts_and_label_names_go_through_the_model_s_tokenizer():
  model = peftjax.load("packaged:minilm", task="text_classification", label_names=("very good", "bad"))
  text = "rate the movie and say whether it is worth the ticket"
  prompt = model.add(methods.Prompt(num_virtual_tokens=5, init="text", init_text=text)).methods[0]
  prefix = model.add(methods.Prefix(num_virtual_tokens=5, init="text", init_text=text)).methods[0]
  labels = model.add(methods.Prompt(num_virtual_tokens=5, init="class_labels")).methods[0]
  vocabulary = json.loads((model.folder / "tokenizer.json").read_text())["model"]["vocab"]
  assert prompt.init_ids == tuple(vocabulary[word] for word in ("[CLS]", *text.split(), "[SEP]"))
  assert prefix.init_ids == prompt.init_ids
  assert labels.label_ids == ((vocabulary["very"], vocabulary["good"]), (vocabulary["bad"],))


def test_a_text_without_a_tokenizer_is_refused():
  with pytest.raises(UserError, match="came without a tokenizer"):
    tiny.added(methods.Prompt(init="text", init_text="rate the movie"))


# Single layers, long texts ----------------------------------------------------------------------------------------


def test_a_network_serves_chosen_layers_alone():
  method = methods.Prefix(num_virtual_tokens=3, reparametrize=True, encoder_hidden_size=5, layers=(1,))
  model = tiny.added(method)
  d = tiny.HIDDEN
  assert tiny.adapter_count(model) == 3 * d + (d + 1) * 5 + (5 + 1) * 2 * d
  assert model(**tiny.batch())["logits"].shape == (3, tiny.LABELS)


def test_llama_adapter_counts_layers_from_the_last():
  model = tiny.added(methods.LlamaAdapter(num_virtual_tokens=3, adapter_layers=1))
  assert {path.split(".")[3] for path in model.adapter_paths()} == {"1"}


@pytest.mark.parametrize("method", [methods.Prompt(num_virtual_tokens=25), methods.Prefix(num_virtual_tokens=25)])
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_a_text_that_leaves_no_position_is_refused(method, model_type):
  model = from_config(tiny.config(model_type), task="text_classification").add(method)
  room = 33 - (2 if model_type == "roberta" else 0)
  jax.eval_shape(lambda tree: model.forward(tree, tiny.batch(length=room - 25)), model.params)
  with pytest.raises(UserError, match=f"25 virtual tokens do not fit the model's {room} positions"):
    jax.eval_shape(lambda tree: model.forward(tree, tiny.batch(length=room - 24)), model.params)


# Trainable tokens -------------------------------------------------------------------------------------------------


def test_trainable_tokens_move_their_rows_alone_and_merge():
  tokens = (30, 5, 17)
  model = tiny.added(methods.TrainableTokens(token_indices=tokens))
  path = "bert.embeddings.word_embeddings"
  rows = np.random.default_rng(0).normal(size=(3, tiny.HIDDEN)).astype("f4")
  model = tiny.replaced(model, {f"{path}.token_rows": jnp.asarray(rows)})
  before = np.asarray(leaf(model, f"{path}.embedding"))
  merged = model.merge()
  wanted = before.copy()
  wanted[list(tokens)] = rows
  np.testing.assert_allclose(leaf(merged, f"{path}.embedding"), wanted, atol=1e-6)
  inputs = {"input_ids": jnp.asarray([[5, 6, 30, 29, 17, 36, 0]]), "attention_mask": jnp.ones((1, 7), jnp.int32)}
  np.testing.assert_allclose(model(**inputs)["logits"], merged(**inputs)["logits"], rtol=1e-5, atol=1e-6)


def test_random_trainable_tokens_leave_the_base_s_rows():
  model = tiny.added(methods.TrainableTokens(token_indices=(5, 30), init_random=True))
  path = "bert.embeddings.word_embeddings"
  rows = np.asarray(leaf(model, f"{path}.token_rows"))
  assert np.abs(rows - np.asarray(leaf(model, f"{path}.embedding"))[[5, 30]]).max() > 0.1
  assert 0.5 < rows.std() < 1.5


# Biases -----------------------------------------------------------------------------------------------------------


def test_beft_is_a_bias_and_merges_into_one():
  model = tiny.added(methods.BEFT())
  assert {path.rpartition(".attention.")[2] for path in model.adapter_paths()} == {"self.value.beft_bias"}
  model = tiny.replaced(model, {path: leaf(model, path) + 0.5 for path in model.adapter_paths()})
  merged = model.merge()
  path = "bert.encoder.layer.attention.self.value.bias"
  np.testing.assert_array_equal(leaf(merged, path), leaf(model, path) + 0.5)
  for key, value in model(**tiny.batch()).items():
    np.testing.assert_allclose(merged(**tiny.batch())[key], value, rtol=1e-5, atol=1e-5)


# Combinations -----------------------------------------------------------------------------------------------------


def test_mam_is_its_two_parts():
  model = tiny.added(methods.MAM(num_virtual_tokens=3, bottleneck_dim=5))
  assert [method.name for method in model.methods] == ["prefix", "parallel_adapter"]
  both = tiny.added(
    methods.Hybrid(
      methods=(methods.Prefix(num_virtual_tokens=3), methods.ParallelAdapter(bottleneck_dim=5, activation="relu"))
    )
  )
  jax.tree.map(np.testing.assert_array_equal, model.params, both.params)


@pytest.mark.parametrize("left", ["rank", "num_virtual_tokens", "bottleneck_dim"])
def test_unipelt_without_two_of_its_parts(left):
  sizes = dict.fromkeys(("rank", "num_virtual_tokens", "bottleneck_dim"), 0) | {left: 2}
  model = tiny.added(methods.UniPELT(**sizes))
  found = {path.rpartition(".")[2] for path in model.adapter_paths()} - {"gate_kernel", "gate_bias"}
  wanted = {
    "rank": {"lora_a", "lora_b"},
    "num_virtual_tokens": {"prefix_k", "prefix_v"},
    "bottleneck_dim": {"down_kernel", "down_bias", "up_kernel", "up_bias"},
  }
  assert found == wanted[left]


def test_unipelt_on_one_layer_unrolls():
  model = tiny.added(methods.UniPELT(rank=2, num_virtual_tokens=3, bottleneck_dim=2, layers=(1,)))
  layers = {path.split(".")[3] for path in model.adapter_paths()}
  assert layers == {"1"}
  assert not model.stacks


# Mistakes ---------------------------------------------------------------------------------------------------------

MISTAKES = {
  "reads a text": ({"name": "prompt", "init": "txt"}, "prompt.init: unknown 'txt'; did you mean 'text'"),
  "no text": ({"name": "prompt", "init": "text"}, "needs init_text"),
  "no labels": ({"name": "prompt", "init": "class_labels", "label_ids": ((3,), ())}, "a label has no token"),
  "unnamed labels": ({"name": "prompt", "init": "class_labels"}, "labels have no names; give label_ids"),
  "labels": ({"name": "prompt", "num_virtual_tokens": 1, "init": "class_labels", "label_ids": ((3,), (4,))}, "2 la"),
  "no such id": ({"name": "prompt", "init": "text", "init_ids": (3, 99)}, "token id 99 is outside"),
  "no positions": ({"name": "prompt", "num_virtual_tokens": 40}, "fill all 33 positions"),
  "short text": ({"name": "prefix", "init": "text", "init_ids": (3, 4)}, "has 2 tokens, fewer than"),
  "network": ({"name": "prefix", "init": "text", "init_ids": (3,) * 20, "reparametrize": True}, "leaves to a network"),
  "no network": ({"name": "prefix", "encoder_hidden_size": 5}, "reparametrize=True"),
  "v2": ({"name": "p_tuning_v2", "reparametrize": True}, "use prefix"),
  "encoder": ({"name": "p_tuning", "encoder_type": "mlp"}, "unknown 'mlp'"),
  "dropout of an MLP": ({"name": "p_tuning", "encoder_dropout": 0.5}, "acts between the layers of an LSTM"),
  "dropout of one layer": (
    {"name": "p_tuning", "encoder_type": "LSTM", "encoder_num_layers": 1, "encoder_dropout": 0.5},
    "there are none in an LSTM of one layer",
  ),
  "deep encoder": ({"name": "p_tuning", "encoder_type": "LSTM", "encoder_num_layers": 9}, "expected 1 to 4"),
  "field": ({"name": "p_tuning", "init": "text"}, "no field 'init'"),
  "layer": ({"name": "prefix", "layers": (2,)}, "no layer 2"),
  "layers": ({"name": "llama_adapter", "adapter_layers": 3}, "3 of a model of 2 layers"),
  "both": ({"name": "llama_adapter", "adapter_layers": 1, "layers": (0,)}, "not both"),
  "no tokens": ({"name": "trainable_tokens"}, "token_indices is empty"),
  "twice": ({"name": "trainable_tokens", "token_indices": (3, 3)}, "3 is given twice"),
  "outside": ({"name": "trainable_tokens", "token_indices": (3, 37)}, "37 is outside"),
  "activation": ({"name": "houlsby", "activation": "gelo"}, "did you mean 'gelu'"),
  "sublayer": ({"name": "pfeiffer", "sublayers": ("mpl",)}, "no 'mpl' in this model; did you mean 'mlp'"),
  "adapter_plus": ({"name": "adapter_plus", "sublayers": ("mlp",)}, "whole layers"),
  "multiple": ({"name": "compacter", "bottleneck_dim": 10}, "no multiple of phm_dim 4; try 12"),
  "divides": ({"name": "compacter", "bottleneck_dim": 10, "phm_dim": 5}, "does not divide the hidden size 12"),
  "rank": ({"name": "reft", "rank": 13}, "exceeds the hidden size 12"),
  "positions": ({"name": "reft", "prefix_positions": 0, "suffix_positions": 0}, "no position to edit"),
  "unipelt": ({"name": "unipelt", "rank": 0, "num_virtual_tokens": 0, "bottleneck_dim": 0}, "nothing is left"),
  "mam": ({"name": "mam", "activation": "gelo"}, "did you mean 'gelu'"),
  "biases": ({"name": "prefix", "bias": "prefix_only"}, "prefix.bias: unknown mode 'prefix_only'"),
  "bitfit": ({"name": "bitfit", "targets": ("quary",)}, "did you mean 'query'"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_said_in_a_line(name):
  settings, message = MISTAKES[name]
  with pytest.raises(UserError) as error:
    from_config(tiny.config(), task="text_classification").add(build(settings))
  assert message in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "name", ["prompt", "p_tuning", "prefix", "llama_adapter", "houlsby", "compacter", "reft", "unipelt", "mam"]
)
def test_what_cannot_be_merged_says_so(name):
  extra = {"houlsby": {"bottleneck_dim": 4}, "mam": {"bottleneck_dim": 4, "num_virtual_tokens": 3}}.get(name, {})
  with pytest.raises(UserError, match="cannot be merged"):
    tiny.added(build({"name": name, **extra})).merge()
