"""The primitives that only rearrange an array: what they make of one that reads a parameter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peftjax.wrap.views import Tracked

Params = Mapping[str, Any]
Shape = Sequence[int]


def rearranged(name: str, tracked: Tracked, params: Params, before: Shape, after: Shape) -> Tracked | None:
  """What a primitive makes of an array that reads a leaf; None if it does more than to rearrange.

  Args:
    name: the primitive's.
    params: the equation's.
    before: the shape of the array.
    after: that of the primitive's output.
  """
  rule = _RULES.get(name)
  return None if rule is None else rule(tracked, params, before, after)


def _same(tracked: Tracked, params: Params, before: Shape, after: Shape) -> Tracked | None:
  del params, before, after
  return tracked


def _transpose(tracked: Tracked, params: Params, before: Shape, after: Shape) -> Tracked:
  del before, after
  return dataclasses.replace(tracked, axes=tuple(tracked.axes[axis] for axis in params["permutation"]))


def _broadcast(tracked: Tracked, params: Params, before: Shape, after: Shape) -> Tracked | None:
  axes: list[int | None] = [None] * len(after)
  for axis, target in enumerate(params["broadcast_dimensions"]):
    if before[axis] != after[target] and tracked.axes[axis] is not None:
      return None
    axes[target] = tracked.axes[axis]
  return dataclasses.replace(tracked, axes=tuple(axes))


def _squeeze(tracked: Tracked, params: Params, before: Shape, after: Shape) -> Tracked | None:
  return _reshape(tracked, params, before, after)


def _reshape(tracked: Tracked, params: Params, before: Shape, after: Shape) -> Tracked | None:
  order = params.get("dimensions")
  if order is not None and "new_sizes" in params:  # of the array with its axes in another order
    tracked, before = _transpose(tracked, {"permutation": order}, before, after), [before[axis] for axis in order]
  made = tracked.made(before)
  if made is not None:
    view = made.view.reshaped((*made.view.shape[: made.depth], *after))
    return dataclasses.replace(made, view=view, axes=tuple(range(len(after))))
  real = [(axis, size) for axis, size in zip(tracked.axes, before) if size != 1]
  if [size for _, size in real] != [size for size in after if size != 1]:
    return None
  if any(size == 1 and axis is not None for axis, size in zip(tracked.axes, before)):
    return None
  rest = iter(axis for axis, _ in real)
  return dataclasses.replace(tracked, axes=tuple(None if size == 1 else next(rest) for size in after))


def _slice(tracked: Tracked, params: Params, before: Shape, after: Shape) -> Tracked | None:
  del after
  starts, limits = params["start_indices"], params["limit_indices"]
  strides = params["strides"] or (1,) * len(starts)
  own = [(0, size, 1) for size in tracked.inner]
  for axis, *part in zip(tracked.axes, starts, limits, strides):
    if axis is not None:
      own[axis] = (part[0], part[1], part[2])
  whole = [*((0, size, 1) for size in tracked.view.shape[: tracked.depth]), *own]
  return dataclasses.replace(tracked, view=tracked.view.sliced(*zip(*whole)) if whole else tracked.view)


def _rev(tracked: Tracked, params: Params, before: Shape, after: Shape) -> Tracked | None:
  del before, after
  axes = [tracked.axes[axis] for axis in params["dimensions"]]
  turned = [tracked.depth + axis for axis in axes if axis is not None]
  return dataclasses.replace(tracked, view=tracked.view.reversed(turned) if turned else tracked.view)


_RULES: Mapping[str, Callable[[Tracked, Params, Shape, Shape], Tracked | None]] = {
  "transpose": _transpose,
  "broadcast_in_dim": _broadcast,
  "squeeze": _squeeze,
  "reshape": _reshape,
  "slice": _slice,
  "rev": _rev,
  **dict.fromkeys(
    ("convert_element_type", "copy", "copy_p", "sharding_constraint", "name", "optimization_barrier", "device_put",
     "mesh_cast", "reshard", "pvary"),
    _same,
  ),
}  # fmt: skip
