"""MiSS: Matrix Shard Sharing (Kang and Yin 2024, arXiv 2409.15371; before, Bone).

    y = x W + S(x) D,  S(x)_j = Σ_a x[a r + j]        D: [r, out]; all shards of r inputs share one block

D starts at zero, so the model starts as the base, bitwise. "mini" repeats a D of [r, mini_r] along the outputs. "bat"
gives every r outputs a block B_o of [r, r] that also acts on W: ΔW_ao = W_ao B_o + B_o, an update of full rank.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax.errors import UserError, nearest
from peftjax.methods.base import Call, Context, Leaves
from peftjax.methods.linear import LinearMethod
from peftjax.placement import matmul
from peftjax.sites import Site

INITS = ("balance", "bat", "mini")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MiSS(LinearMethod):
  """One small block that all shards of the input share.

  Attributes:
    rank: r, inputs of a shard.
    dropout: rate on the update's input while training ("bat" has none).
    mini_r: outputs of a block with init="mini"; it divides the output size.
    init: balance, bat or mini: PEFT's `init_weights`, which also says how the blocks act.
  """

  name: ClassVar[str] = "miss"
  leaf_names: ClassVar[tuple[str, ...]] = ("miss_block",)
  learning_rate: ClassVar[float] = 1e-3

  rank: int = 64
  dropout: float = 0.0
  mini_r: int = 1
  init: str = "balance"

  def __post_init__(self) -> None:
    if self.init not in INITS:
      raise UserError(f"miss.init: unknown {self.init!r}; {nearest(self.init, INITS)}")

  def bind(self, context: Context) -> Self:
    bound = super().bind(context)
    for site in bound.select(context):
      features_in, features_out = site.shape
      if self.rank > features_in:
        raise UserError(f"miss.rank: expected at most {site.name}'s input size {features_in}, got {self.rank}")
      if self.init == "bat" and (features_in % self.rank or features_out % self.rank):
        raise UserError(f"miss.rank: with init='bat' {self.rank} must divide {site.name}'s sizes {site.shape}")
      if self.init == "mini" and features_out % self.mini_r:
        raise UserError(f"miss.mini_r: {self.mini_r} does not divide {site.name}'s output size {features_out}")
    return bound

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del key, base
    rank, features_out = self.rank, site.shape[1]
    shape = {"balance": (rank, features_out), "mini": (rank, self.mini_r), "bat": (features_out // rank, rank, rank)}
    return {"miss_block": jnp.zeros(shape[self.init])}

  def acts_by_delta(self, site: Site) -> bool:
    return self.init == "bat"

  def after(self, leaves: Leaves, x: jax.Array, y: jax.Array, site: Site, call: Call) -> jax.Array:
    shards = call.dropout(x.astype(y.dtype), self.dropout)
    shards = jnp.pad(shards, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % self.rank)])
    sums = shards.reshape(*x.shape[:-1], -1, self.rank).sum(axis=-2)
    return y + self._repeated(matmul(sums, leaves["miss_block"].astype(y.dtype)), site)

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del shared
    block, rank, (features_in, features_out) = leaves["miss_block"], self.rank, site.shape
    if self.init == "bat":
      shards = base["kernel"].reshape(features_in // rank, rank, features_out // rank, rank)  # a, i, o, j
      update = jnp.einsum("akoj,oki->aioj", shards, block) + block.transpose(2, 0, 1)
      return {"kernel": update.reshape(site.shape)}
    shards = -(-features_in // rank)
    return {"kernel": self._repeated(jnp.tile(block, (shards, 1))[:features_in], site)}

  def _repeated(self, update: jax.Array, site: Site) -> jax.Array:
    if self.init != "mini":
      return update
    return jnp.tile(update, (*[1] * (update.ndim - 1), site.shape[1] // self.mini_r))
