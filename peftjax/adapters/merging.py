"""Folding methods into the base's weights, and taking them out again: pure, in float32, from `Method.delta` alone.

W' = W + f · delta(leaves, W)            merge: f the factor of `scaled`, the sum rounded once to W's dtype
W  = W' - f · delta(leaves)              unmerge, where the change does not depend on W; its inverse otherwise
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax import masks
from peftjax.adapters import verifying
from peftjax.adapters.abilities import check
from peftjax.adapters.adapter import Adapter, disabled
from peftjax.errors import UserError
from peftjax.methods import BOFT, HRA, IA3, OFT, HiRA, MiSS, RoAd
from peftjax.methods.base import Leaves, Method
from peftjax.methods.bound import Bound
from peftjax.methods.experts import OverExperts
from peftjax.quantize_model import dequantize_leaves
from peftjax.sites import Site
from peftjax.vocabulary import OUTPUT, output_path, tied_site, untied

if TYPE_CHECKING:
  from peftjax.model import Model

log = logging.getLogger(__name__)


def merge(model: Model, check: bool = True) -> Model:
  """The model with its methods' changes folded into the base's leaves in float32, and no adapter left.

  A quantised base becomes the float32 arrays that it stands for, with the changes; `quantized` rounds them again. An
  output layer that is tied to the word embeddings becomes one of its own if a method acts on one of the two alone.

  `merge_errors` of the result says of each changed leaf of fewer than 32 bits which share of its change rounding took.

  Args:
    check: compare each site's output with its module merged to that with the methods beside it (`verifying`); nothing
      is compared while JAX traces.

  Raises:
    UserError: a method is not a change of the base's weights, or its `delta` is not the change that it makes.
  """
  is_split = acts_on_one_use(model)
  changes = deltas(model, own_output=is_split)
  base = untied(disabled(model)) if is_split else disabled(model)
  flat = masks.flatten(dequantize_leaves(base.params, jnp.float32))
  can_check = not verifying.is_traced(model.params)
  errors = {}
  for path, change in changes.items():
    exact = flat[path].astype(jnp.float32) + change
    flat[path] = exact.astype(flat[path].dtype)
    if can_check and flat[path].dtype.itemsize < 4:
      errors[path] = verifying.lost(exact, flat[path], change)
  merged = dataclasses.replace(
    base, params=masks.unflatten(flat), quantization_errors={}, merge_errors=errors,
    is_altered=model.is_altered or bool(changes) or _trains_base(model),
  )  # fmt: skip
  if check and can_check:
    verifying.check_merged(model, merged, changes, output_path(model) if is_split else "")
  _warn_of_rounding(merged)
  return merged


def _trains_base(model: Model) -> bool:
  """Whether leaves that came with the base train in place; a head, which adapters hold, is none of them."""
  added, head = model.adapter_paths(), tuple(f"{prefix}." for prefix in model.head)
  trained = (path for path, group in masks.flatten(model.labels()).items() if group != masks.FROZEN)
  return any(path not in added and not path.startswith(head) for path in trained)


def _warn_of_rounding(merged: Model) -> None:
  """Says so where the leaves' dtype cannot hold most of the change."""
  worst = max(merged.merge_errors, key=lambda path: merged.merge_errors[path], default="")
  mean = float(np.mean(list(merged.merge_errors.values()) or [0.0]))
  if mean > 0.5:
    dtype = masks.flatten(merged.params)[worst].dtype
    log.warning(
      "merging kept %.0f %% of the change: it is too small for %s, most of all at %s; load the base in float32",
      100 * (1 - mean),
      dtype,
      worst,
    )


def acts_on_one_use(model: Model) -> bool:
  """Whether a method acts on the word embeddings or on the output layer that is tied to them, and not on both alike."""
  site = tied_site(model)
  return site is not None and any(
    uses and set(uses.values()) != {(INPUT, OUTPUT)} for uses in (_uses(model, one, site) for one in model.bound)
  )


INPUT = "__call__"


def _uses(model: Model, one: Bound, tied: Site) -> dict[str, tuple[str, ...]]:
  """Method's name of each of its sites on the tied table -> the uses of the table that its change there is for.

  A method that acts on both and has no change of its own for the output layer has one for both.
  """
  sites = {site.method: site for site in one.sites if site.path == tied.path}
  if any(site.in_weights for site in sites.values()):
    return {INPUT: (INPUT, OUTPUT)}  # the table itself changes
  if set(sites) == {INPUT, OUTPUT}:
    own, base = site_leaves(masks.flatten(model.params), one, sites[OUTPUT])
    shared = model.params.get(one.shared_path, {})
    if not jax.eval_shape(functools.partial(_change, one, sites[OUTPUT], shared), own, base):
      return {INPUT: (INPUT, OUTPUT)}
  return {method: (method,) for method in sites}


