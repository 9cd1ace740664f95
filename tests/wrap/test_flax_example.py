"""Flax's own NNX transformer, examples/gemma of its repository, which its package does not hold.

git clone --depth=1 https://github.com/google/flax
PEFTJAX_FLAX_EXAMPLES=flax/examples pytest tests/wrap/test_flax_example.py
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import peftjax
from peftjax.model import Model
from tests.wrap import grid
from tests.wrap.test_collections import IDS, randomised

EXAMPLES = os.environ.get("PEFTJAX_FLAX_EXAMPLES", "")
pytestmark = pytest.mark.skipif(not EXAMPLES, reason="PEFTJAX_FLAX_EXAMPLES names no folder")


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
  """Norms around every part round gradients to 6e-5 in float32; with float64, where the example allows it, to 1e-5."""
  with jax.enable_x64(True):
    yield


def wide(leaf: jax.Array) -> jax.Array:
  """The leaf in float64, if it is of numbers with a fraction."""
  return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


@functools.cache
def wrapped(key_heads: int) -> tuple[Model, dict[str, Any], Any]:
  """(model, inputs, what it gives itself): local windows and a global layer, norms around all, soft caps, tied."""
  sys.path.insert(0, f"{EXAMPLES}/gemma")
  sizes, transformer = (importlib.import_module(name) for name in ("transformer_cfg", "transformer"))
  kind = sizes.AttentionType
  config = sizes.TransformerConfig(
    num_layers=3, num_embed=23, embed_dim=12, hidden_dim=14, num_heads=2, head_dim=6, num_kv_heads=key_heads,
    final_logit_softcap=30.0, use_post_attn_norm=True, use_post_ffw_norm=True, attn_logits_soft_cap=50.0,
    attention_types=(kind.LOCAL_SLIDING, kind.LOCAL_SLIDING, kind.GLOBAL), sliding_window_size=3, use_qk_norm=True,
    dtype=jnp.float64, weight_dtype=jnp.float64,
  )  # fmt: skip
  definition, leaves, *rest = nnx.split(transformer.Transformer(config, rngs=nnx.Rngs(0)), nnx.Param, ...)
  net = nnx.merge(definition, jax.tree.map(wide, randomised(leaves)), *rest)
  batch, length = IDS.shape
  mask = transformer.make_causal_attn_mask(jnp.ones((batch, length), bool))
  positions = jnp.tile(jnp.arange(length), (batch, 1))
  inputs = {"last_tokens": IDS, "positions": positions, "cache": None, "attention_mask": mask}
  return peftjax.wrap(net, example_inputs=inputs), inputs, net(**inputs)


@pytest.mark.parametrize("key_heads", [1, 2])  # the queries apart from the keys and values, and all in one kernel
def test_every_matrix_is_found_and_it_computes_the_same(key_heads):
  model, inputs, expected = wrapped(key_heads)
  kinds = [site.kind for site in model.sites]
  assert kinds.count("linear") == 3 * (6 if key_heads == 1 else 5) and kinds.count("unembedding") == 1
  grid.close(jax.tree.leaves(model(**inputs)), jax.tree.leaves(expected), 1e-5)


@pytest.mark.parametrize("name", grid.METHOD_SETTINGS)
@pytest.mark.parametrize("key_heads", [1, 2])
def test_acting_equals_the_merged_weights(key_heads, name):
  model, inputs, _ = wrapped(key_heads)
  added = grid.adapted(model, grid.at_linear(model, name))
  grid.check(added.with_params(jax.tree.map(wide, added.params)), inputs, 3e-5)
