"""The columns of docs/methods.md: what is asked of a method, each computed on a base, none taken on trust.

A column is a function from a `Subject` to its cell: "yes" or a figure where the thing was done and came out right, and
"no: " with the reason where the code refuses it. What a method claims and does not keep raises `FalseClaim`.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from peftjax import masks
from peftjax.adapters import abilities
from peftjax.errors import UserError
from peftjax.loading import load
from peftjax.methods import Full, Method
from peftjax.model import Model
from peftjax.testing import bases
from peftjax.train.checkpoint import Base, Checkpoints
from peftjax.train.flops import count_flops
from peftjax.train.state import TrainState, init_state
from peftjax.train.step import TrainStep, make_train_step

YES = "yes"


class FalseClaim(AssertionError):
  """A method says of itself what is not so."""


@dataclasses.dataclass(eq=False)
class Subject:
  """A method on a base.

  Attributes:
    method: with its settings.
    base: the model that it is added to, of real leaves.
    inputs: seed -> the base's inputs of a batch, by name; of one size.
  """

  method: Method
  base: Model
  inputs: Callable[[int], Mapping[str, Any]] = bases.batch

  @functools.cached_property
  def fresh(self) -> Model:
    """The base with the method's fresh leaves."""
    return self.base.add(self.method, jax.random.key(3))

  @functools.cache  # noqa: B019 (a subject is held for one report)
  def moved(self, seed: int) -> Model:
    """The base with leaves that moved a little, as after some training."""
    model = self.base.add(self.method, jax.random.key(seed))
    return bases.replaced(model, bases.noise_on(bases.trainable(model), seed=seed + 1, scale=0.05))

  @functools.cached_property
  def optimizer(self) -> optax.GradientTransformation:
    """What trains in the checks."""
    return optax.sgd(0.1, momentum=0.9)

  @functools.cached_property
  def step(self) -> TrainStep:
    """A compiled update."""
    return jax.jit(self.plain_step)

  def plain_step(self, state: TrainState, frozen: masks.Tree, batch: Mapping[str, Any]) -> Any:
    """An update, not yet compiled."""
    model = self.moved(0)

    def loss(trainable: masks.Tree, frozen: masks.Tree, batch: Mapping[str, Any], key: jax.Array) -> Any:
      params = masks.combine(trainable, frozen)
      return score(model.forward(params, batch, key)) + model.penalty(params), (jnp.ones(()), {})

    return make_train_step(loss, self.optimizer)(state, frozen, batch)

  def start(self, seed: int) -> tuple[TrainState, masks.Tree]:
    """(a training state, the frozen leaves) of `moved`."""
    model = self.moved(seed)
    trainable, frozen = masks.partition(model.params, model.labels())
    return init_state(trainable, self.optimizer, 0), frozen

  @functools.cached_property
  def first(self) -> tuple[TrainState, masks.Tree, TrainState, dict[str, Any]]:
    """(state, frozen leaves, state after an update, its metrics)."""
    state, frozen = self.start(0)
    return state, frozen, *self.step(state, frozen, self.inputs(0))

  @property
  def name(self) -> str:
    """The method's name."""
    return self.method.name


def score(outputs: Mapping[str, Any]) -> jax.Array:
  """A number that depends on every element of every output."""
  total = jnp.zeros(())
  for leaf in jax.tree.leaves(outputs):
    weights = jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape)
    total += 3.0 * jnp.mean(jnp.tanh(leaf.astype(jnp.float32)) * weights)
  return total


def outputs(model: Model, inputs: Mapping[str, Any], **more: Any) -> dict[str, np.ndarray]:
  """The model's outputs by name, of one pass."""
  found = jax.jit(lambda params: model.forward(params, inputs, **more))(model.params)
  return {jax.tree_util.keystr(path): np.asarray(leaf, np.float32)
          for path, leaf in jax.tree_util.tree_flatten_with_path(found)[0]}  # fmt: skip


