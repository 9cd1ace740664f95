"""What a model may know of the devices that it is traced for; values never depend on it, only how they are computed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar

import jax


@dataclasses.dataclass(frozen=True)
class Placement:
  """The devices of a program.

  Attributes:
    platform: "cpu", "gpu" or "tpu"; empty: JAX's default backend.
    batch: parts that the batch is split into.
    heads: parts that attention heads are split into.
  """

  platform: str = ""
  batch: int = 1
  heads: int = 1


_current: ContextVar[Placement | None] = ContextVar("placement", default=None)


def current() -> Placement:
  """The placement of the program that is being traced."""
  found = _current.get() or Placement()
  return found if found.platform else dataclasses.replace(found, platform=jax.default_backend())


@contextlib.contextmanager
def placed(placement: Placement) -> Iterator[None]:
  """What is traced within the block is for these devices."""
  token = _current.set(placement)
  try:
    yield
  finally:
    _current.reset(token)