def deltas(model: Model, own_output: bool = False) -> dict[str, jax.Array]:
  """Dotted path of a base leaf -> its float32 change by all of the model's methods; layers stacked as the leaf is.

  Where several methods act on one module, each changes what the ones before it left.

  Args:
    own_output: of the leaves of the `untied` model, where the model's output layer is tied to its word embeddings; the
      change of the embeddings is otherwise that of the table as it is looked up.

  Raises:
    UserError: a method is not a change of the base's weights, or not of those that another one left.
  """
  if any(one.members for one in model.bound):
    raise UserError("the model holds several adapters, one for each example; merge a model of one of them")
  flat = masks.flatten(dequantize_leaves(model.params, jnp.float32))
  for one in model.bound:
    check((one.method,), "merge")
  tied = tied_site(model)
  found: dict[str, jax.Array] = {}
  table: dict[str, jax.Array] = {}  # the same of the tied table as output layer
  for one, site in _in_order(model.bound):
    uses: Mapping[str, tuple[str, ...]] = {}
    if tied is not None and site.path == tied.path:
      uses = _uses(model, one, tied)
    for use in uses.get(site.method, () if uses else (INPUT,)):
      if use == INPUT or own_output:
        _extend(model, flat, one, site, found if use == INPUT else table)
  for change in table.values():
    found[output_path(model)] = change.T
  return found


def _extend(model: Model, flat: Mapping[str, Any], one: Bound, site: Site, found: dict[str, jax.Array]) -> None:
  """Adds a method's change at a site to those of the methods before it."""
  shared = model.params.get(one.shared_path, {})
  own, base = site_leaves(flat, one, site)
  held = {name: leaf.astype(jnp.float32) + found.get(site.leaf(name), 0.0) for name, leaf in base.items()}
  folded = site.folded(held)
  if any(site.leaf(name) in found for name in base):
    _check_second(one, site, shared, own, folded)
  for name, delta in _changes(one, site, shared, own, folded).items():
    path = site.leaf(name)
    found[path] = found[path] + delta if path in found else delta


def _in_order(bound: Sequence[Bound]) -> list[tuple[Bound, Site]]:
  """The methods' sites in the order in which the forward pass applies them to a weight.

  x W becomes ((x M₁) M₂) W before anything is added to or multiplied with the outputs, in the methods' order.
  """
  inputs = [(one, site) for one in reversed(bound) for site in one.sites if _turns_input(one, site)]
  return [*inputs, *((one, site) for one in bound for site in one.sites if not _turns_input(one, site))]


def _turns_input(one: Bound, site: Site) -> bool:
  """Whether all that the method does at a site is to multiply the input by a matrix."""
  if one.scale != 1.0 or site.in_weights:
    return False  # it acts by its change of the weights
  method = one.method
  turns = isinstance(method, OFT | HRA) and not method.acts_by_delta(site)
  return turns or (isinstance(method, IA3) and bool(method.settings(site.names[0])))


def _check_second(one: Bound, site: Site, shared: Leaves, own: Leaves, held: Leaves) -> None:
  """Refuses a method whose change is made of the base's own weights where another method has changed them already."""
  acts_on_outputs = isinstance(one.method, IA3 | RoAd) and one.scale == 1.0
  if _turns_input(one, site) or acts_on_outputs:
    return
  own, held = jax.tree.map(lambda leaf: leaf[(0,) * len(site.stack)], (own, held))
  if _reads_base(one.method, own, held, site.one(0), shared):
    raise UserError(
      f"{one.method.name} cannot be merged at {site.name} behind another method: it is made of the base's own weights; "
      f"add it first"
    )


def _change(one: Bound, site: Site, shared: Leaves, own: Leaves, held: Leaves) -> Leaves:
  """The change of one layer's leaves, as methods see them."""
  return one.actor().delta(own, held, site, shared)


def _changes(one: Bound, site: Site, shared: Leaves, own: Leaves, folded: Leaves) -> Leaves:
  """The change of the base's leaves at a site as they are stored, from all layers' as methods see them."""
  change = functools.partial(_change, one, site.one(0), shared)
  return site.unfolded(site.mapped(change)(own, folded))


def site_leaves(flat: Mapping[str, Any], one: Bound, site: Site) -> tuple[Leaves, Leaves]:
  """(the method's leaves, the base's) at a site, layers stacked."""

  names = (*one.method.leaf_names, *one.method.buffer_names)
  own = {name: flat[path] for name in names if (path := ".".join((*site.leaf_path, name))) in flat}
  return own, site.base_leaves(flat)


# Taking out -------------------------------------------------------------------------------------------------------