def off_by(ours: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> float:
  """The largest difference over the largest output, of the outputs that both have in one shape."""
  common = [name for name in ours if name in others and ours[name].shape == others[name].shape]
  if not common:
    raise FalseClaim("the outputs have other names or shapes")
  return max(float(np.abs(ours[name] - others[name]).max() / max(1.0, np.abs(others[name]).max())) for name in common)


def demand(true: bool, what: str) -> None:
  """Raises what a method claims in vain."""
  if not true:
    raise FalseClaim(what)


# Columns of the page ----------------------------------------------------------------------------------------------


def starts_as_base(one: Subject, otherwise: str = "") -> str:
  """Whether outputs with fresh leaves are the base's, operation by operation: what a compiler fuses rounds otherwise.

  Args:
    otherwise: the reason why they are not; "" if the method claims that they are.
  """
  with jax.disable_jit():
    ours, plain = (outputs(model, one.inputs(0)) for model in (one.fresh, one.base))
  same = {name: leaf.shape for name, leaf in ours.items()} == {name: leaf.shape for name, leaf in plain.items()}
  if same and all(np.array_equal(ours[name], plain[name]) for name in ours):
    return "bitwise"
  off = off_by(ours, plain)
  if same and off < 1e-5:
    return "to rounding"
  demand(bool(otherwise), f"fresh leaves change the base's outputs by {off:.2g}; give starts_as_base=REASON if meant")
  return f"no: {otherwise}"


def trains(one: Subject) -> str:
  """The leaves that train outside the head: with finite gradients; each name moves somewhere; no other does."""
  state, _, after, metrics = one.first
  model, norms = one.moved(0), {path: float(norm) for path, norm in metrics["leaf_norms"].items()}
  demand(bool(metrics["finite"]) and all(np.isfinite(list(norms.values()))), "a gradient is not finite")
  old, new = masks.flatten(state.trainable), masks.flatten(after.trainable)
  stuck = [path for path in old if norms[path] > 1e-6 and np.array_equal(old[path], new[path])]
  demand(not stuck, f"{stuck} have a gradient and do not move")
  own = {path for path in old if not model.context.in_head(path)}
  adds = model.adapter_paths()
  for each in model.bound:
    said = {path for path in adds if path.rpartition(".")[2] in each.method.leaf_names}
    kept = {path for path in adds if path.rpartition(".")[2] in each.method.buffer_names}
    demand(said <= own, f"{sorted(said - own)[:3]} are in leaf_names, and the mask freezes them")
    demand(not kept & own - said, f"{sorted(kept & own)[:3]} are in buffer_names, and the mask trains them")
  tails = sorted({path.rpartition(".")[2] for path in own & adds})
  for tail in tails:
    norm = max(norms[path] for path in own & adds if path.rpartition(".")[2] == tail)
    demand(norm > 0.0, f"no leaf {tail!r} has a gradient: the outputs do not depend on it where it stands")
  if not own:
    return "the head alone"
  if not adds:
    return f"{len(own)} of the base's leaves"
  foreign = own - adds
  demand(not foreign or _frees_biases(model), f"{sorted(foreign)[:3]} train and are not its leaves")
  return " ".join(f"`{tail}`" for tail in tails) + (" and the base's biases" if foreign else "")


def _frees_biases(model: Model) -> bool:
  return len(model.bound) > 1 or any(getattr(each, "bias", "none") != "none" or each.modules_to_save
                                     for each in model.methods)  # fmt: skip


def flops(one: Subject, method: Method | None = None) -> str:
  """FLOPs of a step's gradient over those of full fine-tuning: two of BERT-base's layers, 8 x 64 tokens."""
  share = gradient_flops(method or one.method) / _full_flops()
  demand(share <= 1.0, f"a step's gradient costs {share:.2f} times full fine-tuning's")
  return f"{share:.2f}"


@functools.cache
def _full_flops() -> int:
  return gradient_flops(Full())


def gradient_flops(method: Method) -> int:
  """Of the gradient of what trains, on `bases.wide`."""
  model = bases.wide().add(method, jax.random.key(0))
  inputs = {key: jax.ShapeDtypeStruct((8, 64), jnp.int32) for key in ("input_ids", "attention_mask")}

  def gradient(flat: Any, rest: Any, inputs: Any) -> Any:
    return jax.grad(lambda leaves: jnp.sum(model.forward(masks.unflatten({**rest, **leaves}), inputs)["logits"]))(flat)

  return count_flops(gradient, bases.trainable(model), bases.rest_of(model), inputs)


def able(one: Subject, ability: str) -> str:
  """What the code answers, and its errors say."""
  answer = abilities.can(one.method, ability)
  return YES if answer is True else f"no: {str(answer).replace(one.name, 'it', 1)}"


def in_a_sweep(one: Subject) -> str:
  """Two runs in one vmapped step over one base: each ends where it ends alone."""
  states, frozen = zip(*(one.start(seed) for seed in (0, 1)))
  flat = [masks.flatten(tree) for tree in frozen]
  own = {path for path in flat[0] if not np.array_equal(flat[0][path], flat[1][path])}
  demand(own <= one.moved(0).adapter_paths(), "frozen leaves of the base depend on the key")
  joint = {path: jnp.stack([flat[0][path], flat[1][path]]) if path in own else leaf for path, leaf in flat[0].items()}
  axes = masks.unflatten({path: 0 if path in own else None for path in joint})
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
  batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), dict(one.inputs(0)), dict(one.inputs(1)))
  together, _ = jax.jit(jax.vmap(one.plain_step, in_axes=(0, axes, 0)))(stacked, masks.unflatten(joint), batches)
  for index, (state, rest) in enumerate(zip(states, frozen)):
    alone, _ = one.step(state, rest, one.inputs(index))
    for path, leaf in masks.flatten(alone.trainable).items():
      ours = masks.flatten(together.trainable)[path][index]
      demand(np.allclose(ours, leaf, rtol=1e-4, atol=1e-5), f"{path} of run {index} ends elsewhere than alone")
  return YES


