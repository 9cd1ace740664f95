"""One mesh with the axes `data`, `fsdp`, `tensor` and `sequence`, and how batches lie on it.

Devices stand in JAX's order, those of one process side by side, and the last axes vary fastest: what talks most is
close.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from peftjax.errors import UserError
from peftjax.models.parts import lay

AXES = ("data", "fsdp", "tensor", "sequence")
BATCH_AXES = ("data", "fsdp")


def make_mesh(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
  """The mesh that `config.mesh` describes, over all devices of all processes.

  Args:
    config: devices along each axis; at most one axis may be -1, which takes what is left. An axis that is not there
      has one device: runs of an earlier version go on.
    devices: all of `jax.devices()` if not given.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = [int(config.get(axis, 1)) for axis in AXES]
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


def process_share(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
  """(index, count): this process feeds the index-th of `count` equal parts of every global batch.

  Processes whose devices differ in the tensor and sequence axes alone feed the same rows.

  Raises:
    UserError: the rows of the process do not lie together.
  """
  process = jax.process_index() if process is None else process
  ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  flat = mesh.devices.reshape(ways, -1)
  rows = [row for row in range(ways) if any(device.process_index == process for device in flat[row])]
  if not rows or rows != list(range(rows[0], rows[0] + len(rows))) or ways % len(rows) or rows[0] % len(rows):
    raise UserError(
      f"mesh {dict(mesh.shape)}: process {process} holds parts {rows} of the batch; give each an equal part"
    )
  return rows[0] // len(rows), ways // len(rows)


def put_tree(tree: Any, shardings: Any) -> Any:
  """Lays a tree of arrays as a tree of shardings says; each process gives the parts of its own devices."""
  return jax.tree.map(lay, tree, shardings)


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray], together: bool = False) -> dict[str, jax.Array]:
  """Lays this process's rows of a batch on its devices; together the processes hold the global batch."""
  sharding = batch_sharding(mesh, together)
  return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def check_batch_size(mesh: Mesh, what: str, size: int) -> None:
  """Raises `UserError` if a batch of `size` examples cannot be split evenly over the mesh."""
  ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  if size % ways:
    raise UserError(f"{what}: {size} examples cannot be split over {ways} devices; {size - size % ways + ways} can")
