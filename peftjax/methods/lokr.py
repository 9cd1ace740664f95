"""LoKr: low-rank Kronecker products (LyCORIS, Yeh et al. 2023, arXiv 2309.14859; KronA, arXiv 2212.10650).

    y = x W + s · x (W₁ ⊗ W₂)        W₁: [in₁, out₁], W₂: [in₂, out₂], in = in₁ in₂, out = out₁ out₂, s = α / r

W₂, and W₁ on request, are products of rank r where that is smaller. The Kronecker product is never formed: x is a
[in₁, in₂] matrix, and W₁ᵀ x W₂ is its image. W₁ starts at zero.

Of a convolution W₂ has the window, [in₂ · window, out₂], and the update is formed; with `use_effective_conv2d` a W₂ of
rank r is a Tucker product, as in `loha.py`. A whole W₂ of a window with one axis is laid out as in PEFT: the product of
W₁: [1, out₁, in₁] and W₂: [out₂, in₂, window], axis by axis, is read as [out, in, window].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from peftjax.errors import UserError, nearest
from peftjax.methods.base import Call, Leaves
from peftjax.methods.linear import LinearMethod, by_pattern, dropout_mask, uniform_by_fan
from peftjax.methods.loha import is_tucker, tucker
from peftjax.placement import matmul
from peftjax.sites import Site

INITS = ("default", "lycoris")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoKr(LinearMethod):
  """The Kronecker product of a small and a larger matrix.

  Attributes:
    rank: r.
    alpha: α.
    rank_pattern, alpha_pattern: name pattern -> value for modules that differ.
    decompose_both: W₁ may be a product of rank r too.
    decompose_factor: wanted size of in₁ and out₁; -1: near the square root.
    rank_dropout: rate at which outputs of the update are dropped while training.
    rank_dropout_scale: scale what is kept to the same mean.
    module_dropout: rate at which a module's whole update is dropped while training.
    use_effective_conv2d: Tucker products at convolutions whose window is more than a point.
    init: default (W₁ or its first factor is zero), or lycoris (W₂ or its second factor is).
  """

  name: ClassVar[str] = "lokr"
  kinds: ClassVar[tuple[str, ...]] = ("linear", "conv")
  windows: ClassVar[tuple[int, ...]] = (1, 2)
  grouped: ClassVar[bool] = True
  leaf_names: ClassVar[tuple[str, ...]] = (
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"
  )  # fmt: skip
  patterns: ClassVar[tuple[str, ...]] = ("rank_pattern", "alpha_pattern")
  learning_rate: ClassVar[float] = 1e-3

  rank: int = 8
  alpha: float = 8.0
  rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
  alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
  decompose_both: bool = False
  decompose_factor: int = -1
  rank_dropout: float = 0.0
  rank_dropout_scale: bool = False
  module_dropout: float = 0.0
  use_effective_conv2d: bool = False
  init: str = "default"

  def __post_init__(self) -> None:
    if self.init not in INITS:
      raise UserError(f"lokr.init: unknown {self.init!r}; {nearest(self.init, INITS)}")

  def settings(self, name: str) -> tuple[int, float]:
    """(rank, scale) at a module."""
    rank = by_pattern(self.rank_pattern, name, self.rank)
    return rank, by_pattern(self.alpha_pattern, name, self.alpha) / rank

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del base
    rank, window = self.settings(site.names[0])[0], math.prod(site.window)
    source, target = site.shape[0] // window, site.shape[1]
    (in_1, in_2), (out_1, out_2) = (factor_pair(size, self.decompose_factor) for size in (source, target))
    key_1, key_2 = jax.random.split(key)
    leaves = _matrix("lokr_w1", key_1, in_1, out_1, rank, self.decompose_both and rank < max(in_1, out_1) / 2)
    is_thin = rank < max(in_2, out_2) / 2
    has_core = is_thin and is_tucker(self, site)
    leaves |= _matrix("lokr_w2", key_2, in_2 if has_core else in_2 * window, out_2, rank, is_thin)
    if has_core:
      core = (rank, rank, *site.window)
      leaves["lokr_t2"] = uniform_by_fan(jax.random.fold_in(key_2, 2), core, rank * window)
    zeros = ("lokr_w1", "lokr_w1_a") if self.init == "default" else ("lokr_w2", "lokr_w2_b")
    return {name: jnp.zeros_like(leaf) if name in zeros else leaf for name, leaf in leaves.items()}

  def acts_by_delta(self, site: Site) -> bool:
    return site.kind == "conv" and self.rank_dropout == self.module_dropout == 0.0

  def after(self, leaves: Leaves, x: jax.Array, y: jax.Array, site: Site, call: Call) -> jax.Array:
    outputs = dropout_mask(call, (site.shape[1],), self.rank_dropout)
    if self.rank_dropout_scale:
      outputs /= jnp.maximum(outputs.mean(), 1.0 / site.shape[1])
    outputs *= dropout_mask(call, (), self.module_dropout)
    if site.kind == "conv":
      kernel = self.delta(leaves, {}, site, {})["kernel"]
      return y + call.product(x.astype(y.dtype), kernel.astype(y.dtype)) * outputs.astype(y.dtype)
    in_1, in_2 = factor_pair(site.shape[0], self.decompose_factor)
    update = x.astype(y.dtype).reshape(*x.shape[:-1], in_1, in_2)
    for factor in _factors(leaves, "lokr_w2"):
      update = matmul(update, factor.astype(y.dtype))
    update = jnp.swapaxes(update, -1, -2)
    for factor in _factors(leaves, "lokr_w1"):
      update = matmul(update, factor.astype(y.dtype))
    outputs *= self.settings(site.names[0])[1]
    return y + jnp.swapaxes(update, -1, -2).reshape(y.shape) * outputs.astype(y.dtype)

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del base, shared
    scale, w1 = self.settings(site.names[0])[1], _product(*_factors(leaves, "lokr_w1"))
    if "lokr_t2" in leaves:
      w2 = tucker(leaves["lokr_t2"], leaves["lokr_w2_a"], leaves["lokr_w2_b"])
    else:
      w2 = _product(*_factors(leaves, "lokr_w2"))
    if len(site.window) == 1 and "lokr_w2" in leaves:
      whole = jnp.kron(w1.T[None], w2.T.reshape(w2.shape[1], -1, *site.window))  # as PEFT's
      return {"kernel": scale * whole.reshape(site.shape[1], site.shape[0]).T}
    return {"kernel": scale * jnp.kron(w1, w2)}


def factor_pair(size: int, wanted: int = -1) -> tuple[int, int]:
  """(m, n) with m n = size and m ≤ n: m is `wanted` if it divides, else near it from below; -1: nearest the root.

  >>> factor_pair(768), factor_pair(127), factor_pair(128, 4), factor_pair(20, 3)
  ((24, 32), (1, 127), (4, 32), (2, 10))
  """
  if wanted > 0 and size % wanted == 0:
    return wanted, size // wanted
  limit = size if wanted == -1 else wanted
  small = max(m for m in range(1, int(size**0.5) + 1) if size % m == 0 and m <= limit)
  return small, size // small


def _matrix(name: str, key: jax.Array, size_in: int, size_out: int, rank: int, is_product: bool) -> Leaves:
  if not is_product:
    return {name: uniform_by_fan(key, (size_in, size_out), size_in)}
  key_a, key_b = jax.random.split(key)
  return {
    f"{name}_a": uniform_by_fan(key_a, (rank, size_out), rank),
    f"{name}_b": uniform_by_fan(key_b, (size_in, rank), size_in),
  }


def _factors(leaves: Leaves, name: str) -> tuple[jax.Array, ...]:
  return (leaves[name],) if name in leaves else (leaves[f"{name}_b"], leaves[f"{name}_a"])


def _product(first: jax.Array, *rest: jax.Array) -> jax.Array:
  for factor in rest:
    first = first @ factor
  return first