def resumes(one: Subject) -> str:
  """Saved after a step, restored and taken a step further: bit for bit the state that nobody saved."""
  _, frozen, state, _ = one.first
  unbroken, _ = one.step(state, frozen, one.inputs(2))
  with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder)) as checkpoints:
    checkpoints.save(state, {"step": 1}, Base("tiny", "0"))
    checkpoints.wait()
    found = checkpoints.restore(jax.tree.map(jnp.zeros_like, state), Base("tiny", "0"))
    assert found is not None
    resumed, _ = one.step(found[0], frozen, one.inputs(2))
  same = jax.tree.map(np.array_equal, resumed, unbroken)
  demand(all(jax.tree.leaves(same)), "a resumed run ends elsewhere than an unbroken one")
  return YES


def to_peft(one: Subject) -> str:
  """Saved in Hugging Face PEFT's format."""
  return _to_and_from_peft(one)[0]


def from_peft(one: Subject) -> str:
  """Read again from there: the same leaves, bitwise."""
  return _to_and_from_peft(one)[1]


@functools.lru_cache(maxsize=4)
def _to_and_from_peft(one: Subject) -> tuple[str, str]:
  model = one.moved(0)
  with tempfile.TemporaryDirectory() as folder:
    try:
      model.save_adapter(f"{folder}/adapter")
    except UserError as error:
      return f"no: {str(error).partition(';')[0].replace(repr(one.name), 'it')}", "no: PEFT has no such method"
    one.base.save(f"{folder}/base")
    again = load(f"{folder}/base", f"{folder}/adapter", task=one.base.task)
  ours, theirs = masks.flatten(model.params), masks.flatten(again.params)
  for path in model.adapter_paths():
    demand(np.array_equal(theirs[path], ours[path]), f"{path} comes back from PEFT's format with other values")
  return YES, YES
