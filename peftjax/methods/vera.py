"""VeRA: Vector-based Random Matrix Adaptation (Kopiczko et al. 2023, arXiv 2310.11454).

    y = x W + (((x A) ⊙ d) B) ⊙ b        A: [in, r], B: [r, out] random, frozen and shared; d: [r], b: [out]

All sites use the first rows of one A and the first columns of one B, as large as the largest site needs. b starts at
zero, so the model starts as the base.
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
class VeRA(LinearMethod):
  """Two learned vectors a site around shared random projections.

  Attributes:
    rank: r.
    dropout: rate on the input while training.
    d_initial: every element of d at the start.
    projection_prng_key: torch's seed for A and B; the same numbers as PEFT's.
    save_projection: whether an adapter folder holds A and B or their seed alone.
  """

  name: ClassVar[str] = "vera"
  leaf_names: ClassVar[tuple[str, ...]] = ("vera_lambda_b", "vera_lambda_d")
  buffer_names: ClassVar[tuple[str, ...]] = ("vera_a", "vera_b")
  learning_rate: ClassVar[float] = 4e-3

  rank: int = 256
  dropout: float = 0.0
  d_initial: float = 0.1
  projection_prng_key: int = 0
  save_projection: bool = True

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del key, base
    return {"vera_lambda_b": jnp.zeros(site.shape[1]), "vera_lambda_d": jnp.full(self.rank, self.d_initial)}

  def create_shared(self, key: jax.Array, sites: Sequence[Site]) -> Leaves:
    features_in, features_out = (max(site.shape[axis] for site in sites) for axis in (0, 1))

    def draw() -> dict[str, np.ndarray]:
      bits = torch_random.generator(self.projection_prng_key)
      a = torch_random.kaiming_uniform(bits, (self.rank, features_in), features_in)
      b = torch_random.kaiming_uniform(bits, (features_out, self.rank), self.rank)
      return {"vera_a": a.T, "vera_b": b.T}

    return torch_random.drawn(draw, {"vera_a": (features_in, self.rank), "vera_b": (self.rank, features_out)}, key)

  def after(self, leaves: Leaves, x: jax.Array, y: jax.Array, site: Site, call: Call) -> jax.Array:
    a, b = _slices(call.shared, site)
    d, scale = leaves["vera_lambda_d"].astype(y.dtype), leaves["vera_lambda_b"].astype(y.dtype)
    hidden = matmul(call.dropout(x.astype(y.dtype), self.dropout), a.astype(y.dtype))
    return y + scale * matmul(d * hidden, b.astype(y.dtype))

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del base
    a, b = _slices(shared, site)
    return {"kernel": (a * leaves["vera_lambda_d"]) @ b * leaves["vera_lambda_b"]}


def _slices(shared: Leaves, site: Site) -> tuple[jax.Array, jax.Array]:
  return shared["vera_a"][: site.shape[0]], shared["vera_b"][:, : site.shape[1]]