def unmerge(merged: Model, adapter: Adapter) -> Model:
  """The base from a merged model and the adapter that was merged into it, equal but for rounding.

  Raises:
    UserError: the adapter leaves no way back: the change replaces what was there, or it cannot be solved for.
  """
  if merged.bound:
    raise UserError("the model has a separate adapter; unmerge takes a merged one")
  heads = merged.head
  for path in adapter.along:
    if not any(path.startswith(f"{head}.") for head in heads):
      raise UserError(f"{path!r} trained in place, so that the base's value is not kept; keep the model instead")
  flat = masks.flatten(merged.params)
  for one, site in reversed(_in_order(adapter.bound)):
    if site.method == OUTPUT and (site.path, OUTPUT) not in {(other.path, other.method) for other in merged.sites}:
      raise UserError(f"{one.method.name} acted on the tied output layer, which merging made one of its own")
    common = masks.unflatten(adapter.leaves).get(one.shared_path, {})
    own, after = site_leaves({**flat, **adapter.leaves}, one, site)
    held = site.folded({name: leaf.astype(jnp.float32) for name, leaf in after.items()})
    undone = site.mapped(functools.partial(_undone, one, site.one(0), common))(own, held)
    if site.places:  # a view of a part of a leaf
      undone = {name: leaf - held[name] for name, leaf in undone.items()}
    for name, leaf in site.unfolded(undone).items():
      path = site.leaf(name)
      whole = flat[path].astype(jnp.float32) + leaf if site.places else leaf
      flat[path] = whole.astype(flat[path].dtype)
  return dataclasses.replace(merged, params=masks.unflatten(flat))


def _undone(one: Bound, site: Site, shared: Leaves, own: Leaves, after: Leaves) -> Leaves:
  """The base's leaves of one layer's site, as methods see them."""
  method = one.method
  if not _reads_base(method, own, after, site, shared):
    return {name: after[name] - change for name, change in _change(one, site, shared, own, after).items()}
  reason = cannot_undo(method)
  if reason:
    raise UserError(reason)
  if one.scale != 1.0:
    raise UserError(f"{method.name} cannot be taken out at a scale of {one.scale}: its change depends on the base")
  inverse = next(_INVERSES[kind] for kind in type(method).__mro__ if kind in _INVERSES)

  def back(own: Leaves, after: Leaves) -> Leaves:
    return inverse(method, own, after, site)

  return (jax.vmap(back) if site.experts else back)(own, after)


def cannot_undo(method: Method) -> str:
  """Why `unmerge` cannot take the method out where its change depends on the base; "" if it can."""
  if any(kind in _INVERSES for kind in type(method).__mro__):
    return ""
  return f"{method.name} cannot be taken out: its change depends on the base's weights; keep the model instead"


def _reads_base(method: Method, own: Leaves, base: Leaves, site: Site, shared: Leaves) -> bool:
  """Whether the change depends on the base's values, and not only on their shapes."""
  whole = jax.make_jaxpr(lambda held: OverExperts(method).delta(own, held, site, shared))(base).jaxpr
  inputs = set(whole.invars)
  read = {one for equation in whole.eqns for one in equation.invars if not hasattr(one, "val")}
  return bool(inputs & (read | {one for one in whole.outvars if not hasattr(one, "val")}))


def _divided(method: Method, own: Leaves, after: Leaves, site: Site) -> Leaves:
  """Where each weight is multiplied by a number: that of a base of ones."""
  ones = {name: jnp.ones_like(leaf) for name, leaf in after.items()}
  changes = method.delta(own, ones, site, {})
  return {name: after[name] / (1.0 + change) for name, change in changes.items()}


def _turned_inputs(method: Method, own: Leaves, after: Leaves, site: Site) -> Leaves:
  """Where the kernel is multiplied by a matrix from the left: that which makes of an identity."""
  identity = jnp.eye(site.shape[0])
  matrix = identity + method.delta(own, {"kernel": identity}, site, {})["kernel"]
  return {"kernel": jnp.linalg.solve(matrix, after["kernel"])}


def _turned_and_scaled_inputs(method: Any, own: Leaves, after: Leaves, site: Site) -> Leaves:
  identity = jnp.eye(site.shape[0])
  unscaled = {**own, "boft_s": jnp.ones(site.shape[0])}
  matrix = identity + method.delta(unscaled, {"kernel": identity}, site, {})["kernel"]
  return {"kernel": jnp.linalg.solve(matrix, after["kernel"] / own["boft_s"])}


def _turned_outputs(method: Method, own: Leaves, after: Leaves, site: Site) -> Leaves:
  identity = jnp.eye(site.shape[1])
  matrix = identity + method.delta(own, {"kernel": identity}, site, {})["kernel"]
  return {name: jnp.linalg.solve(matrix.T, leaf.T).T for name, leaf in after.items()}


def _bat(method: Any, own: Leaves, after: Leaves, site: Site) -> Leaves:
  """W'_ao = W_ao + B_oᵀ W_ao + B_oᵀ, shard by shard."""
  rank, (features_in, features_out) = method.rank, site.shape
  transposed = jnp.swapaxes(own["miss_block"], 1, 2)
  shards = after["kernel"].reshape(features_in // rank, rank, features_out // rank, rank).transpose(0, 2, 1, 3)
  solved = jnp.linalg.solve(jnp.broadcast_to(jnp.eye(rank) + transposed, shards.shape), shards - transposed)
  return {"kernel": solved.transpose(0, 2, 1, 3).reshape(site.shape)}


_INVERSES: dict[type[Method], Callable[[Any, Leaves, Leaves, Site], Leaves]] = {
  IA3: _divided,
  HiRA: _divided,
  OFT: _turned_inputs,
  HRA: _turned_inputs,
  BOFT: _turned_and_scaled_inputs,
  RoAd: _turned_outputs,
  MiSS: _bat,
}
