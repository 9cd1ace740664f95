"""One model that holds several adapters of its base: their leaves stacked on an axis behind the layers'.

    base        {"query": {"kernel": f32[6, 384, 384]}}
    3 adapters  {"query": {"kernel": f32[6, 384, 384], "lora_a": f32[6, 3, 384, 8], "lora_b": f32[6, 3, 8, 384]}}

`mixed` gives each example of a batch its own, `summed` lets all act at once. LoRAs may differ in rank, scale and target
modules: they are filled up with zeros. Of other methods all settings that shape the leaves agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from peftjax import masks
from peftjax.adapters import lora_form
from peftjax.adapters.abilities import check
from peftjax.adapters.adapter import Adapter, checked_weights, put
from peftjax.adapters.own import LEAVES, PREFIX, Own
from peftjax.errors import UserError
from peftjax.methods.actors import changes_input
from peftjax.methods.attach import leaf_paths
from peftjax.methods.base import Method
from peftjax.methods.bound import Bound
from peftjax.methods.lora import LoRA
from peftjax.methods.selective import Patterns
from peftjax.sites import Site
from peftjax.stacks import unstack
from peftjax.vocabulary import tied_site, untied
from peftjax.wrap.family import is_wrapped

if TYPE_CHECKING:
  from peftjax.model import Model

_NOT_SHAPING = ("init", "init_text", "init_ids", "modules_to_save", "bias", "targets", "exclude", "layers")


@dataclasses.dataclass(frozen=True)
class _Group:
  """Adapters' parts that are one method; `parts[i]` is adapter i's, or None."""

  bound: Bound
  parts: tuple[tuple[Bound, Adapter] | None, ...]


def mixed(base: Model, adapters: Sequence[Adapter]) -> Model:
  """The base with all adapters, of which every example of a batch names one.

      out = mixed(base, [a, b])(input_ids=ids, adapter_ids=[0, 1, 1, -1])          # -1: the base alone

  Each row is what its adapter gives alone; gradients reach only adapters that are named. Leaves of the base that train
  along, such as heads, come along.

  Raises:
    UserError: an adapter is for another model, or two cannot share one tree; it says why.
  """
  return _stacked(base, adapters, along=True)


def summed(base: Model, adapters: Sequence[Adapter], weights: Sequence[float] = (), along: int | None = None) -> Model:
  """The base with all adapters acting at once: y + Σ w (y_adapted - y) at every module.

  Args:
    weights: w of each; default 1.
    along: whose head, biases and whole modules that trained along are used, where the adapters have such.

  Raises:
    UserError: as `mixed`; a method that changes what modules get has nothing to sum.
  """
  weights = checked_weights(weights, len(adapters))
  for method in (method for adapter in adapters for method in adapter.methods):
    if changes_input(method):
      raise UserError(f"{method.name} cannot be summed: it changes what modules get, not only what they give")
  if along is None and any(adapter.along for adapter in adapters):
    path = next(path for adapter in adapters for path in adapter.along)
    raise UserError(f"adapters bring their own {path!r}, which have no sum; say by `along` whose is used")
  model = _stacked(base, adapters, along=False)
  flat = masks.flatten(model.params) | dict(adapters[along].along if along is not None else {})
  bound = []
  for one in model.bound:
    chosen = sorted((place, weight) for place, weight in zip(one.members, weights) if place >= 0)
    bound.append(dataclasses.replace(one, members=(), weights=tuple(weight for _, weight in chosen)))
  return dataclasses.replace(model, params=masks.unflatten(flat), bound=tuple(bound))


def split(model: Model) -> tuple[Adapter, ...]:
  """The adapters of a model that `mixed` made, such as after training, in their order.

  LoRAs keep the zeros that filled them up to one rank and to the same modules.

  Raises:
    UserError: the model does not hold several adapters.
  """
  if not model.bound or not all(one.members for one in model.bound):
    raise UserError("the model does not hold several adapters; `mixed` makes one that does")
  return tuple(_member(model, number) for number in range(len(model.bound[0].members)))


def _member(model: Model, number: int) -> Adapter:
  flat = masks.flatten(model.params)
  bound: list[Bound] = []
  leaves: dict[str, Any] = {}
  along: dict[str, Any] = {}
  for one in model.bound:
    place = one.members[number]
    if place < 0:
      continue
    own = Adapter((one,), {path: flat[path] for path in leaf_paths([one], model.params)})
    taken = {path: jnp.take(flat[path], place, axis=axis) for path, axis in _own_paths(one, own).items()}
    if isinstance(one.method, Own):
      along = {path.replace(f".{PREFIX}", "."): leaf for path, leaf in taken.items()}
    else:
      bound.append(dataclasses.replace(one, members=()))
      leaves |= taken
  names = [name for path in along for name in masks.layer_names(path, model.stacks) if not model.context.in_head(name)]
  free = tuple(name for name in names if all(one.mask(name, None) == masks.FROZEN for one in bound))
  if free:
    bound.append(Bound(Patterns(train=free), ()))  # a mask alone, such as BitFit's, is no part of a stack
  return Adapter(tuple(bound), leaves, along, tied_site(model) is None)


def _stacked(base: Model, adapters: Sequence[Adapter], along: bool) -> Model:
  if not adapters:
    raise UserError("no adapters to stack; expected at least one")
  models = [put(base, adapter) for adapter in adapters]
  if not all(map(tied_site, models)):
    base = untied(base)
    models = [put(base, adapter) for adapter in adapters]
  if any(model.stacks != base.stacks for model in models):
    base = base.unrolled()
  adapters = [_laid_out(adapter, model, base) for adapter, model in zip(adapters, models)]
  leaves: dict[str, Any] = {}
  bound = []
  for group in _groups(base, adapters):
    one, added = _stack(base, group)
    for path in added:
      if path in leaves:
        raise UserError(
          f"two adapters add {path!r} with different settings; train them alike, or convert them by adapters.to_lora"
        )
    bound.append(one)
    leaves |= added
  if along:
    owned, added = _own(base, adapters, bound)
    bound, leaves = [*owned, *bound], {**added, **leaves}
  flat = {**masks.flatten(base.params), **leaves}
  return dataclasses.replace(base, params=masks.unflatten(flat), bound=tuple(bound))


def _laid_out(adapter: Adapter, model: Model, base: Model) -> Adapter:
  """The adapter with its layers apart where the base's are."""
  if model.stacks == base.stacks:
    return adapter

  def apart(leaves: Mapping[str, Any]) -> dict[str, Any]:
    return masks.flatten(unstack(masks.unflatten(leaves), model.layer_stacks))

  bound = model.unrolled().bound
  return dataclasses.replace(adapter, bound=bound, leaves=apart(adapter.leaves), along=apart(adapter.along))


