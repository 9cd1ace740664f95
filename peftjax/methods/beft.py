"""BEFT (Huang et al. 2025, arXiv 2509.15974): new biases on chosen linear layers, attention's values above all.

    y = x W + b + β        β: [out], starts at zero

Unlike BitFit it needs no bias in the base.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax import masks
from peftjax.errors import UserError
from peftjax.methods import targets as default_targets
from peftjax.methods.base import Call, Leaves, Targeted
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class BEFT(Targeted):
  """One learned bias a module."""

  name: ClassVar[str] = "beft"
  kinds: ClassVar[tuple[str, ...]] = ("linear",)
  leaf_names: ClassVar[tuple[str, ...]] = ("beft_bias",)
  learning_rate: ClassVar[float] = 2e-3

  def default_targets(self, model_type: str) -> masks.Patterns:
    return default_targets.VALUES.get(model_type, ())

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del key, base
    return {"beft_bias": jnp.zeros(site.shape[1])}

  def after(self, leaves: Leaves, x: Any, y: jax.Array, site: Site, call: Call) -> jax.Array:
    return y + leaves["beft_bias"].astype(y.dtype)

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del shared
    if "bias" not in base:
      raise UserError(f"beft is no change of the weights at {site.name}: the base has no bias")
    return {"bias": leaves["beft_bias"]}
