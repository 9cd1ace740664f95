"""One optimizer for the trainable tree: a transform, a learning rate and a weight decay for each group.

`make_optimizer` never sees a frozen leaf, so its state holds no statistics for one. Updates are linear in the learning
rate, and every group keeps its own peak rate as an array in the state: a sweep over rates is `jax.vmap` over states
whose peaks differ (`with_peaks`), and nothing is compiled again.

  config.optim                     {"name": "adamw", "learning_rate": 1e-3, "schedule": "linear", "warmup": 0.06, ...}
  config.optim.groups["head"]      {"learning_rate": 5e-3, "weight_decay": 0.0}       the user's, wins
  method_groups["lora_b"]          {"learning_rate_multiplier": 16.0}                 the method's, such as LoRA+'s
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from peftjax.config.checking import check_value
from peftjax.config.field import Field
from peftjax.config.table import FIELDS
from peftjax.errors import UserError, nearest
from peftjax.galore import scale_by_galore
from peftjax.masks import FROZEN, Tree, flatten, stack_shape, unflatten

SCHEDULES = ("constant", "linear", "cosine")
OPTIMIZERS = ("adamw", "sgd", "adafactor", "lion", "galore")
GROUP_FIELDS = ("learning_rate", "learning_rate_multiplier", "weight_decay", "schedule", "warmup")
UNDECAYED = ("bias", "scale", "magnitude", "ia3_l")  # leaves that are no matrices, whatever their shape

_MULTIPLIER = Field(1.0, "times the group's rate", above=0)
_LARGEST = float(np.finfo(np.float32).max)


class LearningRateState(NamedTuple):
  """Scalars of one group: updates done, the peak rate, the rate of the last update, and the schedule's two lengths.

  Rate and lengths are arrays, so that a run with others has the same program. A checkpoint holds no `LENGTHS`: they
  follow from the config.
  """

  step: jax.Array
  peak: jax.Array
  rate: jax.Array
  rising: jax.Array
  falling: jax.Array


LENGTHS = ("rising", "falling")


@dataclasses.dataclass(frozen=True)
class GroupSettings:
  """What one group of leaves trains with; `warmup` is a share of all steps."""

  learning_rate: float
  weight_decay: float
  schedule: str
  warmup: float


# Schedules --------------------------------------------------------------------------------------------------------


class Schedule(NamedTuple):
  """The share of the peak rate at each update: a name of `SCHEDULES`, and how many updates it rises, then falls."""

  name: str
  rising: jax.Array | int
  falling: jax.Array | int

  def __call__(self, count: jax.Array) -> jax.Array:
    """The share after `count` updates; the lengths may be arrays."""
    count = count.astype(jnp.float32)
    done = jnp.clip((count - self.rising) / self.falling, 0.0, 1.0)
    if self.name == "linear":
      left = 1.0 - done
    elif self.name == "cosine":
      left = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
    else:
      left = jnp.ones_like(done)
    return jnp.where(count < self.rising, (count + 1.0) / jnp.maximum(self.rising, 1), left)


def make_schedule(name: str, total_steps: int, warmup: float = 0.0) -> Schedule:
  """A schedule over a run.

  It rises by equal amounts during ``round(warmup * total_steps)`` updates, the first of which already moves the
  parameters, stands at 1 for one update, and then stays (constant) or falls so that the update after the last would
  have 0 (linear, cosine).

  Args:
    name: one of `SCHEDULES`.
    total_steps: updates in the whole run.
    warmup: share of `total_steps`, in [0, 1).

  Raises:
    UserError: an unknown name, or a share outside [0, 1).
  """
  if name not in SCHEDULES:
    raise UserError(f"optim.schedule: no schedule {name!r}; {nearest(name, SCHEDULES)}")
  if not 0.0 <= warmup < 1.0:
    raise UserError(f"optim.warmup: {warmup} is no share of all steps; expected a number from 0 to below 1")
  rising = round(warmup * total_steps)
  return Schedule(name, rising, max(total_steps - rising, 1))


def scale_by_learning_rate(peak: float, schedule: Schedule) -> optax.GradientTransformation:
  """Multiplies by minus the scheduled rate; peak and lengths are arrays in the state, the same for init of any tree."""

  def init(params: Tree) -> LearningRateState:
    del params
    start, lengths = jnp.zeros((), jnp.int32), (jnp.int32(schedule.rising), jnp.int32(schedule.falling))
    return LearningRateState(start, jnp.float32(peak), jnp.zeros((), jnp.float32), *lengths)

  def update(updates: Tree, state: LearningRateState, params: Tree | None = None) -> tuple[Tree, LearningRateState]:
    del params
    rate = state.peak * schedule._replace(rising=state.rising, falling=state.falling)(state.step)
    updates = jax.tree.map(lambda u: (-rate * u).astype(u.dtype), updates)
    return updates, state._replace(step=state.step + 1, rate=rate)

  return optax.GradientTransformation(init, update)


def learning_rates(opt_state: Any) -> dict[str, jax.Array]:
  """Group -> the rate of the last update."""
  return {group: state.rate for group, state in _rate_states(opt_state).items()}


def with_peaks(opt_state: Any, peaks: Mapping[str, jax.Array | float]) -> Any:
  """The state with other peak rates for the named groups.

  Raises:
    KeyError: the state has no such group.
  """
  known = _rate_states(opt_state)
  for group in peaks:
    if group not in known:
      raise KeyError(group)

  def replace(group: str, state: LearningRateState) -> LearningRateState:
    return state._replace(peak=jnp.asarray(peaks[group], jnp.float32)) if group in peaks else state

  return _with_rate_states(opt_state, replace)


def blank(opt_state: Any) -> Any:
  """The state without what a config says of rates and lengths; see `begun`."""
  empty = lambda group, state: jax.tree.map(jnp.zeros_like, state)  # noqa: E731
  return _with_rate_states(opt_state, empty)


def begun(opt_state: Any, settings: Mapping[str, GroupSettings], total_steps: int) -> Any:
  """The `blank` state with each group's peak rate and the lengths of its schedule, as NumPy's scalars."""

  def fill(group: str, state: LearningRateState) -> LearningRateState:
    one = settings[group]
    schedule = make_schedule(one.schedule, total_steps, one.warmup)
    numbers: Any = np.float32(one.learning_rate), np.int32(schedule.rising), np.int32(schedule.falling)
    return LearningRateState(state.step, numbers[0], state.rate, *numbers[1:])

  return _with_rate_states(opt_state, fill)


def _with_rate_states(opt_state: Any, change: Callable[[str, LearningRateState], LearningRateState]) -> Any:
  def replace(path: Any, state: Any) -> Any:
    return change(_group_of(path), state) if _is_rate_state(state) else state

  return jax.tree_util.tree_map_with_path(replace, opt_state, is_leaf=_is_rate_state)


def _rate_states(opt_state: Any) -> dict[str, LearningRateState]:
  found = jax.tree_util.tree_flatten_with_path(opt_state, is_leaf=_is_rate_state)[0]
  return {_group_of(path): state for path, state in found if _is_rate_state(state)}


def _is_rate_state(node: Any) -> bool:
  return isinstance(node, LearningRateState)


def _group_of(path: Any) -> str:
  return [key.key for key in path if isinstance(key, jax.tree_util.DictKey)][-1]


# Weight decay -----------------------------------------------------------------------------------------------------


def decays(name: str, leaf: Any, stacks: Mapping[str, int] | None = None) -> bool:
  """Whether weight decay acts on a leaf: on matrices, not on biases, norms, scales and other vectors.

  Args:
    name: the leaf's dotted path.
    leaf: an array or its shape; axes of the stacks that it lies below do not count.
    stacks: dotted path of each stack of layers -> number of layers.
  """
  stacked = len(stack_shape(name, stacks or {}))
  module, _, last = name.rpartition(".")
  is_norm = "norm" in module.rpartition(".")[2].lower()
  return len(leaf.shape) - stacked >= 2 and last not in UNDECAYED and not is_norm


# The optimizer ----------------------------------------------------------------------------------------------------


def make_optimizer(
  config: ConfigDict,
  groups: Tree,
  total_steps: int,
  method_groups: Mapping[str, Mapping[str, Any]] | None = None,
  *,
  stacks: Mapping[str, int] | None = None,
  learning_rate: float = 0.0,
) -> optax.GradientTransformation:
  """Clips by the global norm, then gives every group its own transform.

  Args:
    config: `config.optim`.
    groups: the group of each trainable leaf, a tree like the trainable one; frozen leaves, if there are any in it, are
      left out.
    total_steps: updates in the whole run.
    method_groups: group -> fields of `GROUP_FIELDS` that the method sets; the user's `config.groups` win.
    stacks: dotted path of each stack of layers -> number of layers.
    learning_rate: the method's default peak rate, for a config that leaves it at 0.

  Raises:
    UserError: an unknown optimizer, schedule, group or field of a group; no positive learning rate.
  """
  labels = unflatten({name: group for name, group in flatten(groups).items() if group != FROZEN})
  settings = group_settings(config, set(jax.tree.leaves(labels)), method_groups, learning_rate)
  transforms = {group: _one_group(config, one, total_steps, stacks or {}) for group, one in settings.items()}
  clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm > 0 else optax.identity()
  return optax.chain(clip, optax.multi_transform(transforms, labels))


def group_settings(
  config: ConfigDict,
  groups: set[str],
  method_groups: Mapping[str, Mapping[str, Any]] | None = None,
  learning_rate: float = 0.0,
) -> dict[str, GroupSettings]:
  """Group -> what it trains with: the user's fields for the group, else the method's, else the config's own.

  Raises:
    UserError: an unknown group or field, a value out of its range, a rate that is no positive float32.
  """
  check_settings(config, groups)
  found = {}
  for group in sorted(groups):
    user = dict(config.groups.get(group, {}))
    method = dict((method_groups or {}).get(group, {}))
    rate = config.learning_rate or method.get("learning_rate") or learning_rate
    rate *= method.get("learning_rate_multiplier", 1.0)
    rate = user.get("learning_rate", rate) * user.get("learning_rate_multiplier", 1.0)
    if rate > _LARGEST or np.float32(rate) <= 0:
      raise UserError(f"optim.learning_rate: {rate:g} for the group {group!r}; expected a positive number")
    rest = {
      field: user.get(field, method.get(field, config[field])) for field in ("weight_decay", "schedule", "warmup")
    }
    found[group] = GroupSettings(learning_rate=float(rate), **rest)
  return found


def check_settings(config: ConfigDict, groups: Collection[str]) -> None:
  """Checks `config.optim`: the ranges of its fields, and of those that it has for single groups.

  Args:
    groups: those that train.

  Raises:
    UserError: an unknown group or field, or a value out of its range.
  """
  for name, value in config.items():
    if f"optim.{name}" in FIELDS:
      check_value(f"optim.{name}", value, FIELDS[f"optim.{name}"])
  if not hasattr(config.groups, "items"):
    raise UserError(f"optim.groups={config.groups!r}: expected groups, such as {{'head': {{'learning_rate': 5e-3}}}}")
  for group, fields in config.groups.items():
    if group not in groups:
      raise UserError(f"optim.groups: no leaf trains in a group {group!r}; {nearest(group, groups)}")
    if not hasattr(fields, "items"):
      raise UserError(f"optim.groups.{group}={fields!r}: expected fields, such as {{'learning_rate': 5e-3}}")
    for field, value in fields.items():
      if field not in GROUP_FIELDS:
        raise UserError(f"optim.groups.{group}: no field {field!r}; {nearest(field, GROUP_FIELDS)}")
      check_value(f"optim.groups.{group}.{field}", value, FIELDS.get(f"optim.{field}", _MULTIPLIER))


def _one_group(
  config: ConfigDict, settings: GroupSettings, total_steps: int, stacks: Mapping[str, int]
) -> optax.GradientTransformation:
  def decay_mask(params: Tree) -> Tree:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: decays(_name(path), leaf, stacks), params)

  decay = optax.add_decayed_weights(settings.weight_decay, decay_mask) if settings.weight_decay else optax.identity()
  schedule = make_schedule(settings.schedule, total_steps, settings.warmup)
  return optax.chain(_direction(config, stacks), decay, scale_by_learning_rate(settings.learning_rate, schedule))


def _direction(config: ConfigDict, stacks: Mapping[str, int]) -> optax.GradientTransformation:
  if config.name == "adamw":
    return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
  if config.name == "lion":
    return optax.scale_by_lion(b1=config.b1, b2=config.b2)
  if config.name == "sgd":
    return optax.trace(decay=config.momentum) if config.momentum else optax.identity()
  if config.name == "galore":
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    settings = (config.galore_rank, config.galore_every, config.galore_scale)
    return scale_by_galore(adam, *settings, stacks, _is_kernel)
  if config.name == "adafactor":
    return per_layer(
      optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()), stacks
    )
  raise UserError(f"optim.name: no optimizer {config.name!r}; {nearest(config.name, OPTIMIZERS)}")


def check_projects(config: ConfigDict, trainable: Tree, stacks: Mapping[str, int]) -> None:
  """Raises `UserError` if GaLore is asked for and projects no leaf, so that it would be plain Adam."""
  if config.name != "galore":
    return
  sides = [min(leaf.shape[-2:]) for name, leaf in flatten(trainable).items()
           if _is_kernel(name, leaf) and len(leaf.shape) - len(stack_shape(name, stacks)) == 2]  # fmt: skip
  longest = max(sides, default=0)
  if longest <= config.galore_rank:
    hint = f"choose at most {longest - 1}" if longest > 1 else "choose another optimizer"
    raise UserError(f"optim.galore_rank={config.galore_rank}: no kernel that trains is larger on both sides; {hint}")


def _is_kernel(name: str, leaf: Any) -> bool:
  del leaf
  return name.endswith("kernel")


class _PerLayerState(NamedTuple):
  leaves: dict[str, Any]


def per_layer(transform: optax.GradientTransformation, stacks: Mapping[str, int]) -> optax.GradientTransformation:
  """A transform that treats leaves one by one, made to treat every layer of a stacked leaf as a leaf of its own."""

  def mapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    for _ in stack_shape(name, stacks):
      function = jax.vmap(function)
    return function

  def init(params: Tree) -> _PerLayerState:
    return _PerLayerState({name: mapped(name, transform.init)(leaf) for name, leaf in _named(params)})

  def update(updates: Tree, state: _PerLayerState, params: Tree) -> tuple[Tree, _PerLayerState]:
    values = dict(_named(params))
    done = {
      name: mapped(name, transform.update)(leaf, state.leaves[name], values[name]) for name, leaf in _named(updates)
    }
    new = jax.tree_util.tree_map_with_path(lambda path, _: done[_name(path)][0], updates)
    return new, _PerLayerState({name: leaf_state for name, (_, leaf_state) in done.items()})

  return optax.GradientTransformation(init, update)


def _named(tree: Tree) -> list[tuple[str, Any]]:
  """Dotted name and leaf; leaves of other groups, which `multi_transform` masks, are passed over."""
  return [(_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _name(path: Any) -> str:
  return ".".join(key.key for key in path)


def optimizer_bytes(opt_state: Any) -> int:
  """Bytes of the statistics held for the parameters: all leaves but the scalars that count steps and hold rates."""
  arrays = [leaf for leaf in jax.tree.leaves(opt_state) if len(leaf.shape) > 0]
  return sum(leaf.size * leaf.dtype.itemsize for leaf in arrays)
