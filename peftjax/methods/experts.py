"""Methods at maps that hold one matrix for each expert: each expert has leaves of its own, and methods see one matrix.

x [..., E, in], kernel [E, in, out], lora_a [E, in, r]        as the site folds them
create, before, after, delta, penalty: the method's, mapped over E
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.methods.base import Call, InPlaceOf, Leaves, Method
from peftjax.methods.calls import alone
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True)
class OverExperts(InPlaceOf):
  """A method at sites of any kind; where a site has experts, at each of them apart."""

  def acts_by_delta(self, site: Site) -> bool:
    """Whether the method acts there by `delta` alone, see `Method.acts_by_delta`."""
    return self.method.acts_by_delta(site)

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    """The method's leaves of one layer's site with experts, [E, ...], each drawn with a key of its own."""
    keys = jax.random.split(key, site.experts)
    return jax.vmap(lambda one, leaves: self.method.create(one, site, leaves))(keys, base)

  def before(self, leaves: Leaves, x: Any, site: Site, call: Call) -> Any:
    """The input, each expert's as the method has it."""
    if not site.experts or type(self.method).before is Method.before:
      return self.method.before(leaves, x, site, call)
    return _mapped(lambda own, one, x: self.method.before(own, x, site, one), leaves, site, call, x)

  def after(self, leaves: Leaves, x: Any, y: Any, site: Site, call: Call) -> Any:
    """The output, each expert's as the method has it."""
    if not site.experts or type(self.method).after is Method.after:
      return self.method.after(leaves, x, y, site, call)
    return _mapped(lambda own, one, x, y: self.method.after(own, x, y, site, one), leaves, site, call, x, y)

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    """The method's, [E, ...] where the site has experts."""
    if not site.experts:
      return self.method.delta(leaves, base, site, shared)
    return jax.vmap(lambda own, held: self.method.delta(own, held, site, shared))(dict(leaves), dict(base))

  def penalty(self, leaves: Leaves, site: Site) -> jax.Array | float:
    """The method's, the mean over experts."""
    if not site.experts:
      return self.method.penalty(leaves, site)
    return jnp.mean(jax.vmap(lambda own: self.method.penalty(own, site))(dict(leaves)))


def _mapped(step: Callable[..., Any], leaves: Leaves, site: Site, call: Call, *values: jax.Array) -> jax.Array:
  """step(leaves, call, *values) of every expert, of which the values have an axis before the last."""
  held = {name: leaf for name in ("kernel", "bias") if (leaf := call.base(name)) is not None}
  key = call.key()
  keys = None if key is None else jax.random.split(key, site.experts)

  def one(own: Leaves, base: Leaves, key: Any, rows: tuple[jax.Array, ...]) -> Any:
    return step(own, alone(call, base, call.shared, key, call.notes), *rows)

  found: jax.Array = jax.vmap(one, in_axes=(0, 0, None if keys is None else 0, -2), out_axes=-2)(
    dict(leaves), held, keys, values
  )
  return found
