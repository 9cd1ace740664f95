"""What a model may know of the devices that it is traced for; values never depend on it, only how they are computed."""

from __future__ import annotations

import contextlib
import dataclasses
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


_brought: ContextVar[Callable[[jax.Array], jax.Array] | None] = ContextVar("brought", default=None)


def product(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
  """`jax.lax.dot_general` of a linear module, whose kernel is brought to its inputs as `bringing` says."""
  bring = _brought.get()
  return jax.lax.dot_general(x, kernel if bring is None else bring(kernel), *args, **kwargs)


@contextlib.contextmanager
def bringing(kernel: Callable[[jax.Array], jax.Array]) -> Iterator[None]:
  """How the kernel of the linear module that is called within the block comes to its inputs."""
  token = _brought.set(kernel)
  try:
    yield
  finally:
    _brought.reset(token)


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
