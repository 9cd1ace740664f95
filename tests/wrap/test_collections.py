"""Models of published collections, as they are: gemma's Linen transformer, and an NNX transformer with experts."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import peftjax
from peftjax import masks
from peftjax.model import Model
from tests.wrap import grid

IDS = jax.random.randint(jax.random.key(1), (2, 7), 0, 23)


def randomised(params: Any, scale: float = 0.2) -> Any:
  """Leaves that are all random, so that every part matters."""
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  return jax.tree.unflatten(
    structure, [scale * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
  )  # fmt: skip


def gemma(width: int = 12, inner: int = 14, size: int = 6) -> tuple[Any, Any, dict[str, Any]]:
  """(module, shapes of its variables, inputs): two layers, one with a local window, norms around both, soft caps."""
  modules, transformer = pytest.importorskip("gemma.modules"), pytest.importorskip("gemma.transformer")
  config = transformer.TransformerConfig(
    num_layers=2, num_embed=23, embed_dim=width, hidden_dim=inner, num_heads=4, head_dim=size, num_kv_heads=2,
    final_logit_softcap=30.0, use_post_attn_norm=True, use_post_ffw_norm=True, attn_logits_soft_cap=50.0,
    sliding_window_size=3, transpose_gating_einsum=True,
    attention_types=[modules.AttentionType.LOCAL_SLIDING, modules.AttentionType.GLOBAL],
  )  # fmt: skip
  net = transformer.Transformer(config)
  length = IDS.shape[1]
  mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (2, length, length))
  inputs = {"last_tokens": IDS, "positions": jnp.broadcast_to(jnp.arange(length), IDS.shape), "cache": None,
            "attention_mask": mask}  # fmt: skip
  return net, jax.eval_shape(lambda: net.init(jax.random.key(0), **inputs)), inputs


def dantinox(width: int = 16, size: int = 4) -> nnx.Module:
  """Grouped queries, tied embeddings, and experts that each token chooses two of."""
  config, model = pytest.importorskip("dantinox.core.config"), pytest.importorskip("dantinox.core.model")
  settings = config.ModelConfig(dim=width, n_heads=4, head_size=size, num_blocks=2, vocab_size=23, max_context=16,
                                attention="gqa", kv_heads=2, ffn="moe", n_experts=4, top_k=2)  # fmt: skip
  net = model.Transformer(settings, rngs=nnx.Rngs(0))
  graph, params, rest = nnx.split(net, nnx.Param, ...)
  net = nnx.merge(graph, randomised(params), rest)
  net.eval()
  return net


@functools.cache
def of(collection: str) -> tuple[Model, dict[str, Any], Any]:
  """(model, inputs, what it gives itself)."""
  if collection == "gemma":
    net, shapes, inputs = gemma()
    variables = randomised(shapes)
    return peftjax.wrap(net, variables, inputs), inputs, net.apply(variables, **inputs)
  module: Any = dantinox()
  return peftjax.wrap(lambda net, x: net(x).logits, module, {"x": IDS}), {"x": IDS}, module(IDS).logits


@pytest.mark.parametrize("collection", ["gemma", "dantinox"])
def test_every_matrix_is_found_and_it_computes_the_same(collection):
  model, inputs, own = of(collection)
  grid.close({"y": model(**inputs)}, {"y": own}, 1e-5)
  rows = {row.path: row for row in model.module.found.rows}
  tables = {"gemma": "embedder.input_embedding", "dantinox": "embed.embedding"}
  assert rows[tables[collection]].kind == "embedding, unembedding"
  matrices = [row for row in rows.values() if len(row.shape) > 1]
  assert matrices and all(row.kind.startswith(("linear", "embedding")) for row in matrices)


@pytest.mark.parametrize("name", grid.METHOD_SETTINGS)
@pytest.mark.parametrize("collection", ["gemma", "dantinox"])
def test_acting_equals_the_merged_weights(collection, name):
  model, inputs, _ = of(collection)
  added = grid.adapted(model, grid.at_linear(model, name))
  assert masks.count([leaf for path, leaf in masks.flatten(added.params).items() if path in added.adapter_paths()])
  grid.check(added, inputs)
