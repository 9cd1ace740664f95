"""HiRA: Hadamard High-Rank Adaptation (Huang et al., ICLR 2025, openreview TwJrTz9cRS).

    W' = W ⊙ (1 + A B)        A: [in, r], B: [r, out]

B starts at zero, so the model starts as the base, bitwise. The update has W's rank, so a step costs what full
fine-tuning's does; what is small is the adapter and the optimizer's state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from peftjax.errors import UserError, nearest
from peftjax.methods.base import Call, Leaves
from peftjax.methods.linear import LinearMethod, by_pattern, uniform_by_fan
from peftjax.sites import Site

INITS = ("kaiming", "gaussian")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HiRA(LinearMethod):
  """A low-rank factor of each weight.

  Attributes:
    rank: r.
    dropout: rate on the update's input while training; any costs a second full product.
    rank_pattern: name pattern -> r for modules that differ.
    init: of A: kaiming (uniform ±1/√in) or gaussian (N(0, 1/r²)).
  """

  name: ClassVar[str] = "hira"
  kinds: ClassVar[tuple[str, ...]] = ("linear", "conv")
  windows: ClassVar[tuple[int, ...]] = (1, 2, 3)
  leaf_names: ClassVar[tuple[str, ...]] = ("hira_a", "hira_b")
  patterns: ClassVar[tuple[str, ...]] = ("rank_pattern",)
  learning_rate: ClassVar[float] = 4.5e-3

  rank: int = 32
  dropout: float = 0.0
  rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
  init: str = "kaiming"

  def __post_init__(self) -> None:
    if self.init not in INITS:
      raise UserError(f"hira.init: unknown {self.init!r}; {nearest(self.init, INITS)}")

  def settings(self, name: str) -> int:
    """r at a module."""
    return int(by_pattern(self.rank_pattern, name, self.rank))

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del base
    rank, (features_in, features_out) = self.settings(site.names[0]), site.shape
    if self.init == "gaussian":
      a = jax.random.normal(key, (features_in, rank)) / rank
    else:
      a = uniform_by_fan(key, (features_in, rank), features_in)
    return {"hira_a": a, "hira_b": jnp.zeros((rank, features_out))}

  def acts_by_delta(self, site: Site) -> bool:
    return self.dropout == 0.0

  def after(self, leaves: Leaves, x: jax.Array, y: jax.Array, site: Site, call: Call) -> jax.Array:
    delta = self.delta(leaves, {"kernel": call.base("kernel")}, site, call.shared)["kernel"]
    return y + call.product(call.dropout(x.astype(y.dtype), self.dropout), delta.astype(y.dtype))

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del shared
    return {"kernel": base["kernel"] * (leaves["hira_a"] @ leaves["hira_b"])}
