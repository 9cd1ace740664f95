"""The memory of a training step: what it is given, what its backward pass keeps, and what the compiler adds.

    arguments    exact: the frozen base, what trains, the optimizer's state, the batch
    residuals    exact: arrays that the forward pass leaves for the backward pass and that are no arguments, under each
                 remat policy
    temporary    of the compiled step (`memory_analysis`): residuals as the compiler keeps them, gradients, buffers

All of it follows from shapes; nothing is loaded, trained or run.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from peftjax import masks
from peftjax.parallel.mesh import make_mesh
from peftjax.train.assemble import Setting
from peftjax.train.compiling import CompiledStep
from peftjax.train.run import Program, program
from peftjax.train.step import make_loss

Shapes = Mapping[str, jax.ShapeDtypeStruct]

REMATS = ("none", "minimal", "full")
KINDS = ("base", "adapter", "optimizer", "batch")


@dataclasses.dataclass(frozen=True)
class Shape:
  """A batch, or a micro-batch where updates are accumulated: its rows, and their length (0 for inputs of one size)."""

  rows: int
  length: int = 0


def shapes_around(found: Setting, compiled: Sequence[str] = ()) -> list[Shape]:
  """Up to three lengths of whole batches, and the longest of them with a half and a quarter of its rows.

  Args:
    compiled: shapes such as "32x64" that training compiled; its shortest, middle and longest batch are taken.
  """
  train, longest = found.config.train, max(found.inputs().training().buckets, default=0)
  rows = train.batch_size // train.accumulate
  lengths = [0]
  if longest:
    known = [tuple(int(part) for part in shape.split("x")) for shape in compiled if shape.count("x") == 1]
    lengths = sorted({length for count, length in known if count == train.batch_size})
    if len(lengths) < 3:
      lengths = sorted({max(longest // part, 1) for part in (4, 2, 1)})
    lengths = [lengths[0], lengths[len(lengths) // 2], lengths[-1]]
  fewer = [Shape(max(rows // part, 1), lengths[-1]) for part in (4, 2)]
  return list(dict.fromkeys([*(Shape(rows, length) for length in lengths), *fewer]))


def ledger(found: Setting, temporary: Mapping[str, int] | None = None, shapes: Sequence[Shape] = ()) -> dict[str, Any]:
  """The ledger of a method over shapes of a batch.

  Args:
    found: of a trial.
    temporary: bytes of compiled steps that are known, by the shape of their batch, such as "32x64"; where the largest
      shape's are not among them, that step is compiled.
    shapes: of batches; without any, those of `shapes_around`.

  Returns:
    "remat", the config's; "shapes": {"rows", "length", "arguments" {kind: bytes}, "residuals" {remat: bytes},
    "temporary" (bytes, or None where the step was not compiled)}.
  """
  known, inputs, own = dict(temporary or {}), found.inputs().training(), shape_program(found)
  wanted = list(shapes) or shapes_around(found, tuple(known))
  programs = {remat: shape_program(found, remat) for remat in REMATS}
  largest = max(wanted, key=lambda shape: (shape.rows * max(shape.length, 1), shape.length))
  accumulate, rows = found.config.train.accumulate, []
  for shape in wanted:
    whole = shape.rows * accumulate
    batch, micro = (inputs.batch_spec(count, shape.length) for count in (whole, shape.rows))
    added = known.get(f"{whole}x{shape.length}")
    rows.append(
      {
        "rows": shape.rows,
        "length": shape.length,
        "arguments": argument_bytes(own, batch),
        "residuals": {remat: residual_bytes(program, micro) for remat, program in programs.items()},
        "temporary": temporary_bytes(own, batch) if added is None and shape == largest else added,
      }
    )
  return {"remat": str(found.config.model.remat), "shapes": rows}


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
