"""What the backward pass of a training step needs, from shapes alone: nothing is loaded, trained or run."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from peftjax import masks
from peftjax.parallel.mesh import make_mesh
from peftjax.train.assemble import Setting
from peftjax.train.compiling import CompiledStep
from peftjax.train.run import Program, program
from peftjax.train.step import make_loss

Shapes = Mapping[str, jax.ShapeDtypeStruct]


def shape_program(setting: Setting, remat: str = "") -> Program:
  """What training would make of a setting, of shapes and on one device.

  Args:
    remat: a policy in place of the config's.
  """
  config = copy.deepcopy(setting.config)
  config.model.remat = remat or config.model.remat
  config.mesh.update({axis: 1 for axis in config.mesh})
  found = dataclasses.replace(setting, config=config)
  assert found.task is not None
  mesh = make_mesh(config.mesh, jax.devices()[:1])
  return program(config, found.task, found.model(abstract=True), mesh, config.train.steps or 1000)


def residual_bytes(made: Program, batch: Shapes) -> int:
  """Bytes of the arrays that the forward pass of the loss keeps for its backward pass and that are no arguments, each
  once: the outputs of the traced forward pass of `jax.vjp`.

  Args:
    made: of a model of shapes; its task and its remat policy count.
    batch: its arrays.
  """
  trainable, frozen = masks.partition(made.model.params, made.model.labels())
  loss = make_loss(made.forward, made.task, made.model.penalty)

  def kept(trainable: Any, frozen: Any, batch: Any, key: Any) -> Any:
    return jax.vjp(lambda leaves: loss(leaves, frozen, batch, key), trainable, has_aux=True)[1]

  key = jax.eval_shape(lambda: jax.random.PRNGKey(0))
  jaxpr = jax.make_jaxpr(kept)(trainable, frozen, dict(batch), key).jaxpr
  given = {*jaxpr.invars, *jaxpr.constvars}
  saved = {one for one in jaxpr.outvars if not hasattr(one, "val") and one not in given}
  return sum(math.prod(one.aval.shape) * one.aval.dtype.itemsize for one in saved)


def argument_bytes(made: Program, batch: Shapes) -> dict[str, int]:
  """{"base", "adapter", "optimizer", "batch"}: bytes of a step's arguments."""
  trainable, frozen = masks.partition(made.model.params, made.model.labels())
  state = jax.eval_shape(made.init, trainable)
  kinds = {"base": frozen, "adapter": state.trainable, "optimizer": state.opt_state, "batch": dict(batch)}
  return {kind: sum(map(_bytes, jax.tree.leaves(tree))) for kind, tree in kinds.items()}


def temporary_bytes(made: Program, batch: Shapes) -> int:
  """Bytes that the compiler adds to a step's arguments; the step is compiled."""
  trainable, frozen = masks.partition(made.model.params, made.model.labels())
  state = jax.eval_shape(made.init, trainable)
  _, cost = CompiledStep(made.step(), made.mesh, state, frozen, lambda _: None).compile(state, frozen, dict(batch))
  return cost.temp_bytes


def _bytes(leaf: Any) -> int:
  return -(-math.prod(leaf.shape) * jax.dtypes.itemsize_bits(leaf.dtype) // 8)