def _groups(base: Model, adapters: Sequence[Adapter]) -> list[_Group]:
  groups: list[tuple[Bound, list[tuple[Bound, Adapter] | None]]] = []
  for number, adapter in enumerate(adapters):
    for one in adapter.bound:
      check((one.method,), "mixed_batch")
      if not one.sites and not one.method.leaf_names:
        continue  # a mask alone; the leaves it trains come along
      _check_stackable(base, one)
      home = next((parts for first, parts in groups if parts[number] is None and _agree(first, one)), None)
      if home is None:
        home = [None] * len(adapters)
        groups.append((one, home))
      home[number] = (one, adapter)
  return [_Group(first, tuple(parts)) for first, parts in groups]


def _check_stackable(base: Model, one: Bound) -> None:
  name = one.method.name
  if one.is_stacked:
    raise UserError(f"{name}: these are several adapters already; stack single ones")
  if one.scale != 1.0 and type(one.method) is not LoRA:
    raise UserError(f"{name}: a scaled adapter cannot share a batch; only lora's scale is part of its leaves")
  inner = [path for path in base.stacks if path not in base.layer_stacks]
  for site in one.sites:
    if any(".".join(site.path).startswith(f"{path}.") for path in inner):
      raise UserError(
        f"{name}: {site.name} is an expert, whose rows are tokens of many examples; no batch can be mixed"
      )


