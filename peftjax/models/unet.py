"""Stable Diffusion's denoiser, diffusers' UNet2DConditionModel (Rombach et al. 2022, arXiv 2112.10752)."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from peftjax.errors import UserError
from peftjax.models.diffusion_config import as_published
from peftjax.models.diffusion_layers import (
  Downsample,
  Resnet,
  ResnetOptions,
  Upsample,
  members,
  numbered,
  recomputed,
)
from peftjax.models.family import DIFFUSERS, Architecture, Family
from peftjax.models.layers import Runtime, activation, padding_mask
from peftjax.models.spatial_transformer import SpatialTransformer
from peftjax.models.unet_config import CROSS_DOWN, CROSS_MID, CROSS_UP, UNET_TABLE, UNetConfig, parse

DENOISER = "denoiser"


def sinusoids(timestep: jax.Array, features: int, flip_sin_to_cos: bool, freq_shift: float) -> jax.Array:
  """float32 [N, features]: sine and cosine of timesteps [N] at falling frequencies (Ho et al. 2020, arXiv 2006.11239).

  Args:
    flip_sin_to_cos: the cosines come first.
    freq_shift: subtracted from the number of frequencies, by which they fall to 1 / 10000.
  """
  half = features // 2
  exponents = -math.log(10000) * np.arange(half, dtype=np.float32) / np.float32(half - freq_shift)
  angles = timestep.astype(jnp.float32)[:, None] * np.exp(exponents)
  parts = [jnp.cos(angles), jnp.sin(angles)] if flip_sin_to_cos else [jnp.sin(angles), jnp.cos(angles)]
  return jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), (0, features % 2)))


class TimeEmbedding(nn.Module):
  """Two linear layers with an activation between them."""

  features: int
  act_fn: str
  runtime: Runtime

  def setup(self) -> None:
    self.linear_1, self.linear_2 = self.runtime.dense(self.features), self.runtime.dense(self.features)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.linear_2(activation(self.act_fn)(self.linear_1(x)))


def _resnets(config: UNetConfig, runtime: Runtime, sizes: list[tuple[int, int]], divisor: float = 1.0) -> Any:
  options = ResnetOptions(
    config.norm_num_groups,
    config.norm_eps,
    config.act_fn,
    config.resnet_time_scale_shift,
    config.dropout,
    divisor,
  )
  block = recomputed(Resnet, runtime)
  return numbered(*(functools.partial(block, source, target, options, runtime) for source, target in sizes))


def _transformers(config: UNetConfig, runtime: Runtime, channels: int, heads: int, layers: tuple[int, ...]) -> Any:
  groups, linear, upcast = config.norm_num_groups, config.use_linear_projection, config.upcast_attention
  makes = (
    functools.partial(SpatialTransformer, channels, heads, count, groups, linear, upcast, runtime) for count in layers
  )
  return numbered(*makes)


class DownBlock(nn.Module):
  """Residual blocks, each with a transformer where the type says so, and a halving of the places but at the end."""

  config: UNetConfig
  runtime: Runtime
  index: int

  def setup(self) -> None:
    config, runtime, index = self.config, self.runtime, self.index
    channels, layers = config.block_out_channels, config.layers_per_block[self.index]
    own = channels[index]
    self.resnets = _resnets(config, runtime, [(channels[max(index - 1, 0)], own)] + [(own, own)] * (layers - 1))
    self.has_attention = config.down_block_types[index] == CROSS_DOWN
    if self.has_attention:
      heads = config.attention_head_dim[index]
      self.attentions = _transformers(config, runtime, own, heads, config.transformers_down[index])
    self.halves = index < len(channels) - 1
    if self.halves:
      self.downsamplers = numbered(functools.partial(Downsample, own, config.downsample_padding, runtime))

  def __call__(
    self, x: jax.Array, time: jax.Array, context: jax.Array, mask: jax.Array | None
  ) -> tuple[jax.Array, list[jax.Array]]:
    states = []
    for number, resnet in enumerate(members(self.resnets)):
      x = resnet(x, time)
      if self.has_attention:
        x = members(self.attentions)[number](x, context, mask)
      states.append(x)
    if self.halves:
      x = members(self.downsamplers)[0](x)
      states.append(x)
    return x, states


class MidBlock(nn.Module):
  """A residual block, and a transformer and another where the type says so."""

  config: UNetConfig
  runtime: Runtime

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    own = config.block_out_channels[-1]
    self.has_attention = config.mid_block_type == CROSS_MID
    sizes = [(own, own)] * (2 if self.has_attention else 1)
    self.resnets = _resnets(config, runtime, sizes, config.mid_block_scale_factor)
    if self.has_attention:
      heads = config.attention_head_dim[-1]
      self.attentions = _transformers(config, runtime, own, heads, (config.transformers_mid,))

  def __call__(self, x: jax.Array, time: jax.Array, context: jax.Array, mask: jax.Array | None) -> jax.Array:
    first, *rest = members(self.resnets)
    x = first(x, time)
    for resnet in rest:
      x = resnet(members(self.attentions)[0](x, context, mask), time)
    return x


class UpBlock(nn.Module):
  """As `DownBlock`, each residual block on a state of the way down too, and twice the places but at the end."""

  config: UNetConfig
  runtime: Runtime
  index: int

  def setup(self) -> None:
    config, runtime, index = self.config, self.runtime, self.index
    channels = config.block_out_channels[::-1]
    layers = config.layers_per_block[::-1][index] + 1
    own, before, skipped = channels[index], channels[max(index - 1, 0)], channels[min(index + 1, len(channels) - 1)]
    last = layers - 1
    sizes = [((own if layer else before) + (own if layer < last else skipped), own) for layer in range(layers)]
    self.resnets = _resnets(config, runtime, sizes)
    self.has_attention = config.up_block_types[index] == CROSS_UP
    if self.has_attention:
      heads = config.attention_head_dim[::-1][index]
      self.attentions = _transformers(config, runtime, own, heads, config.transformers_up[index])
    self.doubles = index < len(channels) - 1
    if self.doubles:
      self.upsamplers = numbered(functools.partial(Upsample, own, runtime))

  def __call__(
    self, x: jax.Array, states: list[jax.Array], time: jax.Array, context: jax.Array, mask: jax.Array | None
  ) -> jax.Array:
    """Takes its share from the end of `states`."""
    for number, resnet in enumerate(members(self.resnets)):
      x = resnet(jnp.concatenate([x, states.pop()], axis=-1), time)
      if self.has_attention:
        x = members(self.attentions)[number](x, context, mask)
    if self.doubles:
      x = members(self.upsamplers)[0](x, states[-1].shape[1:3])
    return x


class UNet2DConditionModel(nn.Module):
  """What noise an image has, or what else the scheduler wants predicted.

  Inputs: sample [B, in_channels, H, W]; timestep, one number or [B]; encoder_hidden_states [B, L, cross_attention_dim];
  encoder_attention_mask int[B, L], 1 for tokens that are seen; of SDXL, added_cond_kwargs with "text_embeds"
  [B, features] and "time_ids" [B, 6].
  Outputs: "sample" [B, out_channels, H, W].
  """

  config: UNetConfig
  runtime: Runtime

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    channels = config.block_out_channels
    before, after = config.conv_in_kernel, config.conv_out_kernel
    self.conv_in = runtime.conv(channels[0], before, (before - 1) // 2)
    self.time_embedding = TimeEmbedding(config.time_embedding_dim, config.act_fn, runtime)
    if config.addition_embed_type:
      self.add_embedding = TimeEmbedding(config.time_embedding_dim, "silu", runtime)
    places = range(len(channels))
    self.down_blocks = numbered(*(functools.partial(DownBlock, config, runtime, index) for index in places))
    if config.mid_block_type:
      self.mid_block = MidBlock(config, runtime)
    self.up_blocks = numbered(*(functools.partial(UpBlock, config, runtime, index) for index in places))
    self.conv_norm_out = runtime.group_norm(config.norm_num_groups, config.norm_eps)
    self.conv_out = runtime.conv(config.out_channels, after, (after - 1) // 2)

  def __call__(
    self,
    sample: jax.Array,
    timestep: jax.Array,
    encoder_hidden_states: jax.Array,
    encoder_attention_mask: jax.Array | None = None,
    added_cond_kwargs: Mapping[str, jax.Array] | None = None,
  ) -> dict[str, jax.Array]:
    config = self.config
    check_sample(sample, config.in_channels)
    _check_context(encoder_hidden_states, config)
    timesteps = jnp.broadcast_to(timestep, sample.shape[:1])
    time = self.time_embedding(self.sinusoids(timesteps, config.block_out_channels[0]))
    if config.addition_embed_type:
      time = time + self.add_embedding(self.added(added_cond_kwargs))
    mask = None if encoder_attention_mask is None else padding_mask(encoder_attention_mask)
    x = sample.transpose(0, 2, 3, 1)
    x = self.conv_in(2 * x - 1 if config.center_input_sample else x)
    states = [x]
    for down in members(self.down_blocks):
      x, own = down(x, time, encoder_hidden_states, mask)
      states += own
    if config.mid_block_type:
      x = self.mid_block(x, time, encoder_hidden_states, mask)
    for up in members(self.up_blocks):
      x = up(x, states, time, encoder_hidden_states, mask)
    x = self.conv_out(activation(config.act_fn)(self.conv_norm_out(x)))
    return {"sample": x.transpose(0, 3, 1, 2)}

  def sinusoids(self, numbers: jax.Array, features: int) -> jax.Array:
    """[N, features] of [N] in the compute dtype."""
    found = sinusoids(numbers, features, self.config.flip_sin_to_cos, self.config.freq_shift)
    return found.astype(self.runtime.compute_dtype or self.runtime.dtype)

  def added(self, conditions: Mapping[str, jax.Array] | None) -> jax.Array:
    """SDXL's added conditions: the pooled text beside sizes and crops as sinusoids (arXiv 2307.01952, 2.2)."""
    missing = [name for name in ("text_embeds", "time_ids") if name not in (conditions or {})]
    if missing:
      raise UserError(f"added_cond_kwargs: the model needs {missing[0]!r}")
    assert conditions is not None
    texts, numbers = conditions["text_embeds"], conditions["time_ids"]
    sizes = self.sinusoids(numbers.reshape(-1), self.config.addition_time_embed_dim or 0)
    found = jnp.concatenate([texts, sizes.reshape(texts.shape[0], -1)], axis=-1)
    wanted = self.config.projection_class_embeddings_input_dim
    if found.shape[-1] != wanted:
      raise UserError(f"added_cond_kwargs: {found.shape[-1]} features together; expected {wanted}")
    return found


