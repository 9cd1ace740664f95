"""Leaves that train over a bfloat16 base are float32, and a run follows that over a float32 base."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peftjax
from peftjax import loading, masks, methods
from peftjax.models.layers import Runtime
from peftjax.train import inspection
from tests.models.decoder_models import LLAMA, random_model, token_ids

METHODS = {
  "full": methods.Full(),
  "layernorm": methods.LayerNormTuning(),
  "saved": methods.LoRA(rank=2, modules_to_save=("v_proj",)),
  "bias": methods.LoRA(rank=2),
}
T5 = {"model_type": "t5", "vocab_size": 61, "d_model": 20, "d_kv": 6, "d_ff": 28, "num_layers": 2, "num_heads": 5}
SIZES = {"vocab_size": 61, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 5, "intermediate_size": 28}
FAMILIES = {
  "llama": LLAMA,
  "mixtral": {**LLAMA, "model_type": "mixtral", "num_local_experts": 2},
  "gemma2": {**LLAMA, "model_type": "gemma2", "query_pre_attn_scalar": 4},
  "gpt2": {"model_type": "gpt2", "vocab_size": 61, "n_embd": 20, "n_layer": 2, "n_head": 5},
  "bloom": {"model_type": "bloom", "vocab_size": 61, "hidden_size": 20, "n_layer": 2, "n_head": 5},
  "opt": {"model_type": "opt", **SIZES, "ffn_dim": 28, "max_position_embeddings": 40, "word_embed_proj_dim": 20},
  "gptj": {"model_type": "gptj", "vocab_size": 61, "n_embd": 20, "n_layer": 2, "n_head": 5, "rotary_dim": 4},
  "gpt_neox": {"model_type": "gpt_neox", **SIZES},
  "bert": {"model_type": "bert", **SIZES, "max_position_embeddings": 40},
  "t5": T5,
}


def trained(model):
  return masks.partition(model.params, model.labels())[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", METHODS)
def test_what_trains_is_float32_and_what_does_not_is_as_stored(name: str, dtype: str) -> None:
  shapes = loading.from_config(LLAMA, dtype).add(METHODS[name])
  groups = masks.flatten(shapes.labels())
  for path, leaf in masks.flatten(shapes.params).items():
    is_own = path in shapes.adapter_paths()
    assert leaf.dtype == (jnp.float32 if groups[path] != masks.FROZEN or is_own else jnp.dtype(dtype)), path
  rows = inspection.report(shapes)["leaves"]
  assert {row["dtype"] for row in rows if row["group"] != masks.FROZEN} == {"float32"}
  assert all(row["bytes"] == 4 * row["parameters"] for row in rows if row["group"] != masks.FROZEN)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bfloat16_model_of_float32_leaves_computes_in_bfloat16(family: str) -> None:
  base = loading.from_config(FAMILIES[family], "bfloat16")
  model = base.add(methods.Full())
  given = {name: jnp.zeros(one.shape, one.dtype) for name, one in base.example_inputs.items()}
  found = [jax.eval_shape(lambda params, m=one: m.forward(params, given), one.params) for one in (base, model)]
  assert jax.tree.map(lambda x: (x.shape, x.dtype), found[0]) == jax.tree.map(lambda x: (x.shape, x.dtype), found[1])


def losses(model, updates: int, rate: float) -> list[float]:
  ids = token_ids(4, 12)
  optimizer = optax.adamw(rate, weight_decay=0.0)
  trainable, frozen = masks.partition(model.params, model.labels())

  def loss_of(leaves):
    params = masks.combine(leaves, frozen)
    return model.forward(params, {"input_ids": ids[:, :-1], "targets": ids[:, 1:]})["token_losses"].mean()

  @jax.jit
  def update(leaves, state):
    loss, grads = jax.value_and_grad(loss_of)(leaves)
    changes, state = optimizer.update(grads, state, leaves)
    return loss, optax.apply_updates(leaves, changes), state

  state, found = optimizer.init(trainable), []
  for _ in range(updates):
    loss, trainable, state = update(trainable, state)
    found.append(float(loss))
  return found


@pytest.mark.parametrize("name", ["full", "layernorm"])
def test_thirty_updates_over_a_bfloat16_base_follow_the_float32_run(name: str, tmp_path: Path) -> None:
  random_model(LLAMA).save(tmp_path / "base")
  wide, narrow = (peftjax.load(tmp_path / "base", dtype=dtype).add(METHODS[name]) for dtype in ("float32", "bfloat16"))
  rate = 1e-3 if name == "full" else 1e-2
  wanted, found = losses(wide, 30, rate), losses(narrow, 30, rate)
  assert wanted[0] - wanted[-1] > 0.02 * wanted[0]
  assert found[-1] == pytest.approx(wanted[-1], rel=0.01)


def test_a_run_keeps_and_exports_float32(tmp_path: Path) -> None:
  random_model(LLAMA).save(tmp_path / "base")
  model = peftjax.load(tmp_path / "base", dtype="bfloat16").add(methods.LayerNormTuning())
  before = trained(model)
  after = jax.tree.map(lambda leaf: leaf + 1e-4, before)
  changed = [bool(jnp.any(a != b)) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after))]
  assert all(changed)  # in bfloat16 a change of 1e-4 to a scale of 1 is none
  frozen = masks.partition(model.params, model.labels())[1]
  merged = model.with_params(masks.combine(after, frozen)).merge()
  merged.save(tmp_path / "out")
  again = masks.flatten(peftjax.load(tmp_path / "out").params)
  for path, leaf in masks.flatten(after).items():
    np.testing.assert_array_equal(again[path], leaf)


def test_training_in_the_stored_dtype_is_a_choice() -> None:
  model = loading.from_config(LLAMA, "bfloat16", runtime=Runtime(trains_as_stored=True)).add(methods.Full())
  assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype("bfloat16")}
