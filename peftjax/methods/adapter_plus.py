"""Adapter+ (Steitz & Roth 2024, arXiv 2406.06820).

    h ← h + c ⊙ (gelu(h D + d) U + u)        c: [hidden], one learned scale a channel, starting at one

after whole layers, that is, behind the feed-forward's residual sum. The paper draws D and U from N(0, 0.01²) cut off at
two standard deviations; with init="zero" U starts at zero instead, and the model as the base.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax.errors import UserError, nearest
from peftjax.methods.base import Call, Leaves
from peftjax.methods.bottleneck import Bottleneck, near_zero
from peftjax.sites import Site

INITS = ("zero", "published")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterPlus(Bottleneck):
  """Adapters after layers.

  Attributes:
    init: zero (U = 0) or published.
  """

  name: ClassVar[str] = "adapter_plus"
  kinds: ClassVar[tuple[str, ...]] = ("block",)
  leaf_names: ClassVar[tuple[str, ...]] = (*Bottleneck.leaf_names, "channel_scale")

  bottleneck_dim: int = 8
  init: str = "zero"

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.init not in INITS:
      raise UserError(f"{self.name}.init: unknown {self.init!r}; {nearest(self.init, INITS)}")
    if self.sublayers:
      raise UserError(f"{self.name}.sublayers: it acts on whole layers; leave it empty")

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    key_down, key_up = jax.random.split(key)
    leaves = super().create(key_down, site, base)
    if self.init == "published":
      leaves["up_kernel"] = near_zero(key_up, leaves["up_kernel"].shape)
    return {**leaves, "channel_scale": jnp.ones(site.shape)}

  def after(self, leaves: Leaves, x: Any, y: Any, site: Site, call: Call) -> Any:
    hidden, *rest = y
    return (hidden + leaves["channel_scale"].astype(hidden.dtype) * self.network(leaves, hidden, call), *rest)
