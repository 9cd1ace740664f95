"""Leaves read straight onto a mesh: every device's part from its own slices of the checkpoint's tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from peftjax import masks
from peftjax.errors import UserError
from peftjax.models.family import Family, checkpoint_axes
from peftjax.models.tensor_files import Checkpoint

Index = tuple[slice, ...]


def lay(array: Any, sharding: Sharding) -> jax.Array:
  """An array that this process holds whole, laid as a sharding says; each process gives the parts of its devices.

  An array that lies on several processes already goes to its new place as a whole.
  """
  if sharding.is_fully_addressable or not getattr(array, "is_fully_addressable", True):
    return jax.device_put(array, sharding)
  whole = np.asarray(array)
  return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def read_parts(
  path: str, leaf: Any, stacks: Mapping[str, int], sharding: Sharding, read: Callable[[str, Index, Any], np.ndarray]
) -> jax.Array:
  """A leaf of which each device's part is read, and no more.

  Args:
    path: dotted path of the leaf, which may lie below stacks.
    leaf: its shape and dtype.
    read: (layer's name, slices of that layer's leaf, shape of that layer's leaf) -> the values.
  """
  stack = masks.stack_shape(path, stacks)
  names = np.asarray(masks.layer_names(path, stacks), dtype=object).reshape(stack)
  known: dict[str, np.ndarray] = {}  # devices that hold the same part share one reading of it

  def part(index: Index | None) -> np.ndarray:
    assert index is not None
    if str(index) not in known:
      chosen, own = np.asarray(names[index[: len(stack)]], dtype=object), index[len(stack) :]
      sizes = [len(range(*one.indices(size))) for one, size in zip(index, leaf.shape)]
      found = np.empty(sizes, leaf.dtype)
      for at in itertools.product(*(range(size) for size in chosen.shape)):
        found[at] = read(chosen[at], own, leaf.shape[len(stack) :])
      known[str(index)] = found
    return known[str(index)]

  return jax.make_array_from_callback(leaf.shape, sharding, part)


def tensor_part(
  checkpoint: Checkpoint, key: str, family: Family, name: str, index: Index, expected: tuple[int, ...]
) -> np.ndarray:
  """The values of a leaf at `index`, from those of its tensor.

  Raises:
    UserError: the tensor's shape is not the leaf's.
  """
  shape = checkpoint.shape(key) or (1,)
  axes = checkpoint_axes(family, name, len(shape))
  found = shape if axes is None else tuple(shape[axis] for axis in axes)
  if found != (expected or (1,)):
    raise UserError(f"{key!r} has shape {found} as a leaf; config.json implies {expected}")
  if axes is None:
    return checkpoint.part(key, index)
  stored: list[slice] = [slice(None)] * len(axes)
  for place, axis in enumerate(axes):
    stored[axis] = index[place]
  return checkpoint.part(key, tuple(stored)).transpose(axes)
