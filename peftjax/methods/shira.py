"""SHiRA: Sparse High Rank Adapters (Bhardwaj et al. 2024, arXiv 2406.13175).

    W' = W + Δ,  Δ zero but for values v at frozen places        as many values as LoRA of rank r has: r (in + out)

v starts at zero, so the model starts as the base, bitwise. The gradient of v is picked from that of the whole kernel,
so a step costs what full fine-tuning's does; what is small is the adapter and the optimizer's state.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.errors import UserError
from peftjax.methods import torch_random
from peftjax.methods.base import Context, Leaves
from peftjax.methods.linear import LinearMethod
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class SHiRA(LinearMethod):
  """A few of the kernel's elements, at random places.

  Attributes:
    rank: r.
    random_seed: torch's seed for the places; the same ones as PEFT's. -1: by the method's key, other places in every
      layer: one in each of as many equal runs of weights as there are values.
  """

  name: ClassVar[str] = "shira"
  leaf_names: ClassVar[tuple[str, ...]] = ("shira_weight",)
  buffer_names: ClassVar[tuple[str, ...]] = ("shira_indices",)
  learning_rate: ClassVar[float] = 1e-3

  rank: int = 32
  random_seed: int = -1

  def bind(self, context: Context) -> Self:
    bound = super().bind(context)
    for site in bound.select(context):
      if self._count(site) > site.shape[0] * site.shape[1]:
        raise UserError(f"shira.rank: {self.rank} gives more values than {site.name} has weights, {site.shape}")
    return bound

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del base
    (features_in, features_out), count = site.shape, self._count(site)
    if self.random_seed < 0:
      starts = np.arange(count + 1) * features_in * features_out // count
      places = jnp.asarray(starts[:-1]) + (jax.random.uniform(key, (count,)) * np.diff(starts)).astype(jnp.int32)
    else:
      bits = torch_random.generator(self.random_seed)
      places = jnp.asarray(np.sort(torch_random.permutation(bits, features_in * features_out, count)))
    indices = jnp.stack([places // features_in, places % features_in]).astype(jnp.int32)
    return {"shira_weight": jnp.zeros(count), "shira_indices": indices}

  def acts_by_delta(self, site: Site) -> bool:
    return True

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del base, shared
    rows, columns = leaves["shira_indices"]  # torch's [out, in]
    return {"kernel": jnp.zeros(site.shape).at[columns, rows].set(leaves["shira_weight"], unique_indices=True)}

  def _count(self, site: Site) -> int:
    return self.rank * sum(site.shape)
