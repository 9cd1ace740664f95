"""What a program does with a parameter at one equation, and how its arrays there read as methods see them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import jax.numpy as jnp

from peftjax.wrap.views import inverse


class Use(Protocol):
  """An equation at which methods act: x and y as methods see them, with the axes of experts in front."""

  @property
  def operand(self) -> int:
    """Which of the equation's inputs the weight is."""

  def x_of(self, inputs: Sequence[Any]) -> Any:
    """[*experts, ..., in], or the ids of an embedding."""

  def kernel_of(self, inputs: Sequence[Any]) -> Any:
    """[*experts, *shape of the site], from the equation's own operand."""

  def with_x(self, inputs: Sequence[Any], x: Any) -> list[Any]:
    """The equation's inputs with another x."""

  def with_kernel(self, inputs: Sequence[Any], kernel: Any) -> list[Any]:
    """The equation's inputs with another kernel, of as many outputs as it has."""

  def fold_y(self, y: Any) -> Any:
    """[*experts, ..., out] of the equation's output."""

  def unfold_y(self, y: Any) -> Any:
    """The inverse of `fold_y`."""


@dataclasses.dataclass(frozen=True)
class Product:
  """A `dot_general` with a weight: y = x W, whatever axes are summed over, and with one W for each of the experts.

  Attributes:
    operand: 0 or 1.
    experts: the axes that x and W share, in W and in x.
    summed: those that are summed over, in W's order, in W and in x.
    w_free: W's other axes, and `x_free` those of x.
    sizes: of W's axes.
    x_sizes: of x's axes.
  """

  operand: int
  experts: tuple[tuple[int, ...], tuple[int, ...]]
  summed: tuple[tuple[int, ...], tuple[int, ...]]
  w_free: tuple[int, ...]
  x_free: tuple[int, ...]
  sizes: tuple[int, ...]
  x_sizes: tuple[int, ...]

  @classmethod
  def of(cls, operand: int, numbers: Any, sizes: Sequence[int], x_sizes: Sequence[int]) -> Product:
    """The use of one operand of a `dot_general`.

    Args:
      operand: 0 or 1: which of them is the leaf.
      numbers: the equation's `dimension_numbers`.
      sizes, x_sizes: the shapes of the leaf and of the other operand.
    """
    contract, batch = (tuple(map(tuple, pair)) for pair in numbers)
    w_sum, x_sum = contract[operand], contract[1 - operand]
    pairs = sorted(zip(w_sum, x_sum))
    summed = tuple(one for one, _ in pairs), tuple(other for _, other in pairs)
    experts = batch[operand], batch[1 - operand]
    w_free = tuple(axis for axis in range(len(sizes)) if axis not in (*w_sum, *experts[0]))
    x_free = tuple(axis for axis in range(len(x_sizes)) if axis not in (*x_sum, *experts[1]))
    return cls(operand, experts, summed, w_free, x_free, tuple(sizes), tuple(x_sizes))

  @property
  def shape(self) -> tuple[int, int]:
    """(in, out): what the product sums over, and the leaf's other axes, each as one."""
    return _size(self.sizes, self.summed[0]), _size(self.sizes, self.w_free)

  @property
  def stack(self) -> tuple[int, ...]:
    """Sizes of the axes that leaf, input and output share, with a matrix for each place on them; () without experts."""
    return tuple(self.sizes[axis] for axis in self.experts[0])

  @property
  def _x_order(self) -> tuple[int, ...]:
    return (*self.experts[1], *self.x_free, *self.summed[1])

  @property
  def _w_order(self) -> tuple[int, ...]:
    return (*self.experts[0], *self.summed[0], *self.w_free)

  def x_of(self, inputs: Sequence[Any]) -> Any:
    x = jnp.transpose(inputs[1 - self.operand], self._x_order)
    return x.reshape(*x.shape[: x.ndim - len(self.summed[1])], self.shape[0])

  def kernel_of(self, inputs: Sequence[Any]) -> Any:
    return jnp.transpose(inputs[self.operand], self._w_order).reshape(*self.stack, *self.shape)

  def with_x(self, inputs: Sequence[Any], x: Any) -> list[Any]:
    sizes = [self.x_sizes[axis] for axis in self._x_order]
    return self._put(inputs, 1 - self.operand, x.reshape(sizes).transpose(inverse(self._x_order)))

  def with_kernel(self, inputs: Sequence[Any], kernel: Any) -> list[Any]:
    sizes = [self.sizes[axis] for axis in self._w_order]
    return self._put(inputs, self.operand, kernel.reshape(sizes).transpose(inverse(self._w_order)))

  def _put(self, inputs: Sequence[Any], place: int, value: Any) -> list[Any]:
    found = list(inputs)
    found[place] = value.astype(found[place].dtype)
    return found

  @property
  def out_axes(self) -> tuple[int, ...]:
    """Which of the output's axes the weight makes, behind those of the experts."""
    first = len(self.experts[0]) + (len(self.x_free) if self.operand == 1 else 0)
    return tuple(range(first, first + len(self.w_free)))

  @property
  def _y_order(self) -> tuple[int, ...]:
    total = len(self.experts[0]) + len(self.x_free) + len(self.w_free)
    return (*(axis for axis in range(total) if axis not in self.out_axes), *self.out_axes)

  def fold_y(self, y: Any) -> Any:
    y = jnp.transpose(y, self._y_order)
    return y.reshape(*y.shape[: y.ndim - len(self.w_free)], self.shape[1])

  def unfold_y(self, y: Any) -> Any:
    sizes = (*y.shape[:-1], *(self.sizes[axis] for axis in self.w_free))
    return y.reshape(sizes).transpose(inverse(self._y_order))


