"""What UNet and autoencoder of latent diffusion share (Rombach et al. 2022, arXiv 2112.10752).

Images are [B, H, W, C] here; names are those of diffusers' modules.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from peftjax.models.layers import REMAT_POLICIES, Dropout, Runtime, activation, attend
from peftjax.sites import HasSites

Make = Callable[[], nn.Module]


class Numbered(nn.Module):
  """Modules under numbers, as torch's lists name them: ``resnets.0``."""

  parts: tuple[tuple[int, Make], ...]

  def setup(self) -> None:
    for number, make in self.parts:
      setattr(self, str(number), make())


def numbered(*makes: Make) -> Numbered:
  """Modules under the numbers from 0."""
  return Numbered(tuple(enumerate(makes)))


def members(several: Numbered) -> list[Any]:
  """The modules in order."""
  return [getattr(several, str(number)) for number, _ in several.parts]


def recomputed(block: type[nn.Module], runtime: Runtime) -> Any:
  """The class whose backward pass computes again what the runtime's policy does not keep."""
  return block if runtime.remat == "none" else nn.remat(block, policy=REMAT_POLICIES[runtime.remat])


@dataclasses.dataclass(frozen=True)
class ResnetOptions:
  """What all residual blocks of a model have alike.

  Attributes:
    groups: of the normalisations.
    time: what the time's embedding does: "" nothing, "default" is added, "scale_shift" scales and shifts.
    divisor: of the sum of the residual branch and the shortcut.
  """

  groups: int
  epsilon: float
  act_fn: str
  time: str = ""
  dropout: float = 0.0
  divisor: float = 1.0


class Resnet(nn.Module):
  """x ← (shortcut(x) + conv(act(norm(conv(act(norm(x))) + time)))) / divisor (He et al. 2016, arXiv 1603.05027)."""

  source: int
  target: int
  options: ResnetOptions
  runtime: Runtime

  def setup(self) -> None:
    options, runtime = self.options, self.runtime
    self.norm1, self.norm2 = (runtime.group_norm(options.groups, options.epsilon) for _ in range(2))
    self.conv1, self.conv2 = (runtime.conv(self.target, 3, 1) for _ in range(2))
    if options.time:
      self.time_emb_proj = runtime.dense(self.target * (2 if options.time == "scale_shift" else 1))
    if self.source != self.target:
      self.conv_shortcut = runtime.conv(self.target, 1)
    self.dropout = Dropout(runtime.rate(options.dropout))

  def __call__(self, x: jax.Array, time: jax.Array | None = None) -> jax.Array:
    act = activation(self.options.act_fn)
    hidden = self.conv1(act(self.norm1(x)))
    if time is None:
      hidden = self.norm2(hidden)
    elif self.options.time == "default":
      hidden = self.norm2(hidden + self.time_emb_proj(act(time))[:, None, None])
    else:
      scale, shift = jnp.split(self.time_emb_proj(act(time))[:, None, None], 2, axis=-1)
      hidden = self.norm2(hidden) * (1 + scale) + shift
    hidden = self.conv2(self.dropout(act(hidden)))
    shortcut = x if self.source == self.target else self.conv_shortcut(x)
    return (shortcut + hidden) / self.options.divisor


class Downsample(nn.Module):
  """Half the places, by a convolution; without padding one row and column of zeros stand at the end."""

  channels: int
  padding: int
  runtime: Runtime

  def setup(self) -> None:
    self.conv = self.runtime.conv(self.channels, 3, self.padding or (0, 1), stride=2)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.conv(x)


class Upsample(nn.Module):
  """Each place repeated, twice or as a size wants it, and a convolution."""

  channels: int
  runtime: Runtime

  def setup(self) -> None:
    self.conv = self.runtime.conv(self.channels, 3, 1)

  def __call__(self, x: jax.Array, size: tuple[int, int] | None = None) -> jax.Array:
    for axis, wanted in zip((1, 2), size or (2 * x.shape[1], 2 * x.shape[2])):
      given = x.shape[axis]
      nearest = np.arange(wanted) * given // wanted
      x = jnp.repeat(x, 2, axis) if wanted == 2 * given else jnp.take(x, nearest, axis)
    return self.conv(x)


class Attention(nn.Module, HasSites):
  """Multi-head attention to a context, or of places to each other."""

  channels: int
  heads: int
  runtime: Runtime
  use_bias: bool = False
  upcast: bool = False
  sites: ClassVar = {"attend": "attention"}

  def setup(self) -> None:
    self.to_q, self.to_k, self.to_v = (self.runtime.dense(self.channels, self.use_bias) for _ in range(3))
    self.to_out = numbered(functools.partial(self.runtime.dense, self.channels))

  def __call__(self, x: jax.Array, context: jax.Array | None = None, mask: jax.Array | None = None) -> jax.Array:
    context = x if context is None else context
    q, k, v = (
      layer(one).reshape(*one.shape[:2], self.heads, -1)
      for layer, one in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
    )
    if self.upcast:
      q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    attended = self.attend(q, k, v, mask).reshape(*x.shape[:2], self.channels)
    return members(self.to_out)[0](attended.astype(v.dtype))

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """[B, L, H, D] from queries [B, L, H, D], keys and values [B, S, H, D], mask [B, 1, 1, S] or None."""
    return attend(self, q, k, v, mask)
