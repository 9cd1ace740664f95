"""ResNet (He et al. 2015, arXiv 1512.03385) as a backbone with frozen batch normalisation, by Hugging Face's names."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.buffers import BATCH_STATS
from peftjax.models.detr_config import BOTTLENECK, ResNetConfig
from peftjax.models.layers import Runtime, activation

_REDUCTION = 4  # of a bottleneck's features
_EPSILON = 1e-5


class FrozenBatchNorm(nn.Module):
  """(x - mean) / √(var + ε) · scale + bias over the last axis, all four of them buffers, which never train."""

  runtime: Runtime

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    features, dtype = (x.shape[-1],), self.runtime.dtype
    ones, zeros = (lambda: jnp.ones(features, dtype)), (lambda: jnp.zeros(features, dtype))
    scale, bias = (self.variable(BATCH_STATS, name, make) for name, make in (("scale", ones), ("bias", zeros)))
    mean, var = (self.variable(BATCH_STATS, name, make) for name, make in (("mean", zeros), ("var", ones)))
    factor = scale.value * jax.lax.rsqrt(var.value + _EPSILON)
    return x * factor.astype(x.dtype) + (bias.value - mean.value * factor).astype(x.dtype)


class ConvLayer(nn.Module):
  """A convolution without bias, normalised; an activation where one is named."""

  runtime: Runtime
  features: int
  window: int
  stride: int
  act: str = ""

  def setup(self) -> None:
    self.convolution = nn.Conv(
      self.features,
      (self.window, self.window),
      strides=self.stride,
      padding=self.window // 2,
      use_bias=False,
      dtype=self.runtime.compute_dtype,
      param_dtype=self.runtime.dtype,
    )
    self.normalization = FrozenBatchNorm(self.runtime)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.normalization(self.convolution(x))
    return activation(self.act)(x) if self.act else x


class Numbered(nn.Module):
  """Modules of one kind, one after the other, under the names "0", "1", ...; `args` is what each is made from."""

  kind: type[nn.Module]
  args: tuple[tuple[Any, ...], ...]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for index, args in enumerate(self.args):
      x = self.kind(*args, name=str(index))(x)
    return x


class Block(nn.Module):
  """act(layers(x) + x), with x brought to as many features and places where these differ."""

  config: ResNetConfig
  runtime: Runtime
  before: int
  features: int
  stride: int

  def setup(self) -> None:
    config, runtime, act = self.config, self.runtime, "relu"  # `hidden_act` ends a block; transformers has none within
    self.projects = self.before != self.features or self.stride != 1
    if self.projects:
      self.shortcut = ConvLayer(runtime, self.features, 1, self.stride)
    if config.layer_type == BOTTLENECK:
      inner = self.features // _REDUCTION
      first, second = (self.stride, 1) if config.downsample_in_bottleneck else (1, self.stride)
      sizes = [(runtime, inner, 1, first, act), (runtime, inner, 3, second, act), (runtime, self.features, 1, 1, "")]
    else:
      sizes = [(runtime, self.features, 3, self.stride, act), (runtime, self.features, 3, 1, "")]
    self.layer = Numbered(ConvLayer, tuple(sizes))

  def __call__(self, x: jax.Array) -> jax.Array:
    rest = self.shortcut(x) if self.projects else x
    return activation(self.config.hidden_act)(self.layer(x) + rest)


class Stage(nn.Module):
  """Blocks, of which the first halves the places."""

  config: ResNetConfig
  runtime: Runtime
  before: int
  features: int
  depth: int
  stride: int

  def setup(self) -> None:
    shapes = [(self.before, self.features, self.stride)] + [(self.features, self.features, 1)] * (self.depth - 1)
    self.layers = Numbered(Block, tuple((self.config, self.runtime, *shape) for shape in shapes))

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.layers(x)


class Stem(nn.Module):
  """A convolution and a pooling, which quarter the places between them."""

  config: ResNetConfig
  runtime: Runtime

  def setup(self) -> None:
    self.embedder = ConvLayer(self.runtime, self.config.embedding_size, 7, 2, self.config.hidden_act)

  def __call__(self, x: jax.Array) -> jax.Array:
    return nn.max_pool(self.embedder(x), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class Stages(nn.Module):
  """The stages, one after the other."""

  config: ResNetConfig
  runtime: Runtime

  def setup(self) -> None:
    config = self.config
    before = (config.embedding_size, *config.hidden_sizes)
    strides = (2 if config.downsample_in_first_stage else 1, *[2] * (len(config.depths) - 1))
    shapes = zip(before, config.hidden_sizes, config.depths, strides)
    self.stages = Numbered(Stage, tuple((config, self.runtime, *shape) for shape in shapes))

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.stages(x)


class ResNet(nn.Module):
  """The last stage's features [B, h, w, features] of images [B, C, H, W]."""

  config: ResNetConfig
  runtime: Runtime

  def setup(self) -> None:
    self.embedder = Stem(self.config, self.runtime)
    self.encoder = Stages(self.config, self.runtime)

  def __call__(self, pixel_values: jax.Array) -> jax.Array:
    return self.encoder(self.embedder(pixel_values.transpose(0, 2, 3, 1)))
