"""What the adapters with a narrow middle share: where they stand, their leaves and their two-layer network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax import masks
from peftjax.errors import UserError, nearest
from peftjax.methods.base import Call, Context, Leaves, Targeted
from peftjax.placement import matmul
from peftjax.sites import Site

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  "swish": jax.nn.silu,
  "tanh": jnp.tanh,
}
_BRANCH = "_branch"  # a sublayer's method is its name and this


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bottleneck(Targeted):
  """A two-layer network with a narrow middle on sublayers.

  Attributes:
    bottleneck_dim: width of the middle.
    activation: gelu, gelu_new, relu, silu or tanh.
    dropout: rate after the activation while training.
    sublayers: which of a layer's sublayers ("attention", "mlp", and what else the model has); empty: all.
  """

  kinds: ClassVar[tuple[str, ...]] = ("sublayer",)
  leaf_names: ClassVar[tuple[str, ...]] = ("down_kernel", "down_bias", "up_kernel", "up_bias")
  learning_rate: ClassVar[float] = 1e-3

  bottleneck_dim: int = 64
  activation: str = "gelu"
  dropout: float = 0.0
  sublayers: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    if self.activation not in ACTIVATIONS:
      raise UserError(f"{self.name}.activation: unknown {self.activation!r}; {nearest(self.activation, ACTIVATIONS)}")
    if self.bottleneck_dim < 1:
      raise UserError(f"{self.name}.bottleneck_dim: expected at least 1, got {self.bottleneck_dim}")

  def default_targets(self, model_type: str) -> masks.Patterns:
    del model_type
    return ("*",)

  def bind(self, context: Context) -> Self:
    sites = super().candidates(context)
    if not sites:
      raise UserError(f"method {self.name!r} needs {self.kinds[0]}s, and this model declares none")
    known = {site.method.removesuffix(_BRANCH) for site in sites}
    for sublayer in self.sublayers:
      if self.kinds == ("sublayer",) and sublayer not in known:
        raise UserError(f"{self.name}.sublayers: no {sublayer!r} in this model; {nearest(sublayer, known)}")
    return super().bind(context)

  def candidates(self, context: Context) -> list[Site]:
    """The sublayers that `sublayers` names, or all."""
    sites = super().candidates(context)
    return [site for site in sites if not self.sublayers or site.method.removesuffix(_BRANCH) in self.sublayers]

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del base
    (hidden,) = site.shape
    return {
      "down_kernel": near_zero(key, (hidden, self.bottleneck_dim)),
      "down_bias": jnp.zeros(self.bottleneck_dim),
      "up_kernel": jnp.zeros((self.bottleneck_dim, hidden)),
      "up_bias": jnp.zeros(hidden),
    }

  def network(self, leaves: Leaves, x: jax.Array, call: Call) -> jax.Array:
    """act(x D + d) U + u."""
    down_kernel, down_bias, up_kernel, up_bias = (
      leaves[name].astype(x.dtype) for name in ("down_kernel", "down_bias", "up_kernel", "up_bias")
    )
    hidden = ACTIVATIONS[self.activation](matmul(x, down_kernel) + down_bias)
    return matmul(call.dropout(hidden, self.dropout), up_kernel) + up_bias


def near_zero(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Houlsby et al.'s draw: normal, standard deviation 0.01, cut off at two of them."""
  return 1e-2 * jax.random.truncated_normal(key, -2.0, 2.0, shape)


def hidden_of(x: dict[str, Any]) -> jax.Array:
  """The hidden states among a sublayer's or a block's arguments: its first."""
  first: jax.Array = next(iter(x.values()))
  return first
