"""Compacter (Karimi Mahabadi et al. 2021, arXiv 2106.04647): adapters of parameterised hypercomplex layers.

    branch ← branch + act(branch D + d) U + u
    D = Σᵢ Aᵢ ⊗ (sᵢ tᵢᵀ), U likewise, i = 1 ... n        Aᵢ: [n, n], sᵢ: [in / n, r], tᵢ: [out / n, r]

The n rule matrices Aᵢ are shared by all adapters, both of their layers included; only the thin factors s and t are each
layer's own. Compacter stands after both sublayers, Compacter++ (`sublayers=("mlp",)`) after the feed-forward alone.
The t of U start at zero, so the model starts as the base. D and U are never formed: the product runs through r columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax.errors import UserError
from peftjax.methods.base import Call, Context, Leaves
from peftjax.methods.bottleneck import ACTIVATIONS, Bottleneck
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compacter(Bottleneck):
  """Serial adapters of Kronecker products.

  Attributes:
    bottleneck_dim: width of the middle, a multiple of `phm_dim`.
    phm_dim: n; divides the hidden size.
    phm_rank: r.
  """

  name: ClassVar[str] = "compacter"
  leaf_names: ClassVar[tuple[str, ...]] = ("down_s", "down_t", "down_bias", "up_s", "up_t", "up_bias", "phm_rule")
  learning_rate: ClassVar[float] = 3e-3

  bottleneck_dim: int = 24
  phm_dim: int = 4
  phm_rank: int = 1

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.bottleneck_dim % self.phm_dim:
      wider = -(-self.bottleneck_dim // self.phm_dim) * self.phm_dim
      raise UserError(
        f"{self.name}.bottleneck_dim: {self.bottleneck_dim} is no multiple of phm_dim {self.phm_dim}; try {wider}"
      )

  def bind(self, context: Context) -> Self:
    for site in self.candidates(context):
      if site.shape[0] % self.phm_dim:
        raise UserError(f"{self.name}.phm_dim: {self.phm_dim} does not divide the hidden size {site.shape[0]}")
    return super().bind(context)

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del base
    (hidden,) = site.shape
    n, rank, middle = self.phm_dim, self.phm_rank, self.bottleneck_dim
    key_down_s, key_down_t, key_up_s = jax.random.split(key, 3)
    return {
      "down_s": _glorot(key_down_s, (n, hidden // n, rank)),
      "down_t": _glorot(key_down_t, (n, middle // n, rank)),
      "down_bias": jnp.zeros(middle),
      "up_s": _glorot(key_up_s, (n, middle // n, rank)),
      "up_t": jnp.zeros((n, hidden // n, rank)),
      "up_bias": jnp.zeros(hidden),
    }

  def create_shared(self, key: jax.Array, sites: Sequence[Site]) -> Leaves:
    del sites
    return {"phm_rule": _glorot(key, (self.phm_dim,) * 3)}

  def network(self, leaves: Leaves, x: jax.Array, call: Call) -> jax.Array:
    """act(x D + d) U + u."""
    rule = call.shared["phm_rule"]
    hidden = phm(x, rule, leaves["down_s"], leaves["down_t"]) + leaves["down_bias"].astype(x.dtype)
    hidden = call.dropout(ACTIVATIONS[self.activation](hidden), self.dropout)
    return phm(hidden, rule, leaves["up_s"], leaves["up_t"]) + leaves["up_bias"].astype(x.dtype)

  def after(self, leaves: Leaves, x: Any, y: jax.Array, site: Site, call: Call) -> jax.Array:
    return y + self.network(leaves, y, call)


def phm(x: jax.Array, rule: jax.Array, s: jax.Array, t: jax.Array) -> jax.Array:
  """x Σᵢ Aᵢ ⊗ (sᵢ tᵢᵀ): [..., in] -> [..., out] from rule [n, n, n], s [n, in / n, r], t [n, out / n, r]."""
  rule, s, t = (leaf.astype(x.dtype) for leaf in (rule, s, t))
  n = rule.shape[0]
  parts = x.reshape(*x.shape[:-1], n, -1)
  thin = jnp.einsum("...ap,ipr->...iar", parts, s)
  mixed = jnp.einsum("...iar,iac->...icr", thin, rule)
  y = jnp.einsum("...icr,iqr->...cq", mixed, t)
  return y.reshape(*x.shape[:-1], -1)


def _glorot(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
  """Glorot's uniform draw for each of shape[0] matrices."""
  bound = (6.0 / (shape[1] + shape[2])) ** 0.5
  return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
