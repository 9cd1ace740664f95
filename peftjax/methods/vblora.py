"""VB-LoRA (Li et al. 2024, arXiv 2405.15179): LoRA's factors are mixtures of a few vectors of one bank.

    A's row j, tile t:  Σ_k softmax(top-K logits_A[j, t])_k · bank[index_k]        bank: [vectors, length], shared
    y = x W + (x A) B

The tiles of B's columns likewise. Nothing is zero at the start, but the update is as small as the bank's bound squared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax import masks
from peftjax.errors import UserError
from peftjax.methods import targets as default_targets
from peftjax.methods.base import Call, Context, Leaves
from peftjax.methods.linear import LinearMethod, low_rank
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class VBLoRA(LinearMethod):
  """Low-rank factors composed from a bank that all sites share.

  Attributes:
    rank: r.
    num_vectors, vector_length: of the bank; the length divides every site's input and output size.
    topk: vectors mixed for each tile.
    dropout: rate on the update's input while training.
    init_vector_bank_bound: the bank starts uniform within ±bound.
    init_logits_std: logits start normal with this deviation.
    save_only_topk_weights: an adapter folder holds indices and weights of the top vectors alone; training cannot go on
      from it.
  """

  name: ClassVar[str] = "vblora"
  leaf_names: ClassVar[tuple[str, ...]] = ("vblora_logits_a", "vblora_logits_b", "vblora_vector_bank")
  learning_rate: ClassVar[float] = 4e-3

  rank: int = 4
  num_vectors: int = 256
  vector_length: int = 256
  topk: int = 2
  dropout: float = 0.0
  init_vector_bank_bound: float = 0.02
  init_logits_std: float = 0.1
  save_only_topk_weights: bool = False

  def __post_init__(self) -> None:
    if self.topk > self.num_vectors:
      raise UserError(f"vblora.topk: expected at most num_vectors={self.num_vectors}, got {self.topk}")

  def default_targets(self, model_type: str) -> masks.Patterns:
    return default_targets.VBLORA.get(model_type, ()) or super().default_targets(model_type)

  def bind(self, context: Context) -> Self:
    bound = super().bind(context)
    for site in bound.select(context):
      for size in site.shape:
        if size % self.vector_length:
          raise UserError(f"vblora.vector_length: {self.vector_length} does not divide {site.name}'s size {size}")
    return bound

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del base
    tiles_in, tiles_out = (size // self.vector_length for size in site.shape)
    key_a, key_b = jax.random.split(key)
    shape_a, shape_b = (self.rank, tiles_in, self.num_vectors), (tiles_out, self.rank, self.num_vectors)
    return {
      "vblora_logits_a": self.init_logits_std * jax.random.normal(key_a, shape_a),
      "vblora_logits_b": self.init_logits_std * jax.random.normal(key_b, shape_b),
    }

  def create_shared(self, key: jax.Array, sites: Sequence[Site]) -> Leaves:
    del sites
    bound, shape = self.init_vector_bank_bound, (self.num_vectors, self.vector_length)
    return {"vblora_vector_bank": jax.random.uniform(key, shape, minval=-bound, maxval=bound)}

  def after(self, leaves: Leaves, x: jax.Array, y: jax.Array, site: Site, call: Call) -> jax.Array:
    a, b = self._factors(leaves, call.shared)
    return y + low_rank(call.dropout(x, self.dropout), a, b, dtype=y.dtype)

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del base
    a, b = self._factors(leaves, shared)
    return {"kernel": a @ b}

  def _factors(self, leaves: Leaves, shared: Leaves) -> tuple[jax.Array, jax.Array]:
    """A: [in, r] and B: [r, out]."""
    bank = shared["vblora_vector_bank"]
    a = _mixture(leaves["vblora_logits_a"], bank, self.topk).reshape(self.rank, -1).T
    b = jnp.swapaxes(_mixture(leaves["vblora_logits_b"], bank, self.topk), 0, 1).reshape(self.rank, -1)
    return a, b


def _mixture(logits: jax.Array, bank: jax.Array, topk: int) -> jax.Array:
  """[..., length] from logits [..., vectors]."""
  top, indices = jax.lax.top_k(logits, topk)
  return jnp.einsum("...k,...kl->...l", jax.nn.softmax(top), bank[indices])
