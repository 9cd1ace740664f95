"""What a program may know of the devices that it is traced for, and how linear maps multiply there.

Values never depend on it beyond rounding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Placement:
  """The devices of a program.

  Attributes:
    platform: "cpu", "gpu" or "tpu"; empty: JAX's default backend.
    batch: parts that the batch is split into.
    heads: parts that attention heads are split into.
    mapped: whether it is one of many runs that `jax.vmap` computes at once.
  """

  platform: str = ""
  batch: int = 1
  heads: int = 1
  mapped: bool = False


_current: ContextVar[Placement | None] = ContextVar("placement", default=None)
_mapped: ContextVar[bool] = ContextVar("mapped", default=False)
_brought: ContextVar[Callable[[jax.Array], jax.Array] | None] = ContextVar("brought", default=None)


def current() -> Placement:
  """The placement of the program that is being traced; where none is set, that of JAX's default device."""
  found = _current.get() or Placement()
  platform = found.platform or _default_platform()
  return dataclasses.replace(found, platform=platform, mapped=found.mapped or _mapped.get())


def _default_platform() -> str:
  device = jax.config.jax_default_device  # type: ignore[attr-defined]
  if device is None:
    return jax.default_backend()
  return device if isinstance(device, str) else str(device.platform)


@contextlib.contextmanager
def mapped() -> Iterator[None]:
  """What is traced within the block is one of many runs that `jax.vmap` computes at once."""
  token = _mapped.set(True)
  try:
    yield
  finally:
    _mapped.reset(token)


@contextlib.contextmanager
def placed(placement: Placement) -> Iterator[None]:
  """What is traced within the block is for these devices."""
  token = _current.set(placement)
  try:
    yield
  finally:
    _current.reset(token)


def in_rows(product: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """product(x), [..., out] from [..., in]; on a CPU of x as a matrix.

  A product, or a gradient, that contracts or keeps several axes of one operand is made one of matrices by the CPU's
  compiler, which for that copies operands transposed: the output's gradient together with all it is computed from,
  and the kernel. Of matrices it multiplies in place, whichever of their axes is contracted.
  """
  if x.ndim <= 2 or current().platform != "cpu":
    return product(x)
  y = product(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]))
  return y.reshape(*x.shape[:-1], y.shape[-1])


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """x W, [..., out] from [..., in] and [in, out]."""
  return in_rows(lambda rows: rows @ kernel, x)


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
