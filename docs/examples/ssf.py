"""Scaling and shifting features (Lian et al. 2022, arXiv 2210.08823), as a method from outside the package."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from peftjax.methods import Targeted


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSF(Targeted):
  """y = (x W + b) ⊙ γ + β."""

  name: ClassVar[str] = "ssf"
  kinds: ClassVar[tuple[str, ...]] = ("linear",)
  leaf_names: ClassVar[tuple[str, ...]] = ("ssf_scale", "ssf_shift")
  learning_rate: ClassVar[float] = 5e-3

  def default_targets(self, model_type):
    return ("query", "key", "value")

  def create(self, key, site, base):
    return {"ssf_scale": jnp.ones(site.shape[-1]), "ssf_shift": jnp.zeros(site.shape[-1])}

  def after(self, leaves, x, y, site, call):
    return y * leaves["ssf_scale"] + leaves["ssf_shift"]

  def delta(self, leaves, base, site, shared):
    change = leaves["ssf_scale"] - 1.0
    return {"kernel": change * base["kernel"], "bias": change * base["bias"] + leaves["ssf_shift"]}
