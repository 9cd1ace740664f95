"""Updates whose loss leaps: recognised in the step itself, by the running mean of the losses, and left out.

    spike    loss > factor · mean, once 10 losses are in the mean
    mean     exponential, 0.9 of the old and 0.1 of the new; a spike does not enter it

The mean is part of the optimizer's state, so it is saved with it, and a resumed run skips what the whole one skips.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from peftjax.errors import UserError

_WARM = 10
_KEEP = 0.9


class SpikeState(NamedTuple):
  """The mean of the losses so far, their number, whether the last was a spike, and the optimizer's own state."""

  mean: jax.Array
  seen: jax.Array
  spiked: jax.Array
  inner: Any


def watch_loss(optimizer: optax.GradientTransformation, factor: float) -> optax.GradientTransformation:
  """The optimizer, with a state that tells spikes; it needs the loss as `value` in every update. Factor 0: as it was.

  Raises:
    UserError: a factor that every loss would exceed.
  """
  if factor == 0.0:
    return optimizer
  if not factor > 1.0:
    raise UserError(f"train.spike={factor}: expected 0, or a number above 1: how many times the mean loss a spike is")
  inner = optax.with_extra_args_support(optimizer)

  def init(params: Any) -> SpikeState:
    return SpikeState(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32), jnp.zeros((), bool), inner.init(params))

  def update(updates: Any, state: SpikeState, params: Any = None, *, value: jax.Array, **extra: Any) -> Any:
    updates, inner_state = inner.update(updates, state.inner, params, value=value, **extra)
    spiked = (state.seen >= _WARM) & (value > factor * state.mean)
    mean = jnp.where(state.seen == 0, value, _KEEP * state.mean + (1.0 - _KEEP) * value)
    return updates, SpikeState(mean.astype(jnp.float32), state.seen + 1, spiked, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def spiked(opt_state: Any) -> jax.Array | bool:
  """Whether the update that made this state had a spiking loss."""
  return opt_state.spiked if isinstance(opt_state, SpikeState) else False
