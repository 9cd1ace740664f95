"""The layers of both of CLIP's towers (Radford et al. 2021, arXiv 2103.00020)."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
from flax import linen as nn

from peftjax.models.layers import Runtime, attend, stack_of
from peftjax.models.vit import MLP
from peftjax.sites import HasSites


class ClipAttention(nn.Module, HasSites):
  """Multi-head self-attention with its output projection."""

  config: Any
  runtime: Runtime
  sites: ClassVar = {"attend": "attention"}

  def setup(self) -> None:
    size = self.config.hidden_size
    self.q_proj, self.k_proj, self.v_proj, self.out_proj = (self.runtime.dense(size) for _ in range(4))

  def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
    heads = self.config.num_attention_heads
    q, k, v = (layer(x).reshape(*x.shape[:2], heads, -1) for layer in (self.q_proj, self.k_proj, self.v_proj))
    return self.out_proj(self.attend(q, k, v, mask).reshape(x.shape))

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """[B, L, H, D] from queries [B, L, H, D], keys and values [B, S, H, D], mask [B or 1, 1, L, S] or None."""
    return attend(self, q, k, v, mask, self.config.attention_dropout, causal=self.config.is_causal)


class ClipLayer(nn.Module, HasSites):
  """x ← x + attention(LN(x)); x ← x + mlp(LN(x))."""

  config: Any
  runtime: Runtime
  sites: ClassVar = {"attention_branch": "sublayer", "mlp_branch": "sublayer", "__call__": "block"}

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.self_attn, self.mlp = ClipAttention(config, runtime), MLP(config, runtime)
    self.layer_norm1, self.layer_norm2 = (runtime.layer_norm(config.layer_norm_eps) for _ in range(2))

  def attention_branch(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The attention sublayer on normalised states, without its residual sum."""
    return self.self_attn(x, mask)

  def mlp_branch(self, x: jax.Array) -> jax.Array:
    """The feed-forward sublayer on normalised states, without its residual sum."""
    return self.mlp(x)

  def __call__(self, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    x = x + self.attention_branch(self.layer_norm1(x), mask)
    x = x + self.mlp_branch(self.layer_norm2(x))
    return x, x if self.runtime.output_hidden_states else None


class ClipEncoder(nn.Module):
  """The stack of layers; every token sees all that a mask lets it see, and every patch all."""

  config: Any
  runtime: Runtime

  def setup(self) -> None:
    self.layers = stack_of(ClipLayer, (self.config, self.runtime), self.config.num_hidden_layers, self.runtime)

  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array | None]:
    return self.layers(x, mask)