def check_sample(sample: Any, channels: int, name: str = "sample") -> None:
  """Raises a `UserError` unless images are [B, channels, H, W]."""
  shape = tuple(sample.shape)
  if len(shape) != 4 or shape[1] != channels:
    raise UserError(f"{name}: shape {list(shape)}; expected [batch, {channels}, height, width]")


def _check_context(states: Any, config: UNetConfig) -> None:
  shape = tuple(states.shape)
  if len(shape) != 3 or shape[2] != config.cross_attention_dim:
    raise UserError(
      f"encoder_hidden_states: shape {list(shape)}; expected [batch, tokens, {config.cross_attention_dim}]"
    )


def _inputs(config: UNetConfig) -> dict[str, Any]:
  def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)

  size = 2 ** (len(config.block_out_channels) - 1)
  inputs = {
    "sample": floats(1, config.in_channels, size, size),
    "timestep": jax.ShapeDtypeStruct((1,), jnp.int32),
    "encoder_hidden_states": floats(1, 4, config.cross_attention_dim),
  }
  if not config.addition_embed_type:
    return inputs
  numbers = 6
  texts = (config.projection_class_embeddings_input_dim or 0) - numbers * (config.addition_time_embed_dim or 0)
  return {**inputs, "added_cond_kwargs": {"text_embeds": floats(1, texts), "time_ids": floats(1, numbers)}}


UNET = Family(
  model_types=("UNet2DConditionModel",),
  table=UNET_TABLE,
  parse=parse,
  architectures={"UNet2DConditionModel": Architecture(UNet2DConditionModel, DENOISER)},
  stacks=lambda config: {},
  inputs=_inputs,
  saved=as_published,
  weights=DIFFUSERS,
)
