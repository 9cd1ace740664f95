"""RoAd: 2-D rotary adaptation (Liao and Monz 2024, arXiv 2409.00119).

    [y_a, y_b] ← α · [y_a cos θ - y_b sin θ, y_a sin θ + y_b cos θ]        for pairs of outputs a, b

A pair is an output of the first and of the second half of a group. Angles start at zero and scales at one, so the model
starts as the base, bitwise.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax.errors import UserError, nearest
from peftjax.methods.base import Call, Context, Leaves
from peftjax.methods.linear import LinearMethod
from peftjax.methods.oft import nearest_divisor
from peftjax.sites import Site

# Values of θ, and of α, for every output.
VARIANTS = {"road_1": 0.5, "road_2": 1.0, "road_4": 2.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoAd(LinearMethod):
  """Rotations and scales of pairs of outputs.

  Attributes:
    variant: road_1 (one angle and scale a pair), road_2 (one an output), road_4 (one for each of the four entries).
    group_size: outputs of a group, even; it divides every site's output size.
  """

  name: ClassVar[str] = "road"
  leaf_names: ClassVar[tuple[str, ...]] = ("road_theta", "road_alpha")
  learning_rate: ClassVar[float] = 3e-3

  variant: str = "road_1"
  group_size: int = 64

  def __post_init__(self) -> None:
    if self.variant not in VARIANTS:
      raise UserError(f"road.variant: unknown {self.variant!r}; {nearest(self.variant, VARIANTS)}")
    if self.group_size % 2:
      raise UserError(f"road.group_size: expected an even number, got {self.group_size}")

  def bind(self, context: Context) -> Self:
    bound = super().bind(context)
    for site in bound.select(context):
      if site.shape[1] % 2:
        raise UserError(f"road turns pairs of outputs, and {site.name} has {site.shape[1]}; exclude it")
      if site.shape[1] % self.group_size:
        known = 2 * nearest_divisor(site.shape[1] // 2, self.group_size // 2)
        raise UserError(
          f"road.group_size: {self.group_size} does not divide {site.name}'s output size {site.shape[1]}; {known} does"
        )
    return bound

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del key, base
    size = int(site.shape[1] * VARIANTS[self.variant])
    return {"road_theta": jnp.zeros(size), "road_alpha": jnp.ones(size)}

  def after(self, leaves: Leaves, x: jax.Array, y: jax.Array, site: Site, call: Call) -> jax.Array:
    return self._rotate(leaves, y)

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del shared
    return {name: self._rotate(leaves, base[name]) - base[name] for name in ("kernel", "bias") if name in base}

  def _rotate(self, leaves: Leaves, y: jax.Array) -> jax.Array:
    cos, sin = (column.astype(y.dtype) for column in self._columns(leaves))
    halves = y.reshape(*y.shape[:-1], -1, 2, self.group_size // 2)
    turned = jnp.stack([-halves[..., 1, :], halves[..., 0, :]], axis=-2).reshape(y.shape)
    return y * cos + turned * sin

  def _columns(self, leaves: Leaves) -> tuple[jax.Array, jax.Array]:
    """α cos θ and α sin θ of every output."""
    theta, alpha = leaves["road_theta"], leaves["road_alpha"]
    if self.variant == "road_4":
      theta, alpha = (leaf.reshape(-1, 2, self.group_size) for leaf in (theta, alpha))
      cos, sin = alpha[:, 0] * jnp.cos(theta[:, 0]), alpha[:, 1] * jnp.sin(theta[:, 1])
      return cos.reshape(-1), sin.reshape(-1)
    if self.variant == "road_1":
      halves = (jnp.repeat(leaf.reshape(-1, self.group_size // 2), 2, axis=0) for leaf in (theta, alpha))
      theta, alpha = (leaf.reshape(-1) for leaf in halves)
    return alpha * jnp.cos(theta), alpha * jnp.sin(theta)
