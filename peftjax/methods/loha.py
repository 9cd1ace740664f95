"""LoHa: low-rank Hadamard products (Hyeon-Woo et al. 2021, arXiv 2108.06098, as FedPara; LyCORIS, arXiv 2309.14859).

    y = x W + s · x [(B₁ A₁) ⊙ (B₂ A₂)]        B: [in, r], A: [r, out], s = α / r;  rank up to r²

The Hadamard product of two rank-r matrices is a product of rank r², of the columns' and the rows' pairwise products
(Khatri-Rao); that is how x meets it where this is cheaper than forming the update. B₂ starts at zero.

Of a convolution W is a matrix [in · window, out]; with `use_effective_conv2d` each factor is a Tucker product instead
(FedPara's proposition 3), T ×₁ A ×₂ B with a core T: [r, r, *window], B: [in, r].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax.methods.base import Call, Leaves
from peftjax.methods.linear import LinearMethod, by_pattern, dropout_mask, uniform_by_fan
from peftjax.placement import matmul
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoHa(LinearMethod):
  """The product, element by element, of two low-rank updates.

  Attributes:
    rank: r of each factor.
    alpha: α.
    rank_pattern, alpha_pattern: name pattern -> value for modules that differ.
    rank_dropout: rate at which outputs of the update are dropped while training, the rest scaled to the same mean.
    module_dropout: rate at which a module's whole update is dropped while training.
    use_effective_conv2d: Tucker products at convolutions whose window is more than a point.
  """

  name: ClassVar[str] = "loha"
  kinds: ClassVar[tuple[str, ...]] = ("linear", "conv")
  windows: ClassVar[tuple[int, ...]] = (1, 2)
  grouped: ClassVar[bool] = True
  leaf_names: ClassVar[tuple[str, ...]] = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
  patterns: ClassVar[tuple[str, ...]] = ("rank_pattern", "alpha_pattern")
  learning_rate: ClassVar[float] = 1e-3

  rank: int = 8
  alpha: float = 8.0
  rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
  alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
  rank_dropout: float = 0.0
  module_dropout: float = 0.0
  use_effective_conv2d: bool = False

  def settings(self, name: str) -> tuple[int, float]:
    """(rank, scale) at a module."""
    rank = by_pattern(self.rank_pattern, name, self.rank)
    return rank, by_pattern(self.alpha_pattern, name, self.alpha) / rank

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del base
    (rank, _), (features_in, features_out) = self.settings(site.names[0]), site.shape
    keys, cores = jax.random.split(key, 3), {}
    if is_tucker(self, site):
      features_in //= math.prod(site.window)
      cores = {
        f"hada_t{index}": uniform_by_fan(
          jax.random.fold_in(key, index), (rank, rank, *site.window), rank * math.prod(site.window)
        )
        for index in (1, 2)
      }
    return cores | {
      "hada_w1_a": uniform_by_fan(keys[0], (rank, features_out), rank),
      "hada_w1_b": uniform_by_fan(keys[1], (features_in, rank), features_in),
      "hada_w2_a": uniform_by_fan(keys[2], (rank, features_out), rank),
      "hada_w2_b": jnp.zeros((features_in, rank)),
    }

  def acts_by_delta(self, site: Site) -> bool:
    if self.rank_dropout or self.module_dropout:
      return False
    if site.kind == "conv":
      return True
    features_in, features_out = site.shape
    # Forward, and backward to x and to the factors, against the one product more that a formed update's gradient takes.
    is_thin = 3 * self.settings(site.names[0])[0] ** 2 * (features_in + features_out) < features_in * features_out
    return not is_thin

  def after(self, leaves: Leaves, x: jax.Array, y: jax.Array, site: Site, call: Call) -> jax.Array:
    outputs = dropout_mask(call, (site.shape[1],), self.rank_dropout)
    outputs /= jnp.maximum(outputs.mean(), 1.0 / site.shape[1])
    outputs *= dropout_mask(call, (), self.module_dropout)
    if site.kind == "conv":
      kernel = self.delta(leaves, {}, site, {})["kernel"]
      return y + call.product(x.astype(y.dtype), kernel.astype(y.dtype)) * outputs.astype(y.dtype)
    columns = jnp.einsum("ik,il->ikl", leaves["hada_w1_b"], leaves["hada_w2_b"]).reshape(site.shape[0], -1)
    rows = jnp.einsum("ko,lo->klo", leaves["hada_w1_a"], leaves["hada_w2_a"]).reshape(-1, site.shape[1])
    outputs *= self.settings(site.names[0])[1]
    return y + matmul(matmul(x.astype(y.dtype), columns.astype(y.dtype)), rows.astype(y.dtype)) * outputs.astype(
      y.dtype
    )

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del base, shared
    first, second = (
      tucker(leaves[f"hada_t{index}"], leaves[f"hada_w{index}_a"], leaves[f"hada_w{index}_b"])
      if f"hada_t{index}" in leaves
      else leaves[f"hada_w{index}_b"] @ leaves[f"hada_w{index}_a"]
      for index in (1, 2)
    )
    return {"kernel": self.settings(site.names[0])[1] * first * second}


def is_tucker(method: Any, site: Site) -> bool:
  """Whether the method's factors of a kernel are Tucker products."""
  return site.kind == "conv" and method.use_effective_conv2d and math.prod(site.window) > 1


def tucker(core: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
  """T ×₁ A ×₂ B as a matrix [in · window, out] from T: [r, r, *window], A: [r, out], B: [in, r]."""
  rank, _, *window = core.shape
  product = jnp.einsum("ijw,io,cj->cwo", core.reshape(rank, rank, -1), a, b)
  return product.reshape(b.shape[0] * math.prod(window), -1)
