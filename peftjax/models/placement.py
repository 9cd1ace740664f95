"""How a linear module multiplies, on the devices that it is traced for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax

from peftjax.placement import Placement, current, in_rows, mapped, placed

__all__ = ["Placement", "bringing", "current", "mapped", "placed", "product"]

_brought: ContextVar[Callable[[jax.Array], jax.Array] | None] = ContextVar("brought", default=None)


def product(x: jax.Array, kernel: jax.Array, dimensions: Any, *args: Any, **kwargs: Any) -> jax.Array:
  """`jax.lax.dot_general` of a linear module, whose kernel is brought to its inputs as `bringing` says."""
  bring = _brought.get()
  kernel = kernel if bring is None else bring(kernel)
  if kernel.ndim != 2 or dimensions != (((x.ndim - 1,), (0,)), ((), ())):
    return jax.lax.dot_general(x, kernel, dimensions, *args, **kwargs)

  def of(x: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), *args, **kwargs)

  return in_rows(of, x)


@contextlib.contextmanager
def bringing(kernel: Callable[[jax.Array], jax.Array]) -> Iterator[None]:
  """How the kernel of the linear module that is called within the block comes to its inputs."""
  token = _brought.set(kernel)
  try:
    yield
  finally:
    _brought.reset(token)
