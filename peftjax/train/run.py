"""From a config to everything a run needs before its first step: data, task, model, the partition, the optimizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from peftjax import data as data_lib
from peftjax import masks, memory, optim, tasks
from peftjax.config.table import COUNT
from peftjax.data.extra_sets import RETAINED, shifted_names
from peftjax.data.sources.types import HiddenLabel
from peftjax.errors import UserError, nearest
from peftjax.masks import Tree
from peftjax.model import Model
from peftjax.models.parts import lay
from peftjax.parallel import mesh as mesh_lib
from peftjax.parallel.activations import on_mesh
from peftjax.parallel.sharding import Layout, layout_of
from peftjax.train.checkpoint import Base
from peftjax.train.fingerprint import digest
from peftjax.train.spikes import watch_loss
from peftjax.train.state import TrainState, init_state
from peftjax.train.step import ModelForward, TrainStep, make_loss, make_train_step


class Optimizer(NamedTuple):
  """How the trainable leaves are updated: the transform, and what each group trains with."""

  transform: optax.GradientTransformation
  settings: Mapping[str, optim.GroupSettings]


@dataclasses.dataclass(frozen=True)
class Program:
  """What is compiled, and for which devices: all of a run but data and values.

  Attributes:
    config: as given.
    task: loss, predictions and metrics.
    model: with the method added; its leaves may be shapes.
    mesh: devices.
    layout: how leaves lie on them.
    optimizer: over the trainable part, with the learning rate, weight decay and schedule of every group.
    total_steps: updates in the whole run.
  """

  config: ConfigDict
  task: tasks.Task
  model: Model
  mesh: Mesh
  layout: Layout
  optimizer: Optimizer
  total_steps: int

  @property
  def forward(self) -> ModelForward:
    """The model's forward pass on the mesh."""
    return on_mesh(self.model.forward, self.model, self.mesh)

  def step(self) -> TrainStep:
    """One update, not yet compiled."""
    loss = make_loss(self.forward, self.task, self.model.penalty)
    return make_train_step(loss, self.optimizer.transform, self.config.train.accumulate, self.config.train.ema)

  def init(self, trainable: Tree, seed: jax.Array | int | None = None) -> TrainState:
    """The state before the first update; traceable. `seed`: in place of the config's."""
    seed = self.config.seed if seed is None else seed
    return init_state(trainable, self.optimizer.transform, seed, self.config.train.ema > 0)


