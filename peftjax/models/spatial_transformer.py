"""The transformers between a UNet's convolutions: places attend to each other and to a text (arXiv 2112.10752, 3.3)."""

from __future__ import annotations

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.models.diffusion_layers import Attention, Numbered, members, numbered, recomputed
from peftjax.models.layers import Runtime
from peftjax.sites import HasSites


class GEGLU(nn.Module):
  """x W₁ · gelu(x W₂); the checkpoints hold both as one matrix (Shazeer 2020, arXiv 2002.05202)."""

  features: int
  runtime: Runtime

  def setup(self) -> None:
    self.proj = self.runtime.dense(2 * self.features)

  def __call__(self, x: jax.Array) -> jax.Array:
    values, gate = jnp.split(self.proj(x), 2, axis=-1)
    return values * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
  """Four times the channels between two linear layers."""

  channels: int
  runtime: Runtime

  def setup(self) -> None:
    widening = functools.partial(GEGLU, 4 * self.channels, self.runtime)
    narrowing = functools.partial(self.runtime.dense, self.channels)
    self.net = Numbered(((0, widening), (2, narrowing)))

  def __call__(self, x: jax.Array) -> jax.Array:
    for layer in members(self.net):
      x = layer(x)
    return x


class TransformerBlock(nn.Module, HasSites):
  """x ← x + attn1(LN(x)); x ← x + attn2(LN(x), context); x ← x + ff(LN(x))."""

  channels: int
  heads: int
  upcast: bool
  runtime: Runtime
  sites: ClassVar = {"attention_branch": "sublayer", "cross_branch": "sublayer", "mlp_branch": "sublayer"}

  def setup(self) -> None:
    self.norm1, self.norm2, self.norm3 = (self.runtime.layer_norm(1e-5) for _ in range(3))
    self.attn1, self.attn2 = (
      Attention(self.channels, self.heads, self.runtime, upcast=self.upcast),
      Attention(self.channels, self.heads, self.runtime, upcast=self.upcast),
    )
    self.ff = FeedForward(self.channels, self.runtime)

  def attention_branch(self, x: jax.Array) -> jax.Array:
    """Attention among places, on normalised states, without its residual sum."""
    return self.attn1(x)

  def cross_branch(self, x: jax.Array, context: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Attention to the context, on normalised states, without its residual sum."""
    return self.attn2(x, context, mask)

  def mlp_branch(self, x: jax.Array) -> jax.Array:
    """The feed-forward sublayer on normalised states, without its residual sum."""
    return self.ff(x)

  def __call__(self, x: jax.Array, context: jax.Array, mask: jax.Array | None) -> jax.Array:
    x = x + self.attention_branch(self.norm1(x))
    x = x + self.cross_branch(self.norm2(x), context, mask)
    return x + self.mlp_branch(self.norm3(x))


class SpatialTransformer(nn.Module):
  """Transformer blocks over an image's places, with a projection before and after, as a residual branch."""

  channels: int
  heads: int
  layers: int
  groups: int
  linear: bool
  upcast: bool
  runtime: Runtime

  def setup(self) -> None:
    runtime = self.runtime
    self.norm = runtime.group_norm(self.groups, 1e-6)
    self.proj_in, self.proj_out = (
      runtime.dense(self.channels) if self.linear else runtime.conv(self.channels, 1) for _ in range(2)
    )
    block = recomputed(TransformerBlock, runtime)
    make = functools.partial(block, self.channels, self.heads, self.upcast, runtime)
    self.transformer_blocks = numbered(*[make] * self.layers)

  def __call__(self, x: jax.Array, context: jax.Array, mask: jax.Array | None) -> jax.Array:
    hidden = self.proj_in(self.norm(x))
    hidden = hidden.reshape(x.shape[0], -1, self.channels)
    for block in members(self.transformer_blocks):
      hidden = block(hidden, context, mask)
    return x + self.proj_out(hidden.reshape(x.shape))
