"""Mixture of experts (Shazeer et al. 2017, arXiv 1701.06538): each token passes through k experts that a router picks.

    y = Σⱼ∈top-k pⱼ down_j(act(gate_j(x)) ⊙ up_j(x)),   p = softmax(x W_router)

The tokens are sorted by expert into blocks that belong to one expert each, and the blocks run one after the other, each
with its expert's leaves. No token is dropped, and the work grows with k, not with the number of experts.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.models.layers import Runtime, activation
from peftjax.models.llama_config import LlamaConfig

_MOST_ROWS = 256  # of a block: enough to keep a matrix unit busy


class Expert(nn.Module):
  """One expert: a gated feed-forward network on rows [N, hidden]."""

  config: LlamaConfig
  runtime: Runtime

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    config, dense = self.config, self.runtime.dense
    # Mixtral's checkpoints number the three.
    gate, down, up = ("w1", "w2", "w3") if config.model_type == "mixtral" else ("gate_proj", "down_proj", "up_proj")
    opened = activation(config.hidden_act)(dense(config.moe_intermediate_size, False, name=gate)(x))
    raised = dense(config.moe_intermediate_size, False, name=up)(x)
    return dense(config.hidden_size, False, name=down)(opened * raised)


class Experts(nn.Module):
  """The router and its experts, whose leaves have an expert axis."""

  config: LlamaConfig
  runtime: Runtime

  @nn.compact
  def __call__(self, x_BxLxE: jax.Array) -> jax.Array:
    config = self.config
    count, chosen = config.num_experts, config.num_experts_per_tok
    x = x_BxLxE.reshape(-1, x_BxLxE.shape[-1])
    scores = self.runtime.dense(count, False, name="gate")(x)
    weights, experts = jax.lax.top_k(jax.nn.softmax(scores.astype(jnp.float32), axis=-1), chosen)
    if config.norm_topk_prob:
      weights = weights / weights.sum(axis=-1, keepdims=True)
    rows, owners, places = into_blocks(experts, count)
    blocks = jnp.where((rows < x.shape[0])[..., None], x[jnp.minimum(rows, x.shape[0] - 1)], 0)
    y = self._run(blocks, owners).reshape(-1, x.shape[-1])[places]
    y = (y * weights[..., None].astype(y.dtype)).sum(axis=1)
    return y.reshape(x_BxLxE.shape)

  def _run(self, blocks: jax.Array, owners: jax.Array) -> jax.Array:
    """Each block [rows, hidden] through its owner, by picking that expert's leaves out of the stack."""
    if self.is_initializing():
      first = jnp.broadcast_to(blocks[0], (self.config.num_experts, *blocks.shape[1:]))
      stack = nn.vmap(Expert, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True})
      stack(self.config, self.runtime, name="experts")(first)
      return jnp.zeros_like(blocks)

    def one(model: Experts, carry: tuple[()], inputs: tuple[jax.Array, jax.Array]) -> tuple[tuple[()], jax.Array]:
      block, owner = inputs
      picked = nn.map_variables(
        Expert, "params", trans_in_fn=lambda tree: jax.tree.map(lambda leaf: leaf[owner], tree), init=False
      )
      return carry, picked(model.config, model.runtime, name="experts")(block)

    scanned: Any = nn.scan(one, variable_broadcast="params", split_rngs={"params": False, "dropout": True})
    return scanned(self, (), (blocks, owners))[1]


def into_blocks(experts_NxK: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """How N tokens with K experts each fill blocks of rows that share an expert.

  Returns:
    rows: int[blocks, rows of a block], the token of each row; N where the row is empty.
    owners: int[blocks], each block's expert.
    places: int[N, K], the row, counted through all blocks, where each of a token's experts finds it.
  """
  tokens, chosen = experts_NxK.shape
  pairs = tokens * chosen
  size = min(_MOST_ROWS, max(1, pairs // (2 * count)))
  used = min(count, pairs)
  blocks = (pairs - used) // size + used  # the most that can be needed: every expert in use has one block not full
  flat = experts_NxK.reshape(-1)
  loads = jnp.bincount(flat, length=count)
  needed = -(-loads // size)
  last = jnp.cumsum(needed)
  order = jnp.argsort(flat, stable=True)
  rank = jnp.arange(pairs) - (jnp.cumsum(loads) - loads)[flat[order]]  # within its expert's tokens
  place = ((last - needed)[flat[order]]) * size + rank
  rows = jnp.full(blocks * size, tokens).at[place].set(order // chosen)
  owners = jnp.minimum(jnp.searchsorted(last, jnp.arange(blocks), side="right"), count - 1)
  places = jnp.zeros(pairs, place.dtype).at[order].set(place)
  return rows.reshape(blocks, size), owners, places.reshape(tokens, chosen)
