"""Several adapters of one method at once: one for each example of a batch, or all of them summed.

Their leaves are stacked on an axis [A, ...] behind the layers'. For a batch in which every example names its adapter,
each example's leaves are gathered and the method's `before` and `after` are mapped over the examples, each as a batch
of one. Products with them are batched products, so that they cost what one adapter's do. An example that names none
(-1) is the base's; where a method adds tokens, keys or values, hers are put last and masked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.errors import UserError
from peftjax.methods.base import Call, Leaves, Method
from peftjax.methods.calls import alone
from peftjax.methods.stacked import Stack, elsewhere
from peftjax.sites import ARRAY_KINDS, Site, Stream


@dataclasses.dataclass(frozen=True, eq=False)
class PerExample(Stack):
  """Every example has its own of the stacked adapters.

  Attributes:
    ids: int[B], each example's; negative for none.
  """

  ids: jax.Array

  def acts_by_delta(self, site: Site) -> bool:
    """Never: examples differ in it."""
    del site
    return False

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    """Raises a `UserError`: examples differ in their weights."""
    raise UserError(f"{self.method.name}: a batch of several adapters is no change of the weights; use one of them")

  def before(self, leaves: Leaves, x: Any, site: Site, call: Call) -> Any:
    """Each example's input as its adapter has it."""
    method = self.method
    if type(method).before is Method.before or method.acts_by_delta(site):
      return x
    rest, value = _parted(x, site)
    value = self._checked(value, site)

    def step(own: Leaves, alone: Call, one: Any) -> Any:
      new = self.each.before(own, _joined(rest, one), site, alone)
      return {name: new[name] for name in one} if rest else new

    new = self._map(step, leaves, call, site, value)
    if site.kind in ARRAY_KINDS:
      return _where(self.ids < 0, value, new, 0)
    if site.kind == "attention":
      return self._masked(x, new)
    if site.kind != "model":
      return {**rest, **new}
    for stream in site.streams:
      new = self._moved(x, new, stream, call)
    return new

  def after(self, leaves: Leaves, x: Any, y: Any, site: Site, call: Call) -> Any:
    """Each example's output as its adapter has it."""
    method = self.method
    rest, value = _parted(x, site)
    value = self._checked(value, site)
    if method.acts_by_delta(site):
      return self._multiplied(leaves, value, y, site, call)
    if type(method).after is Method.after:
      return y
    if site.kind == "model" and method.only_notes:
      return method.after({}, x, y, site, call)  # the pass is over, and with it what was noted

    def step(own: Leaves, alone: Call, one: Any, base: Any) -> Any:
      return self.each.after(own, _joined(rest, one), base, site, alone)

    new = self._map(step, leaves, call, site, value, self._checked(y, site))
    flat, treedef = jax.tree_util.tree_flatten_with_path(y)
    kept = [
      old if old is changed else self._chosen(old, changed, _length_axis(path, site))
      for (path, old), changed in zip(flat, jax.tree.leaves(new))
    ]
    return jax.tree.unflatten(treedef, kept)

  def _chosen(self, old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
    """`new`, for examples without an adapter `old`, of which the room of others' virtual tokens is cut off at the end.

    Args:
      axis: that of length.
    """
    if old.ndim > axis and old.shape[axis] > new.shape[axis]:
      old = jax.lax.slice_in_dim(old, 0, new.shape[axis], axis=axis)
    return _where(self.ids < 0, old, new, axis - 1)

  def _checked(self, value: Any, site: Site) -> Any:
    """Arrays of one row for all examples are given to each."""
    if site.kind not in ARRAY_KINDS or value.shape[0] == len(self.ids):
      return value
    if value.shape[0] == 1:
      return jnp.broadcast_to(value, (len(self.ids), *value.shape[1:]))
    raise UserError(
      f"adapter_ids has {len(self.ids)} entries, and {site.name} gets {value.shape[0]} rows; expected one each"
    )

  def _multiplied(self, leaves: Leaves, x: jax.Array, y: jax.Array, site: Site, call: Call) -> jax.Array:
    """Where the method acts by its delta: each adapter's is computed once."""
    held = {name: leaf.astype(jnp.float32) for name in ("kernel", "bias") if (leaf := call.base(name)) is not None}
    change = jax.vmap(lambda own, shared: self.each.delta(own, held, site, shared)["kernel"])
    chosen = change(leaves, dict(call.shared))[jnp.maximum(self.ids, 0)].astype(y.dtype)
    update = jax.vmap(lambda row, kernel: call.product(row[None], kernel)[0])(x.astype(y.dtype), chosen)
    return _where(self.ids < 0, y, y + update.astype(y.dtype), 0)

  def _map(self, step: Callable[..., Any], leaves: Leaves, call: Call, site: Site, *values: Any) -> Any:
    """step(leaves, call, *values) of every example alone, as a batch of one; the notes it makes are kept for all."""
    size, picked = len(self.ids), jnp.maximum(self.ids, 0)
    others = elsewhere(self.method, leaves, call)
    own, shared, others = jax.tree.map(lambda leaf: leaf[picked], (dict(leaves), dict(call.shared), others))
    key = call.key()
    keys = None if key is None else jax.random.split(key, size)
    flat, treedef = jax.tree_util.tree_flatten_with_path(values)
    given = [leaf for _, leaf in flat]
    axes = [_batch_axis(path, leaf, size, site) for path, leaf in flat]
    mapped = [None if axis is None else jnp.expand_dims(jnp.moveaxis(leaf, axis, 0), axis + 1)
              for leaf, axis in zip(given, axes)]  # fmt: skip
    plan: list[Any] = []

    def one(own: Leaves, shared: Leaves, others: Leaves, key: Any, row: jax.Array, rows: list[Any]) -> list[Any]:
      leaves_in = [leaf if row is None else row for leaf, row in zip(given, rows)]
      notes = _Notes(call.notes, row, size)
      single = alone(call, own | others, shared, key, notes)
      result = step(own, single, *jax.tree.unflatten(treedef, leaves_in))
      out, out_tree = jax.tree_util.tree_flatten_with_path((result, notes.made))
      places = {id(leaf): index for index, leaf in enumerate(leaves_in)}
      plan[:] = [out_tree, [(path, places.get(id(leaf)), leaf) for path, leaf in out]]
      return [leaf for _, leaf in out if id(leaf) not in places and hasattr(leaf, "shape")]

    computed = iter(jax.vmap(one)(own, shared, others, keys, jnp.arange(size), mapped))
    whole = []
    for path, place, leaf in plan[1]:
      if place is not None:
        whole.append(given[place])
      elif not hasattr(leaf, "shape"):
        whole.append(leaf)
      else:
        axis = _length_axis(path, site) - 1
        whole.append(jnp.moveaxis(jnp.squeeze(next(computed), axis + 1), 0, axis))
    result, made = jax.tree.unflatten(plan[0], whole)
    call.notes.update(made)
    return result

  def _masked(self, x: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Attention's arguments with new keys hidden from examples that have none."""
    slots = new["k"].shape[1]
    count = slots - x["k"].shape[1]
    visible = (self.ids >= 0)[:, None, None, None] | (jnp.arange(slots) >= count)
    return {**new, "mask": visible if new.get("mask") is None else visible & new["mask"]}

  def _moved(self, x: dict[str, Any], new: dict[str, Any], stream: Stream, call: Call) -> dict[str, Any]:
    """The model site's inputs where examples without virtual tokens have their room behind their own, masked."""
    none, length, total = self.ids < 0, x[stream.embeds].shape[1], new[stream.embeds].shape[1]
    positions = new.get(stream.positions)
    if total == length:
      if positions is None or positions is x.get(stream.positions):
        return new
      shift = self.method.num_virtual_tokens  # type: ignore[attr-defined]
      return {**new, stream.positions: _where(none, positions - shift, positions, 0)}
    if not stream.mask:
      raise UserError(f"{self.method.name}: without a mask, examples with and without virtual tokens share no batch")

    def own(values: jax.Array) -> jax.Array:
      return jnp.pad(values, [(0, 0), (0, total - length)] + [(0, 0)] * (values.ndim - 2))

    moved = dict(new)
    for name in (stream.embeds, *stream.along):
      if new.get(name) is not None:
        moved[name] = _where(none, own(x[name]), new[name], 0)
    mask = new.get(stream.mask)
    mask = jnp.ones((len(self.ids), total), jnp.int32) if mask is None else mask
    own_mask = x.get(stream.mask)
    own_mask = jnp.ones((len(self.ids), length), mask.dtype) if own_mask is None else own_mask
    moved[stream.mask] = _where(none, own(own_mask), mask, 0)
    if stream.positions and hasattr(call.module, "default_positions") and positions is None:
      counted = call.module.default_positions({**new, stream.mask: mask})
      given = x.get(stream.positions)
      given = call.module.default_positions(x) if given is None else given
      if counted is not None and given is not None:
        moved[stream.positions] = _where(none, own(given), counted, 0)
    return moved


class _Notes(dict[str, Any]):
  """What one example sees of the notes: its row of those that there are, read when asked for, and its own new ones."""

  def __init__(self, outer: dict[str, Any], row: jax.Array, size: int) -> None:
    super().__init__()
    self.outer, self.row, self.size = outer, row, size
    self.made: dict[str, Any] = {}

  def __getitem__(self, name: str) -> Any:
    if name in self.made:
      return self.made[name]
    return jax.tree.map(
      lambda leaf: leaf if _batch_axis((), leaf, self.size) is None else leaf[self.row][None], self.outer[name]
    )

  def __setitem__(self, name: str, value: Any) -> None:
    self.made[name] = value

  def get(self, name: str, default: Any = None) -> Any:
    """The note of this name, or `default`."""
    return self[name] if name in self.made or name in self.outer else default

  def clear(self) -> None:
    """Forgets what is new; what was there goes when the pass is over."""
    self.made.clear()


def _parted(x: Any, site: Site) -> tuple[dict[str, Any], Any]:
  """(arguments that all examples share, the others); of a sublayer or a block only the first has examples."""
  if site.kind in ("sublayer", "block"):
    first = next(iter(x))
    return {name: value for name, value in x.items() if name != first}, {first: x[first]}
  return {}, x


def _joined(rest: dict[str, Any], one: Any) -> Any:
  return {**one, **rest} if rest else one


def _length_axis(path: Any, site: Site) -> int:
  """The axis of length, behind that of the batch, of what stands at a path of a site's arguments or outputs."""
  name = getattr(path[-1], "key", "") if path and site.kind == "model" else ""
  return next((stream.outputs[name] for stream in site.streams if name in stream.outputs), 1)


def _batch_axis(path: Any, leaf: Any, size: int, site: Site | None = None) -> int | None:
  if not hasattr(leaf, "shape") or leaf.ndim == 0:
    return None
  axis = 0 if site is None else _length_axis(path, site) - 1
  return axis if leaf.ndim > axis and leaf.shape[axis] == size else None


def _where(none: jax.Array, old: Any, new: Any, axis: int) -> Any:
  """`old` for examples without an adapter, `new` for the others."""
  shape = [1] * new.ndim
  shape[axis] = len(none)
  return jnp.where(none.reshape(shape), old, new)
