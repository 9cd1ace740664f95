"""How an array in a traced program reads a parameter: the exact way from the leaf to it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Op = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class View:
  """A rearrangement of a leaf's elements, or of some of them; all of its steps are linear.

  Attributes:
    leaf_shape: of the leaf as it is stored.
    shape: of what the steps give.
    ops: the steps: ("transpose", permutation), ("reshape", shape), ("slice", starts, limits, strides), ("rev", axes).
  """

  leaf_shape: tuple[int, ...]
  shape: tuple[int, ...]
  ops: tuple[Op, ...] = ()

  @classmethod
  def whole(cls, shape: Sequence[int]) -> View:
    """The leaf as it is."""
    return cls(tuple(shape), tuple(shape))

  def of(self, leaf: jax.Array) -> jax.Array:
    """What the view shows of a leaf."""
    for name, *rest in self.ops:
      leaf = _APPLY[name](leaf, *rest)
    return leaf

  def back(self, change: jax.Array) -> jax.Array:
    """The leaf's change that a change of the view is; zero where the view shows nothing."""
    stored = jax.ShapeDtypeStruct(self.leaf_shape, change.dtype)
    (found,) = jax.linear_transpose(self.of, stored)(change.reshape(self.shape))
    return found

  def transposed(self, permutation: Sequence[int]) -> View:
    """With its axes in another order."""
    permutation = tuple(permutation)
    if permutation == tuple(range(len(self.shape))):
      return self
    shape = tuple(self.shape[axis] for axis in permutation)
    if self.ops and self.ops[-1][0] == "transpose":
      before = self.ops[-1][1]
      merged = tuple(before[axis] for axis in permutation)
      rest = View(self.leaf_shape, shape, self.ops[:-1])
      return rest if merged == tuple(range(len(merged))) else self._with(shape, ("transpose", merged), drop=1)
    return self._with(shape, ("transpose", permutation))

  def reshaped(self, shape: Sequence[int]) -> View:
    """What it shows, read in another shape with the same number of values."""
    shape = tuple(shape)
    if shape == self.shape:
      return self
    drop = 1 if self.ops and self.ops[-1][0] == "reshape" else 0
    if drop and len(self.ops) == 1 and shape == self.leaf_shape:
      return View.whole(shape)
    return self._with(shape, ("reshape", shape), drop=drop)

  def sliced(self, starts: Sequence[int], limits: Sequence[int], strides: Sequence[int]) -> View:
    """A part of it."""
    shape = tuple(-(-(limit - start) // step) for start, limit, step in zip(starts, limits, strides))
    if shape == self.shape:
      return self
    return self._with(shape, ("slice", tuple(starts), tuple(limits), tuple(strides)))

  def reversed(self, axes: Sequence[int]) -> View:
    """With some axes turned round."""
    return self._with(self.shape, ("rev", tuple(axes)))

  def _with(self, shape: tuple[int, ...], op: Op, drop: int = 0) -> View:
    return View(self.leaf_shape, shape, (*self.ops[: len(self.ops) - drop], op))


_APPLY: Mapping[str, Callable[..., jax.Array]] = {
  "transpose": jnp.transpose,
  "reshape": jnp.reshape,
  "slice": lax.slice,
  "rev": lax.rev,
}


@dataclasses.dataclass(frozen=True)
class Tracked:
  """An array of a traced program that reads one leaf.

  Attributes:
    leaf: its dotted path.
    view: [*stack, ...]: what it reads of the leaf, with the axes that scans run over in front.
    depth: how many axes scans run over.
    axes: of each of the array's axes: which of the view's behind the stack's it is, or None: it repeats the same.
    scans: the place of each scan in the program, the outermost first.
  """

  leaf: str
  view: View
  depth: int
  axes: tuple[int | None, ...]
  scans: tuple[tuple[Any, ...], ...] = ()

  @classmethod
  def parameter(cls, leaf: str, shape: Sequence[int]) -> Tracked:
    """A parameter as it goes into the program."""
    return cls(leaf, View.whole(shape), 0, tuple(range(len(shape))))

  @property
  def inner(self) -> tuple[int, ...]:
    """The view's shape behind the stack's axes."""
    return self.view.shape[self.depth :]

  def moved(self, order: Sequence[int]) -> View:
    """The view with the axes behind the stack's in another order."""
    return self.view.transposed([*range(self.depth), *(self.depth + axis for axis in order)])

  def made(self, shape: Sequence[int]) -> Tracked | None:
    """With each axis of the array one of the view's; None if it repeats the leaf.

    Args:
      shape: the array's.
    """
    if self.axes == tuple(range(len(self.inner))):
      return self
    if any(axis is None and size != 1 for axis, size in zip(self.axes, shape)):
      return None
    kept = [axis for axis in self.axes if axis is not None]
    if sorted(kept) != list(range(len(self.inner))):
      return None
    view = self.moved(kept).reshaped((*self.view.shape[: self.depth], *shape))
    return dataclasses.replace(self, view=view, axes=tuple(range(len(shape))))

  def popped(self, place: tuple[Any, ...]) -> Tracked:
    """One layer of it, in a scan over its first axis."""
    first, *rest = self.axes
    if first is None:
      return dataclasses.replace(self, axes=tuple(rest))
    order = [first, *(axis for axis in range(len(self.inner)) if axis != first)]
    axes = tuple(None if axis is None else order.index(axis) - 1 for axis in rest)
    return Tracked(self.leaf, self.moved(order), self.depth + 1, axes, (*self.scans, place))


def folded(tracked: Tracked, *groups: Sequence[int], keep: int = 0) -> View:
  """The view of [*stack, *group sizes]: each group of axes becomes one, but for the first `keep` axes of the first."""
  order = [axis for group in groups for axis in group]
  sizes = [math.prod(tracked.inner[axis] for axis in group) for group in groups[1 if keep else 0 :]]
  lead = [tracked.inner[axis] for axis in groups[0]] if keep else []
  return tracked.moved(order).reshaped((*tracked.view.shape[: tracked.depth], *lead, *sizes))


def inverse(permutation: Sequence[int]) -> tuple[int, ...]:
  """The permutation that undoes one."""
  return tuple(int(axis) for axis in np.argsort(permutation))
