"""A call as one of several sees it that share it: one adapter of a stack, or one expert."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.draws import bernoulli
from peftjax.methods.base import Call, Leaves


def alone(call: Call, own: Leaves, shared: Leaves, key: Any, notes: dict[str, Any]) -> Call:
  """The call as one adapter, or one expert, sees it: its leaves, its dropout."""
  draws = itertools.count()

  def base(name: str) -> Any:
    return own[name] if name in own else call.base(name)

  def draw() -> Any:
    return None if key is None else jax.random.fold_in(key, next(draws))

  return dataclasses.replace(call, base=base, shared=shared, dropout=dropping(draw), key=draw, notes=notes)


def dropping(draw: Callable[[], jax.Array | None]) -> Callable[[jax.Array, float], jax.Array]:
  """`Call.dropout` with keys that `draw` gives; none: the identity."""

  def drop(x: jax.Array, rate: float) -> jax.Array:
    key = None if rate == 0.0 else draw()
    if key is None:
      return x
    keep = bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))

  return drop
