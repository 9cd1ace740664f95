"""A user's function as what a model computes with: traced on the shapes it is called with, and run with methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
from jax.extend import core

from peftjax import buffers, masks
from peftjax.errors import UserError
from peftjax.methods.base import Leaves, Method
from peftjax.methods.inject import Entry, Table
from peftjax.own_code import FAILURES, said, shown
from peftjax.sites import Site
from peftjax.trees import Static, joined, parted
from peftjax.wrap.finding import Sites, find
from peftjax.wrap.flow import Flow, Found, Place, Plain
from peftjax.wrap.replay import Acted, Key, Replay, Scope
from peftjax.wrap.views import Tracked

KEPT = 16
"""Traces that a program keeps, one for each set of shapes and flags."""

Run = Callable[[Mapping[str, Any], Mapping[str, Any], Any], Any]
"""(leaves by name, inputs by name, key or None) -> outputs."""


@dataclasses.dataclass(frozen=True)
class Traced:
  """One trace of the function.

  Attributes:
    closed: the program; its inputs are the leaves, the arrays among the inputs, and the key.
    structure: of the outputs.
    flow: where it uses the leaves.
  """

  closed: core.ClosedJaxpr
  structure: Any
  flow: Flow


class Program:
  """A function of leaves and inputs, which methods act in.

  Args:
    function: of leaves by name, inputs by name, and a key or None.
    leaves: dotted path of each -> shape and dtype.
    example_inputs: arrays or shapes by name; what is no array is part of the program.
  """

  def __init__(self, function: Run, leaves: Mapping[str, Any], example_inputs: Mapping[str, Any]) -> None:
    self.function = function
    self.leaves = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
    arrays, static = parted(dict(example_inputs))
    shapes = [jax.ShapeDtypeStruct(one.shape, one.dtype) for one in arrays]
    self.example_inputs: dict[str, Any] = joined(shapes, static)
    self._traces: dict[Any, Traced] = {}
    self.found: Sites = find(self.trace(self.example_inputs).flow, self.parameters)

  @property
  def parameters(self) -> dict[str, Any]:
    """The leaves that are no buffers."""
    return {name: leaf for name, leaf in self.leaves.items() if not buffers.is_buffer(name)}

  def trace(self, inputs: Mapping[str, Any], rng: Any = None, leaves: Mapping[str, Any] | None = None) -> Traced:
    """The program for inputs of these shapes, kept."""
    arrays, static = parted(dict(inputs))
    held = [(leaves or self.leaves)[name] for name in self.leaves]
    try:
      key = (static, _signature(arrays), _signature(held), None if rng is None else _signature([rng]))
      kept = self._traces.get(key)
    except TypeError:  # an input that cannot be hashed
      key, kept = None, None
    if kept is None:
      kept = self._traced(arrays, static, held, rng)
      if key is not None and not any(isinstance(one, jax.core.Tracer) for one in kept.closed.consts):
        while len(self._traces) >= KEPT:
          del self._traces[next(iter(self._traces))]
        self._traces[key] = kept
    return kept

  def _traced(self, arrays: Sequence[Any], static: Static, held: Sequence[Any], rng: Any) -> Traced:
    def flat(values: list[Any], given: list[Any], key: Any) -> Any:
      return self.call(dict(zip(self.leaves, values)), joined(given, static), key)

    closed, shape = jax.make_jaxpr(flat, return_shape=True)(_shapes(held), _shapes(arrays), _shape_of(rng))
    flow = Flow()
    parameters = [Plain() if buffers.is_buffer(name) else Tracked.parameter(name, leaf.shape)
                  for name, leaf in zip(self.leaves, held)]  # fmt: skip
    rest = len(closed.jaxpr.invars) - len(parameters)
    flow.run(closed.jaxpr, [*parameters, *(Plain() for _ in range(rest))])
    return Traced(closed, jax.tree.structure(shape), flow)

  # Running --------------------------------------------------------------------------------------------------------

  def call(self, leaves: Mapping[str, Any], inputs: Mapping[str, Any], rng: Any) -> Any:
    """What the function gives.

    Raises:
      UserError: it fails on these inputs or leaves; the failure itself is the error's cause.
    """
    try:
      return self.function(leaves, inputs, rng)
    except (*FAILURES, flax.errors.FlaxError) as error:
      raise UserError(f"the model fails on {shown(inputs)}: {said(error)}") from error

  def run(self, params: masks.Tree, inputs: Mapping[str, Any], rng: Any, table: Table, read: set[str] | None) -> Any:
    """See `Body.run`."""
    flat = masks.flatten(params)
    leaves = {name: flat[name] for name in self.leaves}
    sites = {(site.path, site.method): site for site in self.found.sites}
    if read is not None:
      read.update(".".join((*site.leaf_path, name)) for key, entries in table.items()
                  for site in (sites[key],) for entry in entries for name in _own(flat, site, entry))  # fmt: skip
    changed = {self.found.leaf_of[key] for key, entries in table.items() for _, one, *_ in entries if one.in_weights}
    acting = {key: entries for key, entries in table.items() if self.found.leaf_of[key] not in changed}
    leaves |= _changed(flat, {key: entries for key, entries in table.items() if key not in acting})
    if not acting:
      return self.call(leaves, inputs, rng)
    traced = self.trace(inputs, rng, leaves)
    acted = self._acted(traced, sites, acting, inputs, rng, leaves)
    own = {key: [_own(flat, sites[key], entry) for entry in entries] for key, entries in acting.items()}
    scope = Scope(own, None if rng is None else jax.random.fold_in(rng, 1))
    replay = Replay(acted, lambda path: _noted(flat, path, read))
    arrays, _ = parted(dict(inputs))
    given = [*leaves.values(), *arrays, *([] if rng is None else [rng])]
    given = [one if hasattr(one, "aval") or hasattr(one, "sharding") else jnp.asarray(one) for one in given]
    outputs = replay.run(traced.closed.jaxpr, traced.closed.consts, given, (), scope)
    return jax.tree.unflatten(traced.structure, outputs)

  def _acted(
    self,
    traced: Traced,
    sites: Mapping[Key, Site],
    table: Mapping[Key, Sequence[Entry]],
    inputs: Mapping[str, Any],
    rng: Any,
    leaves: Mapping[str, Any],
  ) -> dict[Place, Acted]:
    """What acts at each equation of one trace."""
    keys = {(self.found.leaf_of[key], sites[key].kind): key for key in table}
    tables = {leaf for leaf, kind in keys if kind == "unembedding"}
    found: dict[Place, Acted] = {}
    batches = self._batches(table, traced, inputs, rng, leaves)
    for one in traced.flow.uses:
      kind = "unembedding" if one.kind == "linear" and one.leaf in tables else one.kind
      key = keys.get((one.leaf, kind))
      if key is None or one.use is None:
        continue
      site = sites[key]
      self._check_same(one, site)
      bias = traced.flow.biases.get(one.place) if site.has_bias else None
      found[one.place] = Acted(one, site, table[key], bias, batches.get(one.place))
    for key in table:
      if key not in {one.key for one in found.values()}:
        raise UserError(f"{sites[key].name}: with inputs of these shapes the program does not use it as it was traced")
    return found

  def _check_same(self, one: Found, site: Site) -> None:
    view = site.places[0].view
    wanted = one.view.transposed((1, 0)) if site.kind == "unembedding" and one.view is not None else one.view
    if wanted != view or one.why:
      raise UserError(
        f"{site.name}: with inputs of these shapes the program reads the leaf otherwise than it was traced; "
        f"wrap it with example_inputs like these"
      )

  def _batches(
    self, table: Mapping[Key, Sequence[Entry]], traced: Traced, inputs: Mapping[str, Any], rng: Any, leaves: Any
  ) -> dict[Place, int]:
    """Place of a use -> which axis of its x counts the examples: the one that is longer where the batch is.

    Only where each example has its own adapter is it needed, and traced for.
    """
    ids = next((actor.ids for entries in table.values() for actor, *_ in entries if hasattr(actor, "ids")), None)
    if ids is None:
      return {}
    size, arrays = len(ids), parted(dict(inputs))
    longer = [jax.ShapeDtypeStruct((size + 1, *one.shape[1:]), one.dtype)
              if one.ndim and one.shape[0] == size else one for one in arrays[0]]  # fmt: skip
    try:
      other = self.trace(joined(longer, arrays[1]), rng, leaves)
    except UserError:
      return {}
    found = {}
    for one, two in zip(traced.flow.uses, other.flow.uses):
      changed = [axis for axis, (a, b) in enumerate(zip(one.rows, two.rows)) if a != b]
      if len(changed) == 1 and one.rows[changed[0]] == size and two.rows[changed[0]] == size + 1:
        found[one.place] = changed[0]
    return found


def _own(flat: Mapping[str, Any], site: Site, entry: Entry) -> Leaves:
  actor = entry[0]
  paths = {name: ".".join((*site.leaf_path, name)) for name in (*actor.leaf_names, *actor.buffer_names)}
  return {name: flat[path] for name, path in paths.items() if path in flat}


def _noted(flat: Mapping[str, Any], path: str, read: set[str] | None) -> Any:
  if path in flat and read is not None:
    read.add(path)
  return flat.get(path)


def _changed(flat: Mapping[str, Any], table: Table) -> dict[str, Any]:
  """Leaves that methods change as a whole: W + Δ, in float32."""
  found: dict[str, Any] = {}
  for entries in table.values():
    why = next((site.in_weights for _, site, *_ in entries if site.in_weights), "another method changes the weight")
    for entry in entries:
      actor, site, shared, _ = entry
      _check_weights(actor, site, why)
      held = site.base_leaves({**flat, **found})
      step = _delta_of(actor, site, shared)
      wide = site.folded({role: leaf.astype(jnp.float32) for role, leaf in held.items()})
      for role, change in site.unfolded(site.mapped(step)(_own(flat, site, entry), wide)).items():
        stored = held[role]
        found[site.leaf(role)] = (stored.astype(jnp.float32) + change).astype(stored.dtype)
  return found


def _delta_of(actor: Any, site: Site, shared: Leaves) -> Callable[[Leaves, Leaves], Leaves]:
  return lambda own, held: actor.delta(own, held, site.one(0), shared)


def _check_weights(actor: Any, site: Site, why: str) -> None:
  method = getattr(actor, "method", actor)
  if type(method).delta is Method.delta:
    raise UserError(f"{method.name} cannot act on {site.name}: {why}, and the method is no change of the weights")
  for field in _DROPOUTS:
    if getattr(method, field, 0.0):
      raise UserError(
        f"{method.name}.{field} has no place at {site.name}, where it acts on the weight itself: {why}; set {field}=0 "
        f"or exclude it"
      )
  if hasattr(actor, "ids"):
    raise UserError(
      f"{site.name}: each example of a batch cannot have its own {method.name}, which changes the weight itself: {why}"
    )


_DROPOUTS = ("dropout", "rank_dropout", "module_dropout")


def _shape_of(one: Any) -> Any:
  return None if one is None else jax.ShapeDtypeStruct(one.shape, one.dtype)


def _shapes(arrays: Sequence[Any]) -> list[Any]:
  return [_shape_of(one) for one in arrays]


def _signature(arrays: Sequence[Any]) -> tuple[Any, ...]:
  return tuple((tuple(one.shape), one.dtype) for one in arrays)
