"""One mesh with the axes `data`, `fsdp` and `tensor`, and the shardings of batches and trees on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from peftjax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

SpecRule = Callable[[str, Any], PartitionSpec]  # (dotted name, array or shape) -> how it is split


def make_mesh(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
  """The mesh that `config.mesh` describes, over all devices of all processes.

  Args:
    config: devices along each axis; at most one axis may be -1, which takes what is left.
    devices: all of `jax.devices()` if not given.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = [int(config[axis]) for axis in AXES]
  asked = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes))
  if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
    raise UserError(f"{asked}: expected positive numbers, and -1 for at most one axis")
  if -1 in sizes:
    sizes[sizes.index(-1)] = max(len(devices) // math.prod(size for size in sizes if size != -1), 1)
  if math.prod(sizes) != len(devices):
    raise UserError(f"{asked}: expected a product of {len(devices)}, the number of devices")
  return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, together: bool = False) -> NamedSharding:
  """Examples are split over the data and fsdp axes; they are the second axis of many runs' batches together."""
  return NamedSharding(mesh, PartitionSpec(None, BATCH_AXES) if together else PartitionSpec(BATCH_AXES))


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray], together: bool = False) -> dict[str, jax.Array]:
  """Lays this process's rows of a batch on its devices; together the processes hold the global batch."""
  sharding = batch_sharding(mesh, together)
  return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def check_batch_size(mesh: Mesh, what: str, size: int) -> None:
  """Raises `UserError` if a batch of `size` examples cannot be split evenly over the mesh."""
  ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  if size % ways:
    raise UserError(f"{what}: {size} examples cannot be split over {ways} devices; {size - size % ways + ways} can")


def largest_axis(mesh: Mesh, smallest: int = 2**16) -> SpecRule:
  """Splits every leaf of at least `smallest` elements over `fsdp`, along its longest axis that divides evenly."""
  ways = mesh.shape["fsdp"]

  def spec(name: str, leaf: Any) -> PartitionSpec:
    del name
    axes = [axis for axis, size in enumerate(leaf.shape) if size % ways == 0]
    if ways == 1 or not axes or math.prod(leaf.shape) < smallest:
      return PartitionSpec()
    longest = max(axes, key=lambda axis: leaf.shape[axis])
    return PartitionSpec(*["fsdp" if axis == longest else None for axis in range(len(leaf.shape))])

  return spec


def tree_shardings(mesh: Mesh, tree: Any, rule: SpecRule | None = None) -> Any:
  """A tree of shardings for any tree of arrays or shapes: parameters, or a whole training state.

  Args:
    mesh: the mesh.
    tree: arrays or shapes.
    rule: how a leaf is split; `largest_axis(mesh)` if not given.
  """
  chosen = rule or largest_axis(mesh)

  def one(path: Any, leaf: Any) -> NamedSharding:
    return NamedSharding(mesh, chosen(jax.tree_util.keystr(path, simple=True, separator="."), leaf))

  return jax.tree_util.tree_map_with_path(one, tree)
