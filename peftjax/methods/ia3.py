"""(IA)³: Infused Adapter by Inhibiting and Amplifying Inner Activations (Liu et al. 2022, arXiv 2205.05638).

    attention's keys and values: y = (x W + b) ⊙ l        feed-forward's second layer: y = (x ⊙ l) W + b

l starts at one, so the model starts as the base, bitwise.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax import masks
from peftjax.errors import UserError
from peftjax.methods import targets as default_targets
from peftjax.methods.base import Call, Context, Leaves, Targeted
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class IA3(Targeted):
  """One learned vector a site.

  Attributes:
    feedforward: those of the targets whose input is scaled instead of the output; None: the architecture's default.
  """

  name: ClassVar[str] = "ia3"
  kinds: ClassVar[tuple[str, ...]] = ("linear", "conv")
  windows: ClassVar[tuple[int, ...]] = (2, 3)
  grouped: ClassVar[bool] = True
  leaf_names: ClassVar[tuple[str, ...]] = ("ia3_l",)
  learning_rate: ClassVar[float] = 1e-2

  feedforward: masks.Patterns | None = None

  def default_targets(self, model_type: str) -> masks.Patterns:
    return default_targets.IA3.get(model_type, ())

  def bind(self, context: Context) -> Self:
    bound = super().bind(context)
    feedforward = self.feedforward
    if feedforward is None:
      feedforward = default_targets.IA3_FEEDFORWARD.get(context.model_type, ()) if not self.targets else ()
      defaults = default_targets.IA3_FEEDFORWARD.get(context.model_type, ())
      if self.targets and not isinstance(self.targets, str):
        feedforward = tuple(entry for entry in defaults if entry in bound.targets)
    elif feedforward:
      feedforward = context.spelled(feedforward, [name for site in bound.candidates(context) for name in site.names])
      targeted = {name: bound.wants(name, site, context) for site in bound.candidates(context) for name in site.names}
      for pattern, hit in masks.match_table(feedforward, list(targeted), "ia3.feedforward").items():
        if not any(targeted[name] for name in hit):
          raise UserError(f"ia3.feedforward: {pattern!r} matches no targeted module; add it to targets")
    return dataclasses.replace(bound, feedforward=feedforward)

  def settings(self, name: str) -> bool:
    """Whether the module's input is scaled."""
    return bool(self.feedforward) and masks.matches(self.feedforward or (), name)

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del key, base
    *_, source, target = site.shape
    return {"ia3_l": jnp.ones(source * site.groups if self.settings(site.names[0]) else target)}

  def before(self, leaves: Leaves, x: jax.Array, site: Site, call: Call) -> jax.Array:
    return x * leaves["ia3_l"].astype(x.dtype) if self.settings(site.names[0]) else x

  def after(self, leaves: Leaves, x: jax.Array, y: jax.Array, site: Site, call: Call) -> jax.Array:
    return y if self.settings(site.names[0]) else y * leaves["ia3_l"].astype(y.dtype)

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del shared
    change = leaves["ia3_l"] - 1.0
    if self.settings(site.names[0]):
      of_groups = change.reshape(site.groups, -1).T  # [in of one group, groups]
      return {"kernel": jnp.repeat(of_groups, site.shape[-1] // site.groups, axis=1) * base["kernel"]}
    return {name: change * base[name] for name in ("kernel", "bias") if name in base}
