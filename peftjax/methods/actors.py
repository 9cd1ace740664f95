"""What acts at a site in a forward pass: a method, or a method changed as a whole, such as scaled."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax

from peftjax.errors import UserError
from peftjax.methods.base import Call, InPlaceOf, Leaves, Method
from peftjax.methods.experts import OverExperts
from peftjax.sites import Site


class Actor(Protocol):
  """The part of `Method` that a forward pass needs."""

  @property
  def leaf_names(self) -> tuple[str, ...]:
    """The leaves it reads that train."""

  @property
  def buffer_names(self) -> tuple[str, ...]:
    """The leaves it reads that do not train."""

  def before(self, leaves: Leaves, x: Any, site: Site, call: Call) -> Any:
    """The input that the base gets."""

  def after(self, leaves: Leaves, x: Any, y: Any, site: Site, call: Call) -> Any:
    """The output, from the original input and the base's output."""

  def acts_by_delta(self, site: Site) -> bool:
    """Whether it acts by `delta` alone, in place of `before` and `after`."""

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    """float32 changes of the base module's leaves, by name."""


def changes_input(method: Method) -> bool:
  """Whether the method changes what its sites get, and not only what they give."""
  return type(method).before is not Method.before and not method.only_notes


def has_delta(method: Method) -> bool:
  """Whether the method is a change of the base's weights that it can compute."""
  return type(method).delta is not Method.delta


def interpolated(y: Any, changed: Any, factor: Any) -> Any:
  """y + factor (changed - y), leaf by leaf; what did not change stays as it is."""
  return jax.tree.map(lambda one, other: one if one is other else one + factor * (other - one), y, changed)


@dataclasses.dataclass(frozen=True)
class Scaled(InPlaceOf):
  """A method whose change of the outputs, or of the weights, is multiplied by a factor.

  On outputs: y + f (after(x, y) - y). Where the method changes the input of a linear layer, the factor is on its
  `delta`, with which the layer's product is taken.
  """

  factor: float

  def before(self, leaves: Leaves, x: Any, site: Site, call: Call) -> Any:
    """The input as it is; notes, such as an attention mask, are taken all the same."""
    if self.method.only_notes:
      self.method.before(leaves, x, site, call)
    return x

  def after(self, leaves: Leaves, x: Any, y: Any, site: Site, call: Call) -> Any:
    """y + f (after(x, y) - y)."""
    return interpolated(y, OverExperts(self.method).after(leaves, x, y, site, call), self.factor)

  def acts_by_delta(self, site: Site) -> bool:
    """The method's, or that it changes the input of a linear map or a convolution."""
    return self.method.acts_by_delta(site) or (site.kind in ("linear", "conv") and changes_input(self.method))

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    """f times the method's."""
    changes = OverExperts(self.method).delta(leaves, base, site, shared)
    return {name: self.factor * change for name, change in changes.items()}


def check_scalable(method: Method) -> None:
  """Raises a `UserError` if a factor on what the method changes has no meaning: it adds tokens, keys or values."""
  if changes_input(method) and not has_delta(method):
    raise UserError(
      f"{method.name} cannot be scaled: it changes what the model's layers get, by no number that a factor could go on"
    )
