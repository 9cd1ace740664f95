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
    average: the trainable leaves' exponential moving average, in float32; None where `train.ema` is 0.
  """

  step: jax.Array
  trainable: Tree
  opt_state: Any
  rng: jax.Array
  average: Tree | None = None

  @property
  def evaluated(self) -> Tree:
    """The leaves that are evaluated and exported: the average where there is one, in the dtypes of what trains."""
    if self.average is None:
      return self.trainable
    return jax.tree.map(lambda mean, leaf: mean.astype(leaf.dtype), self.average, self.trainable)


def init_state(
  trainable: Tree, optimizer: optax.GradientTransformation, seed: int | jax.Array, averages: bool = False
) -> TrainState:
  """The state before the first update. Traceable, so a sweep maps it over seeds or trees."""
  average = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), trainable) if averages else None
  start, rng = jnp.zeros((), jnp.int32), jax.random.PRNGKey(seed)
  return TrainState(start, trainable, optimizer.init(trainable), rng, average)


def averaged(average: Tree, trainable: Tree, step: jax.Array, decay: float) -> Tree:
  """The exponential moving average after an update: d * average + (1 - d) * leaf.

  d is `decay` at most, and lower at first, (1 + n) / (10 + n) after n updates before this one, so that the start is
  soon forgotten; the first update's leaves are taken as they are. So does `EMAModel` of diffusers.

  Args:
    step: updates before this one.
  """
  rising = jnp.where(step > 0, (1.0 + step) / (10.0 + step), 0.0)
  kept = jnp.minimum(decay, rising).astype(jnp.float32)
  return jax.tree.map(lambda mean, leaf: kept * mean + (1.0 - kept) * leaf.astype(jnp.float32), average, trainable)
