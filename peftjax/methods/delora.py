"""DeLoRA: Decoupled Low-Rank Adaptation (Bini et al. 2025, arXiv 2503.18225).

    y = x W + λ / r · Σ_k (x ⊙ w) a_k b_kᵀ / (‖a_k‖ ‖b_k‖)        A: [in, r], B: [r, out], w: norms of W's rows at first

The strength λ is learned apart from the direction. B starts at zero, so the model starts as the base, bitwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from peftjax.methods.base import Call, Leaves
from peftjax.methods.linear import LinearMethod, by_pattern, low_rank, uniform_by_fan
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeLoRA(LinearMethod):
  """Normalised low-rank updates with a learned bound.

  Attributes:
    rank: r.
    delora_lambda: λ at the start.
    rank_pattern, lambda_pattern: name pattern -> value for modules that differ.
    module_dropout: rate on the update's input while training.
  """

  name: ClassVar[str] = "delora"
  leaf_names: ClassVar[tuple[str, ...]] = ("delora_a", "delora_b", "delora_lambda")
  buffer_names: ClassVar[tuple[str, ...]] = ("delora_w_norm",)
  patterns: ClassVar[tuple[str, ...]] = ("rank_pattern", "lambda_pattern")
  learning_rate: ClassVar[float] = 1e-3

  rank: int = 8
  delora_lambda: float = 15.0
  rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
  lambda_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
  module_dropout: float = 0.0

  def settings(self, name: str) -> tuple[int, float]:
    """(r, λ at the start) at a module."""
    return (
      int(by_pattern(self.rank_pattern, name, self.rank)),
      float(by_pattern(self.lambda_pattern, name, self.delora_lambda)),
    )

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    (rank, strength), (features_in, features_out) = self.settings(site.names[0]), site.shape
    return {
      "delora_a": uniform_by_fan(key, (features_in, rank), features_in),
      "delora_b": jnp.zeros((rank, features_out)),
      "delora_lambda": jnp.full(1, strength),
      "delora_w_norm": jnp.sqrt(jnp.sum(jnp.square(base["kernel"].astype(jnp.float32)), axis=1)),
    }

  def after(self, leaves: Leaves, x: jax.Array, y: jax.Array, site: Site, call: Call) -> jax.Array:
    weighted = call.dropout(x, self.module_dropout) * leaves["delora_w_norm"].astype(x.dtype)
    return y + low_rank(weighted, leaves["delora_a"] * _scales(leaves), leaves["delora_b"], dtype=y.dtype)

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del base, shared
    update = (leaves["delora_a"] * _scales(leaves)) @ leaves["delora_b"]
    return {"kernel": leaves["delora_w_norm"][:, None] * update}


def _scales(leaves: Leaves) -> jax.Array:
  """λ / r / (‖a_k‖ ‖b_k‖), float32[r]; norms count as at least 1e-4."""
  a, b = leaves["delora_a"], leaves["delora_b"]
  # The square is bounded, not the norm, whose gradient at zero is not finite.
  norm_a, norm_b = (jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(m), axis=axis), 1e-8)) for m, axis in ((a, 0), (b, 1)))
  return leaves["delora_lambda"] / a.shape[1] / (norm_a * norm_b)
