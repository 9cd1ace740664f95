"""Stable Diffusion's autoencoder, diffusers' AutoencoderKL (Rombach et al. 2022, arXiv 2112.10752)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.errors import UserError
from peftjax.kinds import FLAG, NAME, whole
from peftjax.models.config_fields import FEATURES, POSITIVE, Field, Only, Table, fields_for
from peftjax.models.diffusion_config import (
  CHANNELS,
  MOST_IN_BLOCK,
  TABLE,
  TYPES,
  WIDTHS,
  as_published,
  check_groups,
  check_types,
)
from peftjax.models.diffusion_layers import (
  Attention,
  Downsample,
  Resnet,
  ResnetOptions,
  Upsample,
  members,
  numbered,
  recomputed,
)
from peftjax.models.family import DIFFUSERS, Architecture, Family
from peftjax.models.layers import Runtime, activation
from peftjax.models.unet import check_sample

AUTOENCODER = "autoencoder"
_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
_EPSILON = 1e-6
_LEAST, _MOST = -30.0, 20.0  # of a logarithm of a variance


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
  """The fields of config.json that shape the model.

  `scaling_factor` is what a denoiser's images are multiplied by before it sees them; nothing here applies it.
  """

  in_channels: int
  out_channels: int
  latent_channels: int
  block_out_channels: tuple[int, ...]
  layers_per_block: int
  norm_num_groups: int
  act_fn: str
  scaling_factor: float
  use_quant_conv: bool
  use_post_quant_conv: bool
  mid_block_add_attention: bool


def _resnets(config: AutoencoderConfig, runtime: Runtime, *sizes: tuple[int, int]) -> Any:
  options = ResnetOptions(config.norm_num_groups, _EPSILON, config.act_fn)
  block = recomputed(Resnet, runtime)
  return numbered(*(functools.partial(block, source, target, options, runtime) for source, target in sizes))


class PlacesAttention(Attention):
  """Attention of all places to each other with one head, as a residual branch on normalised states."""

  groups: int = 32

  def setup(self) -> None:
    super().setup()
    self.group_norm = self.runtime.group_norm(self.groups, _EPSILON)

  def __call__(self, x: jax.Array, context: jax.Array | None = None, mask: jax.Array | None = None) -> jax.Array:
    places = self.group_norm(x).reshape(x.shape[0], -1, self.channels)
    return x + super().__call__(places, context, mask).reshape(x.shape)


class Sampled(nn.Module):
  """Residual blocks, and then half of the places or twice as many, or neither."""

  config: AutoencoderConfig
  runtime: Runtime
  sizes: tuple[tuple[int, int], ...]
  sampler: str

  def setup(self) -> None:
    self.resnets = _resnets(self.config, self.runtime, *self.sizes)
    channels = self.sizes[-1][1]
    if self.sampler == "down":
      self.downsamplers = numbered(functools.partial(Downsample, channels, 0, self.runtime))
    if self.sampler == "up":
      self.upsamplers = numbered(functools.partial(Upsample, channels, self.runtime))

  def __call__(self, x: jax.Array) -> jax.Array:
    for resnet in members(self.resnets):
      x = resnet(x)
    if not self.sampler:
      return x
    sampled: jax.Array = members(self.downsamplers if self.sampler == "down" else self.upsamplers)[0](x)
    return sampled


class Middle(nn.Module):
  """Two residual blocks, attention between them."""

  config: AutoencoderConfig
  runtime: Runtime

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    own = config.block_out_channels[-1]
    self.resnets = _resnets(config, runtime, (own, own), (own, own))
    if config.mid_block_add_attention:
      make = functools.partial(PlacesAttention, own, 1, runtime, use_bias=True, groups=config.norm_num_groups)
      self.attentions = numbered(make)

  def __call__(self, x: jax.Array) -> jax.Array:
    first, second = members(self.resnets)
    x = first(x)
    if self.config.mid_block_add_attention:
      x = members(self.attentions)[0](x)
    return second(x)


class Encoder(nn.Module):
  """[B, h, w, 2 · latent_channels] from pixels [B, H, W, in_channels]."""

  config: AutoencoderConfig
  runtime: Runtime

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    widths = config.block_out_channels
    self.conv_in = runtime.conv(widths[0], 3, 1)
    makes = []
    for index, (before, own) in enumerate(zip((widths[0], *widths), widths)):
      sizes = ((before, own),) + ((own, own),) * (config.layers_per_block - 1)
      makes.append(functools.partial(Sampled, config, runtime, sizes, "down" if index < len(widths) - 1 else ""))
    self.down_blocks = numbered(*makes)
    self.mid_block = Middle(config, runtime)
    self.conv_norm_out = runtime.group_norm(config.norm_num_groups, _EPSILON)
    self.conv_out = runtime.conv(2 * config.latent_channels, 3, 1)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv_in(x)
    for block in members(self.down_blocks):
      x = block(x)
    return self.conv_out(nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
  """Pixels [B, H, W, out_channels] from latents [B, h, w, latent_channels]."""

  config: AutoencoderConfig
  runtime: Runtime

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    widths = config.block_out_channels[::-1]
    self.conv_in = runtime.conv(widths[0], 3, 1)
    self.mid_block = Middle(config, runtime)
    makes = []
    for index, (before, own) in enumerate(zip((widths[0], *widths), widths)):
      sizes = ((before, own),) + ((own, own),) * config.layers_per_block
      makes.append(functools.partial(Sampled, config, runtime, sizes, "up" if index < len(widths) - 1 else ""))
    self.up_blocks = numbered(*makes)
    self.conv_norm_out = runtime.group_norm(config.norm_num_groups, _EPSILON)
    self.conv_out = runtime.conv(config.out_channels, 3, 1)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.mid_block(self.conv_in(x))
    for block in members(self.up_blocks):
      x = block(x)
    return self.conv_out(nn.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
  """Images as a normal distribution over smaller ones, and back.

  Inputs, one of them: x [B, in_channels, H, W], pixels to encode; z [B, latent_channels, h, w], latents to decode;
  sample, pixels that are encoded and whose mean is decoded. Names are those of diffusers' `encode`, `decode` and call.
  Outputs: of x "mean" and "logvar" [B, latent_channels, h, w]; of z "sample" [B, out_channels, H, W]; of sample all.
  Latents are not scaled by config.json's `scaling_factor`.
  """

  config: AutoencoderConfig
  runtime: Runtime

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.encoder, self.decoder = Encoder(config, runtime), Decoder(config, runtime)
    if config.use_quant_conv:
      self.quant_conv = runtime.conv(2 * config.latent_channels, 1)
    if config.use_post_quant_conv:
      self.post_quant_conv = runtime.conv(config.latent_channels, 1)

  def __call__(
    self, sample: jax.Array | None = None, x: jax.Array | None = None, z: jax.Array | None = None
  ) -> dict[str, jax.Array]:
    if sum(one is not None for one in (sample, x, z)) != 1:
      raise UserError("an autoencoder takes one of sample, x (to encode) and z (to decode)")
    if z is not None:
      return self.decode(z)
    outputs = self.encode(x) if x is not None else self.encode(sample, "sample")
    return outputs if x is not None else {**outputs, **self.decode(outputs["mean"])}

  def encode(self, pixels: Any, name: str = "x") -> dict[str, jax.Array]:
    """ "mean" and "logvar" of the distribution over latents."""
    check_sample(pixels, self.config.in_channels, name)
    found = self.encoder(pixels.transpose(0, 2, 3, 1))
    found = self.quant_conv(found) if self.config.use_quant_conv else found
    mean, logvar = jnp.split(found.transpose(0, 3, 1, 2), 2, axis=1)
    return {"mean": mean, "logvar": jnp.clip(logvar, _LEAST, _MOST)}

  def decode(self, latents: jax.Array) -> dict[str, jax.Array]:
    """ "sample", the pixels."""
    check_sample(latents, self.config.latent_channels, "z")
    found = latents.transpose(0, 2, 3, 1)
    found = self.post_quant_conv(found) if self.config.use_post_quant_conv else found
    return {"sample": self.decoder(found).transpose(0, 3, 1, 2)}


# Checkpoints ------------------------------------------------------------------------------------------------------

AUTOENCODER_TABLE = TABLE | Table(
  read={
    "sample_size": Field(TABLE.read["sample_size"].kind, 32),
    "in_channels": Field(CHANNELS, 3),
    "out_channels": Field(CHANNELS, 3),
    "down_block_types": Field(TYPES, (_DOWN,)),
    "up_block_types": Field(TYPES, (_UP,)),
    "block_out_channels": Field(WIDTHS, (64,)),
    "layers_per_block": Field(whole(1, MOST_IN_BLOCK), 1),
    "act_fn": Field(NAME, "silu"),
    "latent_channels": Field(CHANNELS, 4),
    "norm_num_groups": Field(FEATURES, 32),
    "scaling_factor": Field(POSITIVE, 0.18215),
    "use_quant_conv": Field(FLAG, True),
    "use_post_quant_conv": Field(FLAG, True),
    "mid_block_add_attention": Field(FLAG, True),
  },
  refused={
    "shift_factor": Only((None,), "latents that are shifted"),
    "latents_mean": Only((None,), "latents that are shifted"),
    "latents_std": Only((None,), "latents that are scaled one channel at a time"),
  },
  ignored=frozenset({"force_upcast"}),  # the dtype is the user's choice
)


def parse(hf_config: Mapping[str, Any]) -> AutoencoderConfig:
  """The config of a config.json.

  Raises:
    UserError: a field of another type or out of range, one that asks for what is not computed here, or numbers of
      channels, groups and blocks that do not fit together.
  """
  given = AUTOENCODER_TABLE.values(hf_config)
  channels = given["block_out_channels"]
  check_types("down_block_types", given["down_block_types"], (_DOWN,), len(channels))
  check_types("up_block_types", given["up_block_types"], (_UP,), len(channels))
  check_groups(channels, given["norm_num_groups"])
  activation(given["act_fn"])
  return AutoencoderConfig(**fields_for(given, AutoencoderConfig))


def _inputs(config: AutoencoderConfig) -> dict[str, Any]:
  size = 2 ** (len(config.block_out_channels) - 1)
  return {"sample": jax.ShapeDtypeStruct((1, config.in_channels, size, size), jnp.float32)}


# What attention's modules were called when the published weights were written.
_BEFORE = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

VAE = Family(
  model_types=("AutoencoderKL",),
  table=AUTOENCODER_TABLE,
  parse=parse,
  architectures={"AutoencoderKL": Architecture(AutoencoderKL, AUTOENCODER)},
  stacks=lambda config: {},
  inputs=_inputs,
  copies={f"{now}.{leaf}": (f"{then}.{leaf}",) for now, then in _BEFORE.items() for leaf in ("weight", "bias")},
  saved=as_published,
  weights=DIFFUSERS,
)
