"""RandLoRA (Albert et al. 2025, arXiv 2502.00987): full-rank updates from scaled random bases.

    ΔW = s · Σ_b B_b diag(λ_b) A diag(γ_b),  s = α / r        A: [r, small], B_b: [large, r] random, frozen and shared

for n = ⌈small / r⌉ bases, where small and large are the site's sizes; learned are λ: [r, n] and γ: [n, small]. λ starts
at zero, so the model starts as the base, bitwise.

PEFT lays the pairs (row of A, base) out by rows and those of B by bases before it contracts them, so that λ's row and
base number do not belong to the same B as the formula says; what is computed here is what PEFT computes. Where A and B
are not sparse PEFT draws them in bfloat16, and so does this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.methods import torch_random
from peftjax.methods.base import Call, Leaves
from peftjax.methods.linear import LinearMethod
from peftjax.placement import matmul
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandLoRA(LinearMethod):
  """Learned scales of the rows and columns of many random low-rank bases.

  Attributes:
    rank: r of each base; a smaller one has more bases, and more parameters.
    alpha: α.
    dropout: rate on the update's input while training.
    projection_prng_key: torch's seed for A and B; the same numbers as PEFT's.
    save_projection: whether an adapter folder holds A and B or their seed alone.
    sparse: A and B are in {-1, 0, 1}, two thirds zero (Li et al. 2006), scaled.
    very_sparse: all but 1 / √small are zero.
  """

  name: ClassVar[str] = "randlora"
  leaf_names: ClassVar[tuple[str, ...]] = ("randlora_lambda", "randlora_gamma")
  buffer_names: ClassVar[tuple[str, ...]] = ("randlora_a", "randlora_b")
  learning_rate: ClassVar[float] = 1e-3

  rank: int = 32
  alpha: float = 640.0
  dropout: float = 0.0
  projection_prng_key: int = 0
  save_projection: bool = True
  sparse: bool = False
  very_sparse: bool = False

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del key, base
    small, bases = min(site.shape), -(-min(site.shape) // self.rank)
    return {
      "randlora_lambda": jnp.zeros((self.rank, bases)),
      "randlora_gamma": jnp.full((bases, small), 1.0 / max(bases, small)),
    }

  def create_shared(self, key: jax.Array, sites: Sequence[Site]) -> Leaves:
    features_in, features_out = (max(site.shape[axis] for site in sites) for axis in (0, 1))
    small, large = sorted((features_in, features_out))
    bases, rank = -(-small // self.rank), self.rank
    shapes = {"randlora_a": (rank, 1, small), "randlora_b": (large, bases, rank)}

    def draw() -> dict[str, np.ndarray]:
      bits = torch_random.generator(self.projection_prng_key)
      if self.sparse or self.very_sparse:
        share = 0.5 / (small**0.5 if self.very_sparse else 3.0)
        uniform = {name: torch_random.uniform(bits, shape, 0.0, 1.0) for name, shape in shapes.items()}
        signs = {name: (one > 1.0 - share).astype(np.float32) - (one < share) for name, one in uniform.items()}
        return {name: one / one.std(ddof=1) for name, one in signs.items()}
      a = _bfloat16_draw(bits, (rank, 1, small), small)
      b = np.concatenate([_bfloat16_draw(bits, (large, 1, rank), rank) for _ in range(bases)], axis=1)
      return {"randlora_a": _normalised(a), "randlora_b": _normalised(b)}

    return torch_random.drawn(draw, shapes, key)

  def acts_by_delta(self, site: Site) -> bool:
    # The update has full rank: formed once a step it costs less than two products as large as the base's a token.
    return self.dropout == 0.0

  def after(self, leaves: Leaves, x: jax.Array, y: jax.Array, site: Site, call: Call) -> jax.Array:
    first, second = (factor.astype(y.dtype) for factor in self._factors(leaves, call.shared, site))
    return y + matmul(matmul(call.dropout(x.astype(y.dtype), self.dropout), first), second) * (self.alpha / self.rank)

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del base
    first, second = self._factors(leaves, shared, site)
    return {"kernel": first @ second * (self.alpha / self.rank)}

  def _factors(self, leaves: Leaves, shared: Leaves, site: Site) -> tuple[jax.Array, jax.Array]:
    """[in, r n] and [r n, out]."""
    small, large = sorted(site.shape)
    bases = -(-small // self.rank)
    a = shared["randlora_a"][:, :, :small] * leaves["randlora_lambda"][:, :, None] * leaves["randlora_gamma"]
    a, b = a.reshape(-1, small), shared["randlora_b"][:large, :bases].reshape(large, -1)
    return (a.T, b.T) if small == site.shape[0] else (b, a)


def _bfloat16_draw(bits: torch_random.Generator, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
  return torch_random.uniform_bfloat16(bits, shape, -(fan_in**-0.5), fan_in**-0.5)


def _normalised(drawn: np.ndarray) -> np.ndarray:
  """Divided by its deviation, every step rounded to bfloat16; float32."""
  values = drawn.astype(np.float32)
  deviation = values.std(ddof=1, dtype=np.float64).astype(drawn.dtype).astype(np.float32)
  return (values / deviation).astype(drawn.dtype).astype(np.float32)
