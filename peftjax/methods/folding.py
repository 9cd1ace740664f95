"""Linear maps over several axes as matrices: which axes of `DenseGeneral`, `Einsum` and `ConvTranspose` are which.

An axis that input, kernel and output share, such as that of experts, makes one matrix for each place on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from peftjax.sites import Folding


class NotAMatrix(Exception):
  """The map is neither one matrix for all of the input nor one for each place on a single axis of it."""


def folding_of(module: nn.Module, arguments: Mapping[str, Any], kernel: tuple[int, ...]) -> Folding | None:
  """How a module's arrays read as a matrix's; None if they are a matrix's as they are.

  Args:
    arguments: of its call, by name.
    kernel: the shape of its kernel.

  Raises:
    NotAMatrix: input, kernel and output share several axes, or one that does not lead in the kernel and come before
      the output's own; or the axes come out in another order.
  """
  if isinstance(module, nn.ConvTranspose):
    return _of_transposed(kernel) if module.transpose_kernel else None
  x = next(iter(arguments.values()))
  found = _of_einsum(module, arguments, kernel) if isinstance(module, nn.Einsum) else _of_general(module, x, kernel)
  is_plain = found.x == found.y == (-1,) and found.kernel == (0, 1)
  return None if is_plain else found


def _of_transposed(kernel: tuple[int, ...]) -> Folding:
  """[*window, out, in] as [*window, in, out]."""
  order = (*range(len(kernel) - 2), len(kernel) - 1, len(kernel) - 2)
  return Folding((), (), order, tuple(kernel[axis] for axis in order))


def _of_general(module: Any, x: Any, kernel: tuple[int, ...]) -> Folding:
  shared = len(module.batch_dims)
  if shared > 1:
    raise NotAMatrix
  axes = (module.axis,) if isinstance(module.axis, int) else tuple(module.axis)
  made = 1 if isinstance(module.features, int) else len(module.features)
  summed = tuple(axis if axis < 0 else axis - x.ndim for axis in axes)
  own = kernel[shared:]
  return Folding(summed, tuple(range(-made, 0)), tuple(range(len(own))), own, (0, 0) if shared else None)


def _of_einsum(module: Any, arguments: Mapping[str, Any], kernel: tuple[int, ...]) -> Folding:
  """The axes by their letters.

  >>> module = nn.Einsum((4, 8, 2), "BTD,NDH->BTNH")
  >>> _of_einsum(module, {}, (4, 8, 2))
  Folding(x=(-1,), y=(-2, -1), kernel=(1, 0, 2), shape=(8, 4, 2), experts=None)
  """
  text = (arguments.get("einsum_str") or module.einsum_str).replace(" ", "")
  operands, _, output = text.partition("->")
  x, weight, y = (_letters(part) for part in (*operands.split(","), output))
  summed = [letter for letter in weight if letter in x and letter not in y]
  made = [letter for letter in y if letter in weight and letter not in x]
  shared = [letter for letter in weight if letter in x and letter in y]
  rest = [[letter for letter in side if letter not in weight] for side in (x, y)]
  is_matrix = summed and made and len(shared + summed + made) == len(weight) and rest[0] == rest[1]
  if not is_matrix or any(len(set(side)) < len(side) for side in (x, weight, y)):
    raise NotAMatrix
  if shared and (shared != weight[:1] or any(y.index(letter) < y.index(shared[0]) for letter in made)):
    raise NotAMatrix
  own, sizes = weight[len(shared) :], kernel[len(shared) :]
  order = tuple(own.index(letter) for letter in (*summed, *made))
  return Folding(
    tuple(_axis(x, letter) for letter in summed),
    tuple(_axis(y, letter) for letter in made),
    order,
    tuple(sizes[axis] for axis in order),
    (_axis(x, shared[0]), _axis(y, shared[0])) if shared else None,
  )


def _letters(text: str) -> list[str]:
  """Of one operand; an ellipsis is one entry."""
  return list(text.replace("...", "."))


def _axis(letters: list[str], letter: str) -> int:
  place = letters.index(letter)
  is_before = "." in letters and place < letters.index(".")
  return place if is_before else place - len(letters)
