"""Kernels that come together in two stages, on slices whose chips form a cube.

Over the 4x4x4 chips and more of a v4 or v5p slice, the compiler for TPUs makes of one gather a sum over all chips of
kernels padded with zeros: three times the kernel's bytes on each chip, and twice the traffic. Over the chips of a
plane, and then over planes, it gathers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from peftjax.parallel.mesh import AXES

Gather = Callable[[jax.Array, PartitionSpec], jax.Array]  # (kernel, how it is stored) -> the kernel, whole over fsdp

_LEAST = 4  # chips along each edge of a cube
_SPLIT = ("data", "planes", "plane", "tensor", "sequence")


def in_stages(mesh: Mesh) -> Gather | None:
  """What gathers a kernel over `fsdp` in two stages; None where the compiler gathers at once."""
  line = mesh.devices[0, :, 0, 0]
  if line[0].platform != "tpu":
    return None
  plane = plane_of([tuple(device.coords) for device in line])
  return two_stages(mesh, plane) if plane else None


def plane_of(coords: Sequence[Sequence[int]]) -> int:
  """How many chips of a line, in its order, lie in one plane of a cube; 0 if they form none.

  Args:
    coords: of each chip in the slice.
  """
  if any(len({one[axis] for one in coords if len(one) == 3}) < _LEAST for axis in range(3)):
    return 0
  heights = [one[2] for one in coords]
  plane = next(index for index, height in enumerate(heights) if height != heights[0])
  runs = [heights[start : start + plane] for start in range(0, len(heights), plane)]
  regular = len(runs) == len(set(heights)) and all(len(run) == plane and len(set(run)) == 1 for run in runs)
  return plane if regular else 0


def two_stages(mesh: Mesh, plane: int) -> Gather:
  """Gathers over `plane` neighbours along `fsdp`, and then over the groups of them.

  What comes back for the kernel is laid as it is stored at once, so that a gradient is summed and split in one step.
  """
  data, fsdp, tensor, sequence = (mesh.shape[axis] for axis in AXES)
  devices = mesh.devices.reshape(data, fsdp // plane, plane, tensor, sequence)
  split = Mesh(devices, _SPLIT, axis_types=(AxisType.Auto,) * len(_SPLIT))

  def laid(kernel: jax.Array, stored: PartitionSpec, over: tuple[str, ...]) -> jax.Array:
    spec = PartitionSpec(*(_replaced(entry, over) for entry in stored))
    return jax.lax.with_sharding_constraint(kernel, NamedSharding(split, spec))

  def gather(kernel: jax.Array, stored: PartitionSpec) -> jax.Array:
    @jax.custom_vjp
    def whole(kernel: jax.Array) -> jax.Array:
      return laid(laid(kernel, stored, ("planes",)), stored, ())

    def back(_: None, gradient: jax.Array) -> tuple[jax.Array]:
      return (laid(gradient, stored, ("planes", "plane")),)

    whole.defvjp(lambda kernel: (whole(kernel), None), back)
    return whole(kernel)

  return gather


def _replaced(entry: Any, over: tuple[str, ...]) -> Any:
  """An entry of a spec with `fsdp` replaced by axes of the split mesh."""
  names = entry if isinstance(entry, tuple) else (entry,) if entry else ()
  found = tuple(axis for name in names for axis in (over if name == "fsdp" else (name,)))
  return found or None
