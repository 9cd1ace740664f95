"""What a training step reads and writes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from peftjax.masks import Tree


class TrainState(NamedTuple):
  """All that changes during training; a checkpoint holds this and the data's position, and no frozen leaf.

  Attributes:
    step: int32 scalar, updates tried so far.
    trainable: the trainable leaves.
    opt_state: the optimizer's state, of those leaves alone.
    rng: uint32 [2], the run's key; update n draws from `fold_in(rng, n)`, so it never changes.
  """

  step: jax.Array
  trainable: Tree
  opt_state: Any
  rng: jax.Array


def init_state(trainable: Tree, optimizer: optax.GradientTransformation, seed: int | jax.Array) -> TrainState:
  """The state before the first update. Traceable, so a sweep maps it over seeds or trees."""
  return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable), jax.random.PRNGKey(seed))
