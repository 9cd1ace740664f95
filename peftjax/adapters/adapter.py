"""An adapter apart from its base: methods, their leaves, and the base's leaves that trained along.

adapter = take(model)              # a few megabytes
model = put(base, adapter)         # the same outputs as before
put(other, adapter)                # UserError: another model
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from peftjax import masks
from peftjax.errors import UserError, nearest
from peftjax.methods.actors import changes_input, check_scalable
from peftjax.methods.base import Method
from peftjax.methods.bound import Bound
from peftjax.vocabulary import output_path, table_path, tied_site, untied

if TYPE_CHECKING:
  from peftjax.model import Model


@dataclasses.dataclass(frozen=True)
class Adapter:
  """What adapts a base.

  Attributes:
    bound: the methods with their sites.
    leaves: dotted path in the tree -> leaf, of those that the methods added.
    along: the same of the base's own leaves that train along: a head, biases, whole modules.
    own_output: whether the base has an output layer that is not tied to its word embeddings.
  """

  bound: tuple[Bound, ...]
  leaves: Mapping[str, Any]
  along: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  own_output: bool = False

  @property
  def methods(self) -> tuple[Method, ...]:
    """The methods whose leaves it holds, in the order of adding."""
    return tuple(one.method for one in self.bound)


def take(model: Model) -> Adapter:
  """The model's adapter; the arrays are the same."""
  added, groups = model.adapter_paths(), masks.flatten(model.labels())
  flat = masks.flatten(model.params)
  along = {path: flat[path] for path, group in groups.items() if group != masks.FROZEN and path not in added}
  leaves = {path: flat[path] for path in sorted(added)}
  return Adapter(model.bound, leaves, along if model.bound else {}, tied_site(model) is None)


def put(base: Model, adapter: Adapter) -> Model:
  """The base with the adapter; its layers come apart where the adapter's are.

  Raises:
    UserError: the base has an adapter already, or is another model than the adapter was made for.
  """
  if base.bound:
    raise UserError("the model has an adapter already; put another one on disabled(model)")
  base = _with_output(base, adapter)
  if not _fits(base, adapter) and base.layer_stacks:
    base = base.unrolled()
  flat = masks.flatten(base.params)
  if not _fits(base, adapter):
    wanted = next(name for one in adapter.bound for site in one.sites for name in site.names)
    known = [name for site in base.sites for name in site.names]
    raise UserError(f"the adapter is for another model: it acts on {wanted!r}; {nearest(wanted, known)}")
  if tied_site(base) is None and not adapter.own_output and table_path(base) in adapter.along:
    raise UserError(f"the adapter trained {table_path(base)!r} as output layer too, and this model's is one of its own")
  for path, leaf in adapter.along.items():
    if path not in flat or flat[path].shape != leaf.shape:
      found = flat[path].shape if path in flat else None
      raise UserError(f"the adapter is for another model: its {path!r} has shape {leaf.shape}, the model's {found}")
  return dataclasses.replace(
    base, params=masks.unflatten({**flat, **adapter.along, **adapter.leaves}), bound=adapter.bound
  )


def _with_output(base: Model, adapter: Adapter) -> Model:
  """The base untied, if the adapter acts on the output layer's own leaves or trained the word embeddings beside it."""
  site = tied_site(base)
  if site is None or not adapter.own_output:
    return base
  output, table = output_path(base).rpartition(".")[0], ".".join((*site.path, "embedding"))
  acts = any(".".join(other.path) == output for one in adapter.bound for other in one.sites)
  trains = any(path == table or path.startswith(f"{output}.") for path in adapter.along)
  return untied(base) if acts or trains else base


def _fits(base: Model, adapter: Adapter) -> bool:
  sites = [*base.sites, *(site.as_matrix() for site in base.sites if site.kind == "conv")]
  known = {(site.path, site.method, site.stack, site.shape) for site in sites}
  return all(
    (site.path, site.method, site.stack, site.shape) in known for one in adapter.bound for site in one.sites
  ) and all(path in masks.flatten(base.params) for path in adapter.along)


def disabled(model: Model) -> Model:
  """The model without the leaves that its methods added: bitwise the base's outputs.

  Leaves of the base that trained along, such as a head, keep their values; the base that the adapter was put on has the
  others.
  """
  added = model.adapter_paths()
  flat = {path: leaf for path, leaf in masks.flatten(model.params).items() if path not in added}
  return dataclasses.replace(model, params=masks.unflatten(flat), bound=())


def checked_weights(weights: Sequence[float], count: int) -> tuple[float, ...]:
  """A factor for each of `count` adapters; of none, 1 for each.

  Raises:
    UserError: there are more or fewer, or one is not finite.
  """
  found = tuple(float(one) for one in weights) or (1.0,) * count
  if len(found) != count:
    raise UserError(f"{len(found)} weights for {count} adapters; expected one each")
  if odd := [one for one in found if not math.isfinite(one)]:
    raise UserError(f"an adapter's weight is {odd[0]}; expected a finite number")
  return found


def scaled(model: Model, factor: float) -> Model:
  """The model with what its methods change multiplied by `factor`, on top of earlier factors: 0 is the base.

  In activation space: y + factor (y_adapted - y). A method that changes the input of a linear layer, such as OFT, has
  the factor on its change of the weights.

  Raises:
    UserError: a method adds tokens, keys or values, which no factor can go on; the factor is not finite.
  """
  (factor,) = checked_weights((factor,), 1)
  seen: dict[tuple[str, ...], Method] = {}
  for one in model.bound:
    check_scalable(one.method)
    for site in one.sites:
      other = seen.setdefault(site.leaf_path, one.method)
      if other is not one.method and (changes_input(other) or changes_input(one.method)):
        raise UserError(f"{other.name} and {one.method.name} both act on {site.name}: no factor goes on both")
  bound = tuple(dataclasses.replace(one, scale=one.scale * factor) for one in model.bound)
  return dataclasses.replace(model, bound=bound)


def alike(models: Sequence[Model]) -> Sequence[Model]:
  """The models laid out as one: with an output layer of their own, and with layers apart, if one of them has those."""
  models = models if all(map(tied_site, models)) else [untied(model) for model in models]
  if all(model.stacks == models[0].stacks for model in models):
    return models
  return [model.unrolled() if model.layer_stacks else model for model in models]


def check_one_base(models: Sequence[Model]) -> Model:
  """The base that all of the models have, their adapters aside.

  Raises:
    UserError: a leaf differs that none of them trains.
  """
  first = disabled(models[0])
  flat = masks.flatten(first.params)
  trained = {path for model in models for path in take(model).along}
  for number, model in enumerate(models[1:], 2):
    other = masks.flatten(disabled(model).params)
    for path, leaf in flat.items():
      if path in trained:
        continue
      if path not in other or not _same(leaf, other[path]):
        raise UserError(f"model {number} has another base than the first: {path!r} differs")
  return first


def _same(one: Any, other: Any) -> bool:
  if one is other:
    return True
  pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(other)))  # a quantised leaf has several
  return all(a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all()) for a, b in pairs)
