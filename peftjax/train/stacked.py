"""Runs of one method stacked into one program, for `peftjax.train.together`.

    trainable leaves, optimizer, batches   one a run, stacked along a new first axis       jax.vmap
    frozen leaves                          held once; those in which the runs differ (VeRA's drawn projections) stacked

The runs may differ in seed, data and its order, peak learning rates, and in what their method names in `free` (LoRA's
rank and alpha: narrower leaves are filled up with zeros, which get no gradient and stay zero).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from peftjax import masks
from peftjax.errors import UserError
from peftjax.masks import Tree
from peftjax.methods.attach import leaf_paths
from peftjax.model import Model
from peftjax.parallel.mesh import put_tree
from peftjax.placement import mapped
from peftjax.train.compiling import Cost
from peftjax.train.fingerprint import fingerprints
from peftjax.train.run import Run
from peftjax.train.state import TrainState
from peftjax.train.step import Batch, Metrics, TrainStep


class DoNotFit(UserError):
  """Runs that one program cannot train."""


@dataclasses.dataclass(frozen=True)
class Stacked:
  """Runs that share one program.

  Attributes:
    runs: each with its own data and settings, its frozen leaves as shapes.
    widest: the run with the most trainable parameters, whose forward pass and layout are the program's.
    shared: frozen leaves that all runs have in common, by dotted name.
    own: frozen leaves in which they differ, stacked.
  """

  runs: tuple[Run, ...]
  widest: Run
  shared: dict[str, Any]
  own: dict[str, Any]

  @staticmethod
  def of(resolved: Iterable[Run]) -> Stacked:
    """The program of runs that are made one after the other; of all their bases it keeps one.

    Raises:
      DoNotFit: a run does not fit; the first difference is named.
    """
    runs: list[Run] = []
    frozen: list[dict[str, Any]] = []  # of each run: all leaves of the first, then what the method added
    for run in resolved:
      flat = masks.flatten(run.frozen)
      if runs:
        _check_alike(runs[0], run, len(runs))
        added = leaf_paths(run.model.bound, run.model.params)
        flat = {name: leaf for name, leaf in flat.items() if name in added}
      frozen.append(flat)
      shapes = jax.eval_shape(lambda tree: tree, (run.frozen, run.model.params))
      program = dataclasses.replace(run.program, model=run.model.with_params(shapes[1]))
      runs.append(dataclasses.replace(run, frozen=shapes[0], program=program))
    if any(run.model.methods != runs[0].model.methods for run in runs):
      _check_widths(runs)
      frozen = [{**flat, **_free_leaves(run.model)} for run, flat in zip(runs, frozen)]
    widest = max(runs, key=lambda run: masks.count(run.trainable).parameters)
    shared, own = dict(frozen[0]), {}
    if len(runs) > 1:
      common = set.intersection(*(set(flat) for flat in frozen))
      prints = [fingerprints({name: flat[name] for name in common}) for flat in frozen]
      for name in common:
        values = [flat[name] for flat in frozen]
        if any(one[name] != prints[0][name] or value.shape != values[0].shape for one, value in zip(prints, values)):
          del shared[name]
          own[name] = _stack(values)
    shared = masks.flatten(put_tree(masks.unflatten(shared), widest.layout.shardings(masks.unflatten(shared))))
    own = masks.flatten(put_tree(masks.unflatten(own), _stacked_shardings(widest, masks.unflatten(own))))
    return Stacked(tuple(runs), widest, shared, own)

  def start(self) -> TrainState:
    """All runs' states before the first update."""
    return self.stack([run.start() for run in self.runs])

  def stack(self, states: Sequence[TrainState]) -> TrainState:
    """The runs' states as one, laid on the mesh; narrower leaves are filled up with zeros."""
    stacked = jax.tree.map(lambda *leaves: _stack(leaves), *states)
    return put_tree(stacked, _stacked_shardings(self.widest, stacked))

  @property
  def frozen(self) -> Tree:
    """Shared and own frozen leaves as the step takes them."""
    return masks.unflatten({**self.shared, **self.own})

  def frozen_of(self, index: int) -> Tree:
    """One run's frozen leaves."""
    return masks.unflatten({**self.shared, **member(self.own, index)})

  def step(self) -> TrainStep:
    """One update of every run, not yet compiled; states and batches have the runs as their first axis."""
    axes = masks.unflatten({**dict.fromkeys(self.shared), **dict.fromkeys(self.own, 0)})
    return of_many(self.widest.step(), axes)

  @functools.cached_property
  def _shapes(self) -> list[TrainState]:
    return [jax.eval_shape(run.program.init, run.trainable) for run in self.runs]

  def narrowed(self, state: TrainState, index: int) -> TrainState:
    """One run's state in the shapes that it has when trained alone."""
    corner = lambda leaf, like: leaf[tuple(slice(size) for size in like.shape)]  # noqa: E731
    return jax.tree.map(corner, member(state, index), self._shapes[index])

  def cost_of_one(self, cost: Cost) -> Cost:
    """A run's part of the program's cost; arguments as it would have them alone."""
    count, common = len(self.runs), sum(leaf.nbytes for leaf in self.shared.values())
    return dataclasses.replace(
      cost,
      compile_seconds=round(cost.compile_seconds / count, 3),
      flops=cost.flops // count,
      xla_flops=cost.xla_flops / count,
      temp_bytes=cost.temp_bytes // count,
      argument_bytes=(cost.argument_bytes - common) // count + common,
    )


