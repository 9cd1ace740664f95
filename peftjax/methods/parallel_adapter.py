"""Parallel and scaled parallel adapters (He et al. 2022, arXiv 2110.04366, table 1).

    branch ← branch + s · (act(x D + d) U + u)        x: the sublayer's input, s = 1 (parallel) or 4 (scaled)

U and u start at zero, as LoRA's B, so the model starts as the base. x is what enters the sublayer: where a layer
normalises first, the residual stream before the norm.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax.methods.base import Call, Leaves
from peftjax.methods.bottleneck import Bottleneck, hidden_of
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelAdapter(Bottleneck):
  """Adapters beside sublayers.

  Attributes:
    scale: s; the paper's scaled parallel adapter has 4.
    learned_scale: s is a leaf of each adapter that starts at `scale`.
  """

  name: ClassVar[str] = "parallel_adapter"
  leaf_names: ClassVar[tuple[str, ...]] = (*Bottleneck.leaf_names, "adapter_scale")

  activation: str = "relu"
  sublayers: tuple[str, ...] = ("mlp",)
  scale: float = 4.0
  learned_scale: bool = False

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del base
    (hidden,) = site.shape
    bound = hidden**-0.5
    leaves = {
      "down_kernel": jax.random.uniform(key, (hidden, self.bottleneck_dim), minval=-bound, maxval=bound),
      "down_bias": jnp.zeros(self.bottleneck_dim),
      "up_kernel": jnp.zeros((self.bottleneck_dim, hidden)),
      "up_bias": jnp.zeros(hidden),
    }
    return {**leaves, "adapter_scale": jnp.full((1,), self.scale)} if self.learned_scale else leaves

  def after(self, leaves: Leaves, x: Any, y: jax.Array, site: Site, call: Call) -> jax.Array:
    scale = leaves["adapter_scale"].astype(y.dtype) if self.learned_scale else self.scale
    return y + scale * self.network(leaves, hidden_of(x).astype(y.dtype), call)