@dataclasses.dataclass(frozen=True)
class Run:
  """A run that is ready to start: a program, and the values that go through it.

  Attributes:
    program: what is compiled.
    loaders: the data.
    trainable, frozen: the two parts of the parameters, laid on the mesh.
    base: the model that the method was added to.
    eval_splits: evaluated during training, the training examples where there are no others; final_splits: after the
      last step.
    notes: lines for the log.
  """

  program: Program
  loaders: data_lib.Loaders
  trainable: Tree
  frozen: Tree
  base: Base
  eval_splits: tuple[str, ...] = ()
  final_splits: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()

  @staticmethod
  def of(program: Program, loaders: data_lib.Loaders) -> Run:
    """The run of a program, whose model has its weights, over some data."""
    config, model, shardings = program.config, program.model, program.layout.shardings
    trainable, frozen = masks.partition(model.params, model.labels())
    final, unscored = final_splits(config, loaders)
    return Run(
      program=program,
      loaders=loaders,
      trainable=mesh_lib.put_tree(trainable, shardings(trainable)),
      frozen=mesh_lib.put_tree(frozen, shardings(frozen)),
      base=Base(str(config.model.path), base_hash(model)),
      eval_splits=tuple(split for split in ("validation", RETAINED) if split in loaders.evals) or ("train",),
      final_splits=final,
      notes=(*loaders.train.notes, *unscored, *program.layout.notes(model.params)),
    )

  @property
  def config(self) -> ConfigDict:
    """The config that the run was made of."""
    return self.program.config

  @property
  def task(self) -> tasks.Task:
    """Loss, predictions and metrics."""
    return self.program.task

  @property
  def model(self) -> Model:
    """The model with the method added."""
    return self.program.model

  @property
  def mesh(self) -> Mesh:
    """The devices, by axis."""
    return self.program.mesh

  @property
  def layout(self) -> Layout:
    """How leaves lie on the devices."""
    return self.program.layout

  @property
  def total_steps(self) -> int:
    """Updates in the whole run."""
    return self.program.total_steps

  @property
  def forward(self) -> ModelForward:
    """The model's forward pass on the mesh."""
    return self.program.forward

  def step(self) -> TrainStep:
    """One update, not yet compiled."""
    return self.program.step()

  @property
  def evaluated(self) -> tuple[str, ...]:
    """The splits that every evaluator is asked for, before the first or after the last step."""
    before = self.eval_splits if self.config.train.eval_first else ()
    return tuple(dict.fromkeys((*before, *self.final_splits)))

  def start(self) -> TrainState:
    """The state before the first update, laid on the mesh. Its program knows no rate, number of updates or seed."""

    def init(trainable: Tree, seed: Any) -> TrainState:
      state = self.program.init(trainable, seed)
      return state._replace(opt_state=optim.blank(state.opt_state))

    seed = np.uint32(self.config.seed)
    place = self.layout.shardings(jax.eval_shape(init, self.trainable, seed))
    state = jax.jit(init, out_shardings=place)(self.trainable, seed)
    opt_state = optim.begun(state.opt_state, self.program.optimizer.settings, self.total_steps)
    placed = lambda leaf, at: leaf if isinstance(leaf, jax.Array) else lay(leaf, at)  # noqa: E731
    return state._replace(opt_state=jax.tree.map(placed, opt_state, place.opt_state))


def program(config: ConfigDict, task: tasks.Task, model: Model, mesh: Mesh, total_steps: int) -> Program:
  """The program of a model, whose leaves may be shapes."""
  optimizer = optimizer_of(config, model, total_steps)
  return Program(config, task, model, mesh, layout_of(model, mesh), optimizer, total_steps)


def optimizer_of(config: ConfigDict, model: Model, total_steps: int) -> Optimizer:
  """The optimizer of what trains in a model, whose leaves may be shapes.

  Raises:
    UserError: nothing trains; as `optim.make_optimizer`.
  """
  labels = model.labels()
  groups, _ = masks.partition(labels, labels)
  if not jax.tree.leaves(groups):
    raise UserError(f"method {config.method.name!r} leaves nothing to train")
  trained = masks.partition(model.params, labels)[0]
  for path, leaf in masks.flatten(trained).items():
    if leaf is not None and not jnp.issubdtype(leaf.dtype, jnp.inexact):
      raise UserError(
        f"method {config.method.name!r} trains {path!r}, of {leaf.dtype}; floats have a gradient: its mask should "
        "say 'frozen' of this leaf"
      )
  rates = group_rates(model)
  optim.check_projects(config.optim, trained, model.stacks)
  plain = optim.make_optimizer(config.optim, groups, total_steps, rates, stacks=model.stacks)
  transform = watch_loss(model.transformed(plain, total_steps), config.train.get("spike", 0.0))
  return Optimizer(transform, optim.group_settings(config.optim, set(jax.tree.leaves(groups)), rates))


def final_splits(config: ConfigDict, loaders: data_lib.Loaders) -> tuple[tuple[str, ...], list[str]]:
  """The splits evaluated after the last step, with the sets of `data.shifted` and `data.retained`, and lines for the
  log about those that cannot be: "validation" and "test" may be missing in the data, or be published without labels.

  Raises:
    UserError: another one is missing.
  """
  check_splits(config, loaders.evals)
  retained = (RETAINED,) if RETAINED in loaders.evals else ()
  wanted = dict.fromkeys((*config.train.final_splits, *shifted_names(config.data), *retained))
  there = [split for split in wanted if split in loaders.evals]
  hidden = [split for split in there if _hides_labels(loaders.evals[split])]
  notes = [f"{split} was published without labels, and is not scored" for split in hidden]
  return tuple(split for split in there if split not in hidden), notes


