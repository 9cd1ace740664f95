"""Several adapters of one method, their leaves stacked on an axis [A, ...] behind the layers': all of them summed."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.methods.base import Call, InPlaceOf, Leaves, Method
from peftjax.methods.calls import alone
from peftjax.methods.experts import OverExperts
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True)
class Stack(InPlaceOf):
  """A method of which there are several adapters."""

  @property
  def each(self) -> OverExperts:
    """The method, at sites with experts at each of them."""
    return OverExperts(self.method)


@dataclasses.dataclass(frozen=True)
class Summed(Stack):
  """All of the stacked adapters act at once: y + Σ_a w_a (after_a(x, y) - y).

  Attributes:
    weights: w, one for each adapter.
  """

  weights: tuple[float, ...]

  def acts_by_delta(self, site: Site) -> bool:
    """Whether the method acts by its change of the weights."""
    return self.method.acts_by_delta(site)

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    """Σ_a w_a delta_a over the adapters a: leaves shaped as the base's, float32."""
    changes = jax.vmap(lambda own, common: self.each.delta(own, base, site, common))(dict(leaves), dict(shared))
    return {name: jnp.tensordot(jnp.asarray(self.weights), change, 1) for name, change in changes.items()}

  def before(self, leaves: Leaves, x: Any, site: Site, call: Call) -> Any:
    """The input as it is: adapters act on outputs, each from the plain input."""
    if self.method.only_notes:
      self.method.before({name: leaf[0] for name, leaf in leaves.items()}, x, site, call)
    return x

  def after(self, leaves: Leaves, x: Any, y: Any, site: Site, call: Call) -> Any:
    """The output with what every adapter adds to the base's."""
    if type(self.method).after is Method.after:
      return y
    others = elsewhere(self.method, leaves, call)
    key = call.key()
    keys = None if key is None else jax.random.split(key, len(self.weights))
    before = dict(call.notes)

    def one(own: Leaves, other: Leaves, shared: Leaves, key: Any) -> Any:
      return self.each.after(own, x, y, site, alone(call, own | other, shared, key, dict(before)))

    weights = jnp.asarray(self.weights)

    def total(base: Any, each: Any) -> Any:
      return base + jnp.tensordot(weights.astype(base.dtype), each - base, 1)

    return jax.tree.map(total, y, jax.vmap(one)(dict(leaves), others, dict(call.shared), keys))


def elsewhere(method: Method, leaves: Leaves, call: Call) -> Leaves:
  """Stacked leaves that the method reads from its module though they are another site's: a tied table's."""
  return {name: leaf for name in method.leaf_names if name not in leaves and (leaf := call.base(name)) is not None}
