"""Bottleneck adapters after both sublayers (Houlsby et al. 2019, arXiv 1902.00751).

    branch ← branch + act(branch D + d) U + u        D: [hidden, bottleneck], U: [bottleneck, hidden]

applied to each sublayer's output before its residual sum. U and u start at zero, so the model starts as the base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax import masks
from peftjax.errors import UserError, nearest
from peftjax.methods.base import Call, Context, Leaves, Site, Targeted

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": jax.nn.gelu,
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  "tanh": jnp.tanh,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bottleneck(Targeted):
  """A two-layer network with a narrow middle on a sublayer.

  Attributes:
    bottleneck_dim: width of the middle.
    activation: gelu, relu, silu or tanh.
    dropout: rate after the activation while training.
  """

  kinds: ClassVar[tuple[str, ...]] = ("sublayer",)
  leaf_names: ClassVar[tuple[str, ...]] = ("down_kernel", "down_bias", "up_kernel", "up_bias")
  learning_rate: ClassVar[float] = 1e-3
  sublayers: ClassVar[tuple[str, ...]] = ()

  bottleneck_dim: int = 64
  activation: str = "gelu"
  dropout: float = 0.0

  def __post_init__(self) -> None:
    if self.activation not in ACTIVATIONS:
      raise UserError(f"{self.name}.activation: unknown {self.activation!r}; {nearest(self.activation, ACTIVATIONS)}")

  def default_targets(self, model_type: str) -> masks.Patterns:
    return ("*",)

  def candidates(self, context: Context) -> list[Site]:
    """Sublayers; all of them, or those whose method the class names."""
    sites = super().candidates(context)
    return [site for site in sites if not self.sublayers or site.method in self.sublayers]

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    (hidden,) = site.shape
    return {
      "down_kernel": 1e-2 * jax.random.truncated_normal(key, -2.0, 2.0, (hidden, self.bottleneck_dim)),
      "down_bias": jnp.zeros(self.bottleneck_dim),
      "up_kernel": jnp.zeros((self.bottleneck_dim, hidden)),
      "up_bias": jnp.zeros(hidden),
    }

  def network(self, leaves: Leaves, x: jax.Array, call: Call) -> jax.Array:
    """act(x D + d) U + u."""
    down_kernel, down_bias, up_kernel, up_bias = (leaves[name].astype(x.dtype) for name in self.leaf_names)
    hidden = ACTIVATIONS[self.activation](x @ down_kernel + down_bias)
    return call.dropout(hidden, self.dropout) @ up_kernel + up_bias


@dataclasses.dataclass(frozen=True, kw_only=True)
class Houlsby(Bottleneck):
  """Serial adapters after the attention and the feed-forward sublayer."""

  name: ClassVar[str] = "houlsby"

  def after(self, leaves: Leaves, x: Any, y: jax.Array, site: Site, call: Call) -> jax.Array:
    return y + self.network(leaves, y, call)

  def bind(self, context: Context) -> Self:
    if not self.candidates(context):
      raise UserError(f"method {self.name!r} needs sublayers, and this model declares none")
    return super().bind(context)