def check_splits(config: ConfigDict, known: Iterable[str], said_in: str = "train.final_splits") -> None:
  """Raises `UserError` for one of `train.final_splits` that is not known; "validation" and "test" may be missing.

  Args:
    said_in: the field that has named it, for the error.
  """
  known = tuple(known)
  for split in config.train.final_splits:
    if split not in (*known, "validation", "test"):
      raise UserError(f"{said_in}: no split {split!r} to evaluate; {nearest(split, known)}")


def _hides_labels(loader: data_lib.EvalLoader) -> bool:
  try:
    _ = loader.source[0] if loader.examples else None
  except HiddenLabel:
    return True
  return False


def count_steps(config: ConfigDict, steps_per_epoch: int) -> int:
  """Updates in the whole run: `train.steps`, or else `train.epochs` passes over the data.

  Raises:
    UserError: none at all.
  """
  steps = config.train.steps or math.ceil(config.train.epochs * steps_per_epoch)
  if not 1 <= steps <= COUNT:
    asked = f"train.steps={config.train.steps}, train.epochs={config.train.epochs}"
    raise UserError(f"{asked}: expected a positive number, and at most {COUNT:,} updates, not {steps:,}")
  return steps


def group_rates(model: Model) -> dict[str, dict[str, float]]:
  """Group -> what the model's methods set for it: their default rate, and LoRA+'s multiplier."""
  ratios = {"lora_b": max([getattr(one, "lr_ratio", 1.0) for one in model.methods], default=1.0)}
  return {
    group: {"learning_rate": rate / ratios.get(group, 1.0), "learning_rate_multiplier": ratios.get(group, 1.0)}
    for group, rate in model.learning_rates().items()
  }


def base_hash(model: Model) -> str:
  """The content hash of the leaves that came with the base: no adapter, no head."""
  added = model.adapter_paths()
  flat = masks.flatten(model.params)
  heads = tuple(f"{prefix}." for prefix in model.head)
  return digest({name: leaf for name, leaf in flat.items() if name not in added and not name.startswith(heads)})


def check_sizes(config: ConfigDict, mesh: Mesh) -> None:
  """Raises `UserError` if batches do not divide as the config and the mesh want."""
  train = config.train
  if train.accumulate < 1 or train.batch_size % train.accumulate:
    raise UserError(f"train.accumulate={train.accumulate} does not divide train.batch_size={train.batch_size}")
  mesh_lib.check_batch_size(mesh, "train.batch_size / train.accumulate", train.batch_size // train.accumulate)
  mesh_lib.check_batch_size(mesh, "train.eval_batch_size", train.eval_batch_size)


def check_batches(config: ConfigDict, inputs: data_lib.Input) -> None:
  """Raises `UserError` if a batch of these inputs does not fit into this machine's memory."""
  for name, reading in (("batch_size", inputs.training()), ("eval_batch_size", inputs)):
    rows, length = config.train[name], reading.length_setting
    needed = sum(math.prod(one.shape) * one.dtype.itemsize for one in reading.batch_spec(rows).values())
    memory.check(needed, f"train.{name}={rows}{f' with {length}' if length else ''}: one batch")


def describe(run: Run) -> dict[str, Any]:
  """What the config's open fields became: the "resolved" section of config.json."""
  return {
    "task": run.task.name,
    "head": run.task.head,
    "num_labels": run.task.num_labels,
    "label_names": list(run.task.label_names),
    "fields": list(run.loaders.dataset.fields),
    "label_kind": run.loaders.dataset.label_kind,
    "data_label_names": list(run.loaders.dataset.label_names),
    "problem_type": getattr(run.task, "problem_type", ""),
    "architecture": run.model.architecture,
    "total_steps": run.total_steps,
    "steps_per_epoch": run.loaders.train.steps_per_epoch,
    "groups": {group: dataclasses.asdict(one) for group, one in run.program.optimizer.settings.items()},
    "base": dataclasses.asdict(run.base),
    "mesh": dict(run.mesh.shape),
  }
