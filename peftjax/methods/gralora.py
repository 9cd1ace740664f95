"""GraLoRA: Granular Low-Rank Adaptation (Jung et al. 2025, arXiv 2505.20355).

    ΔW_nj = s · A_n[:, j-th r/k columns] B_j[n-th r/k rows, :]        A: [k, in / k, r], B: [k, r, out / k]

for the k × k blocks of the kernel: every block has its own factors of rank r / k, with LoRA's number of parameters.
s = α / (r + h) with a plain LoRA of rank h beside it. B starts at zero, so the model starts as the base, bitwise.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax.errors import UserError
from peftjax.methods.base import Call, Context, Leaves
from peftjax.methods.linear import LinearMethod, low_rank, uniform_by_fan
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraLoRA(LinearMethod):
  """Low-rank updates of the kernel's blocks.

  Attributes:
    rank: r; a multiple of k.
    hybrid_r: h, rank of the plain LoRA beside it; 0: none.
    alpha: α.
    dropout: rate on the update's input while training.
    gralora_k: k, blocks along each side; it divides every site's input and output size.
  """

  name: ClassVar[str] = "gralora"
  leaf_names: ClassVar[tuple[str, ...]] = ("gralora_a", "gralora_b", "gralora_a_general", "gralora_b_general")
  learning_rate: ClassVar[float] = 1e-3

  rank: int = 32
  hybrid_r: int = 0
  alpha: float = 64.0
  dropout: float = 0.0
  gralora_k: int = 2

  def __post_init__(self) -> None:
    if self.rank % self.gralora_k:
      raise UserError(f"gralora.rank: expected a multiple of gralora_k={self.gralora_k}, got {self.rank}")

  def bind(self, context: Context) -> Self:
    bound = super().bind(context)
    for site in bound.select(context):
      if any(size % self.gralora_k for size in site.shape):
        raise UserError(f"gralora.gralora_k: {self.gralora_k} does not divide {site.name}'s sizes {site.shape}")
    return bound

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del base
    parts, rank, (features_in, features_out) = self.gralora_k, self.rank, site.shape
    key_a, key_general = jax.random.split(key)
    leaves = {
      "gralora_a": uniform_by_fan(key_a, (parts, features_in // parts, rank), features_in // parts),
      "gralora_b": jnp.zeros((parts, rank, features_out // parts)),
    }
    if self.hybrid_r:
      leaves["gralora_a_general"] = uniform_by_fan(key_general, (features_in, self.hybrid_r), features_in)
      leaves["gralora_b_general"] = jnp.zeros((self.hybrid_r, features_out))
    return leaves

  def after(self, leaves: Leaves, x: jax.Array, y: jax.Array, site: Site, call: Call) -> jax.Array:
    parts = self.gralora_k
    dropped = call.dropout(x.astype(y.dtype), self.dropout)
    blocks = dropped.reshape(*x.shape[:-1], parts, -1)
    hidden = jnp.einsum("...ni,nir->...nr", blocks, leaves["gralora_a"].astype(y.dtype))
    exchanged = hidden.reshape(*x.shape[:-1], parts, parts, -1).swapaxes(-2, -3).reshape(hidden.shape)
    update = jnp.einsum("...jr,jro->...jo", exchanged, leaves["gralora_b"].astype(y.dtype)).reshape(y.shape)
    if self.hybrid_r:
      update += low_rank(dropped, leaves["gralora_a_general"], leaves["gralora_b_general"], dtype=y.dtype)
    return y + self._scale * update

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del base, shared
    parts, part = self.gralora_k, self.rank // self.gralora_k
    a = leaves["gralora_a"].reshape(parts, -1, parts, part)  # n, i, j, s
    b = leaves["gralora_b"].reshape(parts, parts, part, -1)  # j, n, s, o
    update = jnp.einsum("nijs,jnso->nijo", a, b).reshape(site.shape)
    if self.hybrid_r:
      update += leaves["gralora_a_general"] @ leaves["gralora_b_general"]
    return {"kernel": self._scale * update}

  @property
  def _scale(self) -> float:
    return self.alpha / (self.rank + self.hybrid_r)