def _agree(first: Bound, other: Bound) -> bool:
  if type(first.method) is not type(other.method):
    return False
  if type(first.method) is LoRA:
    one, another = first.method, other.method
    return (one.dropout, one.ensure_weight_tying) == (another.dropout, another.ensure_weight_tying)  # type: ignore[attr-defined]
  return first.sites == other.sites and _shaping(first.method) == _shaping(other.method)


def _shaping(method: Method) -> dict[str, Any]:
  return {
    field.name: getattr(method, field.name) for field in dataclasses.fields(method) if field.name not in _NOT_SHAPING
  }


def _stack(base: Model, group: _Group) -> tuple[Bound, dict[str, Any]]:
  """(the methods as one, {path: stacked leaves})."""
  held = [part for part in group.parts if part is not None]
  places = iter(range(len(held)))
  members = tuple(-1 if part is None else next(places) for part in group.parts)
  if type(group.bound.method) is LoRA:
    return lora_form.stacked(base, held, members)
  one = group.bound
  found: dict[str, Any] = {}
  for path, axis in _own_paths(one, held[0][1]).items():
    leaves = [adapter.leaves[path] for _, adapter in held if path in adapter.leaves]
    shapes = {leaf.shape for leaf in leaves}
    if len(shapes) > 1 or len(leaves) < len(held):
      raise UserError(f"{one.method.name}: adapters differ in the shape of {path!r}: {shapes}; they share one tree")
    found[path] = jnp.stack(leaves, axis=axis)
  return dataclasses.replace(one, members=members), found


def _own_paths(one: Bound, adapter: Adapter) -> dict[str, int]:
  """{path of one of the method's leaves: the axis behind its layers'}."""
  names = (*one.method.leaf_names, *one.method.buffer_names)
  places: dict[tuple[str, ...], int] = {(one.shared_path,): 0}
  places |= {site.leaf_path: len(site.stack) for site in one.sites}
  paths = {".".join((*prefix, name)): axis for prefix, axis in places.items() for name in names}
  return {path: axis for path, axis in paths.items() if path in adapter.leaves}


# The base's leaves that train along -------------------------------------------------------------------------------


def _own(base: Model, adapters: Sequence[Adapter], bound: Sequence[Bound]) -> tuple[list[Bound], dict[str, Any]]:
  flat = masks.flatten(base.params)
  paths = sorted({path for adapter in adapters for path in adapter.along})
  paths = [path for path in paths if any(adapter.along.get(path, flat[path]) is not flat[path] for adapter in adapters)]
  sites: dict[tuple[str, ...], Site] = {}
  found: dict[str, Any] = {}
  for path in paths:
    site = _owner(base, path)
    _check_ownable(path, site, bound)
    sites[site.path] = site
    values = [adapter.along.get(path, flat[path]) for adapter in adapters]
    module, _, leaf = path.rpartition(".")
    found[f"{module}.{PREFIX}{leaf}"] = jnp.stack(values, axis=len(site.stack))
  if not paths:
    return [], {}
  own = Own(modules=tuple(name for site in sites.values() for name in site.names))
  return [Bound(own, tuple(sites.values()), members=tuple(range(len(adapters))))], found


def _owner(base: Model, path: str) -> Site:
  if is_wrapped(base):
    raise UserError(f"{path!r} trains along, and a batch of a model of your own has one of it; mix adapters without it")
  module, _, leaf = path.rpartition(".")
  owners = [site for site in base.sites if ".".join(site.path) == module]
  callers = [site for site in owners if site.method == "__call__" and site.kind in Own.kinds]
  if leaf not in LEAVES or not callers:
    raise UserError(f"{path!r} trains, and is not a layer's kernel, bias, scale or embedding: a batch has one of it")
  if len(owners) > 1:
    raise UserError(f"{path!r} trains, and is also the output layer: a batch has one of it")
  return callers[0]


def _check_ownable(path: str, site: Site, bound: Sequence[Bound]) -> None:
  for one in bound:
    if changes_input(one.method) and any(other.path == site.path and other.method == "__call__" for other in one.sites):
      raise UserError(f"{path!r} trains in a module whose input {one.method.name} changes: a batch cannot have both")
