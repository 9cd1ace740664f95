"""From a config to everything a run needs before its first step: data, task, model, the partition, the optimizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from peftjax import data as data_lib
from peftjax import masks, optim, tasks
from peftjax.errors import UserError, nearest
from peftjax.masks import Tree
from peftjax.model import Model, folder_of
from peftjax.parallel import mesh as mesh_lib
from peftjax.train import assemble
from peftjax.train.checkpoint import Base
from peftjax.train.fingerprint import digest
from peftjax.train.state import TrainState, init_state
from peftjax.train.step import TrainStep, make_loss, make_train_step


@dataclasses.dataclass(frozen=True)
class Run:
  """A run that is ready to start.

  Attributes:
    config: as given.
    loaders: the data.
    task: loss, predictions and metrics.
    model: with the method added; its parameters are those before the first step.
    mesh: devices.
    groups: the group of every trainable leaf.
    settings: group -> learning rate, weight decay and schedule.
    trainable, frozen: the two parts of the parameters, laid on the mesh.
    optimizer: over the trainable part.
    total_steps: updates in the whole run.
    base: the model that the method was added to.
    eval_splits: evaluated during training; final_splits: after the last step.
    notes: lines for the log.
  """

  config: ConfigDict
  loaders: data_lib.Loaders
  task: tasks.Task
  model: Model
  mesh: Mesh
  groups: Tree
  settings: Mapping[str, optim.GroupSettings]
  trainable: Tree
  frozen: Tree
  optimizer: optax.GradientTransformation
  total_steps: int
  base: Base
  eval_splits: tuple[str, ...] = ()
  final_splits: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()

  def start(self) -> TrainState:
    """The state before the first update, laid on the mesh."""
    place = mesh_lib.tree_shardings(self.mesh, jax.eval_shape(self._init, self.trainable))
    return jax.jit(self._init, out_shardings=place)(self.trainable)

  def _init(self, trainable: Tree) -> TrainState:
    return init_state(trainable, self.optimizer, self.config.seed)

  def step(self) -> TrainStep:
    """One update, not yet compiled."""
    loss = make_loss(self.model.forward, self.task, self.model.penalty)
    return make_train_step(loss, self.optimizer, self.config.train.accumulate)


def resolve(config: ConfigDict) -> Run:
  """Opens the data, loads the model, adds the method and divides the parameters.

  Raises:
    UserError: whatever in the config, the data or the model does not fit, in one line.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  _check_sizes(config, mesh)
  tokenizer = data_lib.load_tokenizer(folder_of(config.model.path), config.data.max_length)
  process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
  loaders = data_lib.make_loaders(config, tokenizer, **process)
  task = make_task(config, loaders.dataset)
  model = assemble.make_model(config, task.name, label_names=task.label_names, num_labels=task.num_labels)
  tokenizer.check_fits(int(model.hf_config["vocab_size"]))
  labels = model.labels()
  trainable, frozen = masks.partition(model.params, labels)
  if not jax.tree.leaves(trainable):
    raise UserError(f"method {config.method.name!r} leaves nothing to train")
  trainable = jax.device_put(trainable, mesh_lib.tree_shardings(mesh, trainable))
  frozen = jax.device_put(frozen, mesh_lib.tree_shardings(mesh, frozen))
  groups = masks.partition(labels, labels)[0]
  total_steps = count_steps(config, loaders.train.steps_per_epoch)
  method_groups = group_rates(model)
  return Run(
    config=config,
    loaders=loaders,
    task=task,
    model=model,
    mesh=mesh,
    groups=groups,
    settings=optim.group_settings(config.optim, set(jax.tree.leaves(groups)), method_groups),
    trainable=trainable,
    frozen=frozen,
    optimizer=model.transformed(
      optim.make_optimizer(config.optim, groups, total_steps, method_groups, stacks=model.stacks), total_steps
    ),
    total_steps=total_steps,
    base=Base(str(config.model.path), base_hash(model)),
    eval_splits=tuple(split for split in ("validation",) if split in loaders.evals),
    final_splits=final_splits(config, loaders),
    notes=tuple(loaders.train.measured.notes("train", config.data.max_length)),
  )


def final_splits(config: ConfigDict, loaders: data_lib.Loaders) -> tuple[str, ...]:
  """The splits evaluated after the last step; "validation" may be missing in the data.

  Raises:
    UserError: another one is missing.
  """
  for split in config.train.final_splits:
    if split not in loaders.evals and split != "validation":
      raise UserError(f"train.final_splits: no split {split!r} to evaluate; {nearest(split, loaders.evals)}")
  return tuple(split for split in config.train.final_splits if split in loaders.evals)


def make_task(config: ConfigDict, dataset: data_lib.Dataset) -> tasks.Task:
  """The run's task over the data's labels; `task.num_labels` may ask for more classes than the data has.

  Raises:
    UserError: fewer classes than the data has, or an unknown task.
  """
  name = assemble.trained_task(config, dataset.task)
  labels, asked = tuple(dataset.label_names), config.task.num_labels
  if asked and labels and asked < len(labels):
    raise UserError(f"task.num_labels={asked}: {dataset.name} has {len(labels)} labels: {', '.join(labels[:8])}")
  labels += tuple(f"LABEL_{index}" for index in range(len(labels), asked if labels else 0))
  return tasks.make(name, labels, config.task.label_smoothing)


def count_steps(config: ConfigDict, steps_per_epoch: int) -> int:
  """Updates in the whole run: `train.steps`, or else `train.epochs` passes over the data.

  Raises:
    UserError: none at all.
  """
  steps = config.train.steps or math.ceil(config.train.epochs * steps_per_epoch)
  if steps < 1:
    raise UserError(f"train.steps={config.train.steps}, train.epochs={config.train.epochs}: expected a positive number")
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


def _check_sizes(config: ConfigDict, mesh: Mesh) -> None:
  train = config.train
  if train.accumulate < 1 or train.batch_size % train.accumulate:
    raise UserError(f"train.accumulate={train.accumulate} does not divide train.batch_size={train.batch_size}")
  mesh_lib.check_batch_size(mesh, "train.batch_size / train.accumulate", train.batch_size // train.accumulate)
  mesh_lib.check_batch_size(mesh, "train.eval_batch_size", train.eval_batch_size)
  if train.nonfinite not in ("stop", "skip"):
    raise UserError(f"train.nonfinite={train.nonfinite!r}: expected 'stop' or 'skip'")


def describe(run: Run) -> dict[str, Any]:
  """What the config's open fields became: the "resolved" section of config.json."""
  return {
    "task": run.task.name,
    "label_names": list(run.task.label_names),
    "architecture": run.model.architecture,
    "total_steps": run.total_steps,
    "steps_per_epoch": run.loaders.train.steps_per_epoch,
    "groups": {group: dataclasses.asdict(one) for group, one in run.settings.items()},
    "base": dataclasses.asdict(run.base),
    "mesh": dict(run.mesh.shape),
  }
