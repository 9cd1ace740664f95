"""One update, as a pure function of the state, the frozen leaves and a batch.

The gradient is taken of the trainable tree alone, so XLA never forms a frozen weight's gradient, whatever is logged.
The function maps: `jax.vmap(step, in_axes=(0, None, 0))` trains many states, each on its own batch, over one base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from peftjax import optim
from peftjax.masks import Tree, combine, flatten
from peftjax.tasks import Task
from peftjax.train.spikes import spiked
from peftjax.train.state import TrainState, averaged

Batch = Mapping[str, jax.Array]
Metrics = dict[str, Any]
ModelForward = Callable[[Tree, Mapping[str, Any], jax.Array | None], Mapping[str, jax.Array]]
Loss = Callable[[Tree, Tree, Batch, jax.Array], tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]]
Penalty = Callable[[Tree], jax.Array | float]
TrainStep = Callable[[TrainState, Tree, Batch], tuple[TrainState, Metrics]]

_TASK_STREAM = 0x7A5C  # any constant: apart from dropout's draws


def make_loss(forward: ModelForward, task: Task, penalty: Penalty | None = None) -> Loss:
  """(trainable, frozen, batch, key) -> (sum of losses, (sum of weights, extra sums)), in training mode.

  Dropout draws from `key`, unless the task gives a pass another; what the task itself draws has a key of its own.

  Args:
    penalty: parameters -> what the methods add to the mean loss.
  """

  def loss(trainable: Tree, frozen: Tree, batch: Batch, key: jax.Array) -> Any:
    params = combine(trainable, frozen)

    def bound(inputs: Mapping[str, Any], dropout: jax.Array | None = None) -> Mapping[str, jax.Array]:
      return forward(params, inputs, key if dropout is None else dropout)

    total, weight, extra = task.loss(bound, batch, jax.random.fold_in(key, _TASK_STREAM))
    if penalty is not None:
      total = total + weight * penalty(params)
    return total, (weight, extra)

  return loss


def make_train_step(
  loss: Loss, optimizer: optax.GradientTransformation, accumulate: int = 1, ema: float = 0.0
) -> TrainStep:
  """The update, not yet compiled.

  Args:
    loss: see `make_loss`. Losses and weights are sums, so the update of `accumulate` micro-batches is that of the whole
      batch, however unevenly weights fall on them.
    optimizer: over the trainable tree.
    accumulate: micro-batches in the batch; only one's activations and one set of trainable gradients are held.
    ema: the largest decay of the state's moving average (`state.averaged`), where the state has one.

  Returns:
    step(state, frozen, batch) -> (state, metrics). An update whose loss or gradient is not finite, or whose loss is a
    spike (`peftjax.train.spikes`), is left out: leaves, optimizer and average stay, the step counts. Metrics,
    float32 scalars if not said otherwise: loss, grad_norm (before clipping), weight, finite (bool: not left out),
    learning_rate {group: rate}, leaf_norms {leaf: norm of its gradient}, and the task's extra sums over the sum of
    weights.
  """
  gradient = jax.value_and_grad(loss, has_aux=True)
  updating = optax.with_extra_args_support(optimizer)

  def sums(state: TrainState, frozen: Tree, batch: Batch, key: jax.Array) -> Any:
    (total, (weight, extra)), grads = gradient(state.trainable, frozen, batch, key)
    return total, weight, extra, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

  def accumulated(state: TrainState, frozen: Tree, batch: Batch, key: jax.Array) -> Any:
    if accumulate == 1:
      return sums(state, frozen, batch, key)
    micro = {name: _split(array, accumulate) for name, array in batch.items()}
    keys = jax.random.split(key, accumulate)
    shapes = jax.eval_shape(sums, state, frozen, jax.tree.map(lambda x: x[0], micro), keys[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def body(carry: Any, one: Any) -> Any:
      return jax.tree.map(jnp.add, carry, sums(state, frozen, *one)), None

    return jax.lax.scan(body, zeros, (micro, keys))[0]

  def step(state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(state.rng, state.step)
    total, weight, extra, grads = accumulated(state, frozen, batch, key)
    scale = 1.0 / jnp.where(weight > 0, weight, 1.0)
    grads = jax.tree.map(lambda g, leaf: (g * scale).astype(leaf.dtype), grads, state.trainable)
    squares = {name: jnp.sum(jnp.square(g.astype(jnp.float32))) for name, g in flatten(grads).items()}
    norm = jnp.sqrt(sum(squares.values(), jnp.float32(0)))
    loss_value = total * scale
    finite = jnp.isfinite(loss_value) & jnp.isfinite(norm)
    updates, opt_state = updating.update(grads, state.opt_state, state.trainable, value=loss_value)
    finite &= jnp.logical_not(spiked(opt_state))
    new_leaves = optax.apply_updates(state.trainable, updates)
    mean = None if state.average is None else averaged(state.average, new_leaves, state.step, ema)
    trainable, opt_state, mean = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      (new_leaves, opt_state, mean),
      (state.trainable, state.opt_state, state.average),
    )
    metrics = {name: value * scale for name, value in extra.items()} | {
      "loss": loss_value,
      "grad_norm": norm,
      "weight": weight,
      "finite": finite,
      "learning_rate": optim.learning_rates(opt_state),
      "leaf_norms": jax.tree.map(jnp.sqrt, squares),
    }
    return TrainState(state.step + 1, trainable, opt_state, state.rng, mean), metrics

  return step


def _split(array: jax.Array, parts: int) -> jax.Array:
  """[B, ...] -> [parts, B / parts, ...]; every device keeps its own rows."""
  return array.reshape(array.shape[0] // parts, parts, *array.shape[1:]).swapaxes(0, 1)