@dataclasses.dataclass(frozen=True)
class Window:
  """A convolution: x [B, *space, in], y [B, *space, out], a kernel [*window, in of a group, out].

  Attributes:
    x_order, w_order, y_order: the permutations that put the equation's arrays so.
    groups: the parts of its channels that are convolved apart.
  """

  x_order: tuple[int, ...]
  w_order: tuple[int, ...]
  y_order: tuple[int, ...]
  groups: int = 1
  operand: int = 1

  @classmethod
  def of(cls, numbers: Any, groups: int) -> Window:
    """From `dimension_numbers`: of x and y (batch, features, *space), of the kernel (out, in, *window)."""
    (x_batch, x_features, *x_space), (w_out, w_in, *window), (y_batch, y_features, *y_space) = (
      numbers.lhs_spec,
      numbers.rhs_spec,
      numbers.out_spec,
    )
    return cls((x_batch, *x_space, x_features), (*window, w_in, w_out), (y_batch, *y_space, y_features), groups)

  def x_of(self, inputs: Sequence[Any]) -> Any:
    return jnp.transpose(inputs[0], self.x_order)

  def kernel_of(self, inputs: Sequence[Any]) -> Any:
    return jnp.transpose(inputs[1], self.w_order)

  def with_x(self, inputs: Sequence[Any], x: Any) -> list[Any]:
    return [x.transpose(inverse(self.x_order)).astype(inputs[0].dtype), inputs[1]]

  def with_kernel(self, inputs: Sequence[Any], kernel: Any) -> list[Any]:
    return [inputs[0], kernel.transpose(inverse(self.w_order)).astype(inputs[1].dtype)]

  def fold_y(self, y: Any) -> Any:
    return jnp.transpose(y, self.y_order)

  def unfold_y(self, y: Any) -> Any:
    return jnp.transpose(y, inverse(self.y_order))


@dataclasses.dataclass(frozen=True)
class Lookup:
  """A row of a table for each id: a `gather`, or a `dynamic_slice` for one id.

  Attributes:
    axis: the table's axis that the ids count.
    row: the axis of the output that holds a row.
    single: an axis of the output, of size 1, that stands for the ids' one row; None if there is none.
    component: which entry of the last axis of the indices is the id; -1: the first index is the id itself.
  """

  axis: int
  row: int
  single: int | None
  component: int
  operand: int = 0

  def x_of(self, inputs: Sequence[Any]) -> Any:
    if self.component < 0:
      return inputs[1 + self.axis]
    return inputs[1][..., self.component]

  def kernel_of(self, inputs: Sequence[Any]) -> Any:
    return inputs[0] if self.axis == 0 else inputs[0].T

  def with_x(self, inputs: Sequence[Any], x: Any) -> list[Any]:
    del x  # no method changes ids
    return list(inputs)

  def with_kernel(self, inputs: Sequence[Any], kernel: Any) -> list[Any]:
    table = kernel if self.axis == 0 else kernel.T
    return [table.astype(inputs[0].dtype), *inputs[1:]]

  def fold_y(self, y: Any) -> Any:
    y = jnp.moveaxis(y, self.row, -1)
    return y if self.single is None else jnp.squeeze(y, self._single_axis)

  def unfold_y(self, y: Any) -> Any:
    if self.single is not None:
      y = jnp.expand_dims(y, self._single_axis)
    return jnp.moveaxis(y, -1, self.row)

  @property
  def _single_axis(self) -> int:
    assert self.single is not None
    return self.single - (1 if self.row < self.single else 0)


def lookup_of(name: str, params: Any, table: Sequence[int]) -> Lookup | None:
  """The rows of a table that a `gather` or `dynamic_slice` takes; None if it takes something else."""
  if len(table) != 2:
    return None
  sizes = tuple(params["slice_sizes"])
  axes = [axis for axis in (0, 1) if sizes[axis] == 1 and sizes[1 - axis] == table[1 - axis] and table[axis] != 1]
  if len(axes) != 1:
    return None
  axis = axes[0]
  if name == "dynamic_slice":
    return Lookup(axis, 1 - axis, axis, -1)
  numbers = params["dimension_numbers"]
  if numbers.operand_batching_dims or axis not in numbers.start_index_map:
    return None
  kept = [one for one in (0, 1) if one not in numbers.collapsed_slice_dims]
  places = dict(zip(kept, numbers.offset_dims))
  if 1 - axis not in places:
    return None
  return Lookup(axis, places[1 - axis], places.get(axis), numbers.start_index_map.index(axis))


def _size(sizes: Sequence[int], axes: Sequence[int]) -> int:
  return math.prod(sizes[axis] for axis in axes)


def bind(equation: Any, inputs: Sequence[Any]) -> list[Any]:
  """The outputs of an equation for other inputs."""
  found = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
  return list(found) if equation.primitive.multiple_results else [found]


def conv_is_plain(params: Any) -> bool:
  """Whether a convolution has one group."""
  return params["feature_group_count"] == 1 and params["batch_group_count"] == 1