def of_many(step: TrainStep, frozen: Any = None) -> TrainStep:
  """The step of many runs at once, whose states and batches have the runs as their first axis.

  Args:
    frozen: of each frozen leaf its axis of the runs, or None where they share it; None: they share all.
  """
  each = jax.vmap(step, in_axes=(0, frozen, 0))

  def together(state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, Metrics]:
    with mapped():
      return each(state, frozen, batch)

  return together


def _stack(leaves: Sequence[Any]) -> jax.Array:
  """Stacked along a new first axis; smaller ones are filled up with zeros at their ends."""
  shape = tuple(max(sizes) for sizes in zip(*(leaf.shape for leaf in leaves)))
  fill = lambda leaf: [(0, size - own) for own, size in zip(leaf.shape, shape)]  # noqa: E731
  return jnp.stack([leaf if leaf.shape == shape else jnp.pad(leaf, fill(leaf)) for leaf in leaves])


def _stacked_shardings(run: Run, tree: Any) -> Any:
  """Stacked leaves lie as one run's do; each device holds its part of all runs."""
  ones = jax.eval_shape(lambda leaves: jax.tree.map(lambda leaf: leaf[0], leaves), tree)
  along = lambda one: NamedSharding(one.mesh, PartitionSpec(None, *one.spec))  # noqa: E731
  return jax.tree.map(along, run.layout.shardings(ones))


@jax.jit
def member(tree: Any, index: Any) -> Any:
  """One run's part of a stacked tree."""
  return jax.tree.map(lambda leaf: leaf[index], tree)


def _free_leaves(model: Model) -> dict[str, jax.Array]:
  """Frozen leaves at the methods' sites that carry the settings in which runs of one program may differ."""
  return {
    ".".join((*site.leaf_path, name)): jnp.broadcast_to(leaf, (*site.stack, *leaf.shape))
    for one in model.bound
    for site in one.sites
    for name, leaf in one.method.free_leaves(site.one(0)).items()
  }


def _check_widths(runs: Sequence[Run]) -> None:
  """Leaves filled up with zeros train as narrower ones only where each element is updated by itself."""
  name = runs[0].config.optim.name
  if name not in ("adamw", "sgd", "lion"):
    raise DoNotFit(f"runs of different methods' settings do not fit in one program with optim.name={name!r}; use adamw")


def _check_alike(first: Run, run: Run, index: int) -> None:
  def differ(what: str, one: Any, other: Any) -> DoNotFit:
    return DoNotFit(f"runs 0 and {index} do not fit in one program: {what} is {one} and {other}")

  if first.base.path == run.base.path and first.base != run.base:
    random = run.config.model.init == "random"
    how = "leave out model.init=random" if random else "draw them from a key that all runs share"
    raise DoNotFit(
      f"runs 0 and {index} do not fit in one program: {first.base.path} has other values in each (hashes "
      f"{first.base.hash[:8]} and {run.base.hash[:8]}), as where they are drawn from config.seed; {how}, or train each "
      "run by itself"
    )
  if first.base != run.base:
    raise differ("the base", first.base.path, run.base.path)
  if first.total_steps != run.total_steps:
    raise differ("the number of updates", first.total_steps, run.total_steps)
  for one, other in zip(first.model.methods, run.model.methods):
    if type(one) is not type(other):
      raise differ("the method", one.name, other.name)
    for field in dataclasses.fields(one):
      pair = getattr(one, field.name), getattr(other, field.name)
      if pair[0] != pair[1] and field.name not in one.free:
        raise differ(f"method.{field.name}", *pair)
  names = masks.flatten(first.trainable), masks.flatten(run.trainable)
  for name in sorted(set(names[0]) ^ set(names[1])):
    raise differ(f"the leaf {name}", *("trained" if name in flat else "not trained" for flat in names))
  free = leaf_paths(first.model.bound, first.model.params)
  for name, leaf in names[0].items():
    if leaf.shape != names[1][name].shape and name not in free:
      raise differ(f"the shape of {name}", leaf.shape, names[1][name].shape)
  for section in ("train", "optim", "task"):
    ours, theirs = (_comparable(one.config[section]) for one in (first, run))
    for key, value in ours.items():
      if value != theirs.get(key):
        raise differ(f"{section}.{key}", value, theirs.get(key))


def _comparable(section: ConfigDict) -> dict[str, Any]:
  """Fields that must agree: all but learning rates, which the states hold."""
  fields = copy.deepcopy(section.to_dict())
  for one in (fields, *fields.get("groups", {}).values()):
    one.pop("learning_rate", None)
  return fields
