"""A method bound to a model: with its defaults filled in, and the sites it acts on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax import masks
from peftjax.errors import UserError
from peftjax.methods.actors import Actor, Scaled
from peftjax.methods.base import BIAS, Context, Method
from peftjax.methods.experts import OverExperts
from peftjax.methods.per_example import PerExample
from peftjax.methods.stacked import Summed
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True)
class Bound:
  """A method bound to a model, with the sites it acts on.

  Attributes:
    scale: factor on all that the method changes.
    members: of several adapters whose leaves are stacked behind the layers' axes: each one's place in the stack, -1 if
      it has no part in this method. A batch's `adapter_ids` count these. Empty: there is one adapter, not stacked.
    weights: all of the stacked adapters act, summed with these weights, instead of one for each example.
  """

  method: Method
  sites: tuple[Site, ...]
  scale: float = 1.0
  members: tuple[int, ...] = ()
  weights: tuple[float, ...] = ()

  def mask(self, name: str, leaf: Any) -> str:
    """The method's mask, and the biases that its `bias` setting frees: "all", or "<method>_only" at its sites."""
    group = self.method.mask(name, leaf)
    mode = getattr(self.method, "bias", "none")
    module, _, tail = name.rpartition(".")
    if group != masks.FROZEN or mode == "none" or tail != "bias":
      return group
    return BIAS if mode == "all" or self._is_own(name, module) else masks.FROZEN

  def _is_own(self, name: str, module: str) -> bool:
    """Whether a bias is that of one of its sites."""
    places = {one for site in self.sites for one in site.biases}
    return name in places or any(module in masks.called(one) for site in self.sites for one in site.names)

  def actor(self, adapter_ids: jax.Array | None = None) -> Actor:
    """What acts at the sites: the method, scaled where it is, or several adapters of it.

    Args:
      adapter_ids: int[B], each example's adapter, -1 for none.
    """
    if self.weights:
      return Summed(self.method, self.weights)
    if self.members:
      if adapter_ids is None:
        raise UserError(f"the model holds {len(self.members)} adapters; say by adapter_ids which each example has")
      local = jnp.asarray(self.members)[jnp.maximum(adapter_ids, 0)]
      return PerExample(self.method, jnp.where(adapter_ids < 0, -1, local))
    return OverExperts(self.method) if self.scale == 1.0 else Scaled(self.method, self.scale)

  @property
  def is_stacked(self) -> bool:
    """Whether there are several adapters' leaves."""
    return bool(self.members or self.weights)

  @property
  def shared_path(self) -> str:
    """Where the leaves that its sites share stand in the tree."""
    return self.method.name


def bind(methods: Sequence[Method], context: Context) -> tuple[Bound, ...]:
  """The methods with their defaults filled in and their sites chosen.

  Raises:
    UserError: a pattern without match.
    masks.LayersDiffer: a method treats the layers of one stack differently.
  """
  bound = []
  for method in methods:
    ready = method.bind(context)
    bound.append(Bound(ready, tuple(ready.select(context))))
  return tuple(bound)
