"""The memory of a training step: what it is given, what its backward pass keeps, and what the compiler adds.

    arguments    exact: the frozen base, what trains, the optimizer's state, the batch
    residuals    exact: arrays that the forward pass leaves for the backward pass and that are no arguments, under each
                 remat policy. They are the outputs of the traced forward pass of `jax.vjp`, each once.
    temporary    of the compiled step (`memory_analysis`): residuals as the compiler keeps them, gradients, buffers

All of it follows from shapes, at batches and lengths around the trial's own; nothing is trained or run.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from peftjax import masks, tasks
from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.dimensions.base import ROW, Dimension, Json, Plot, Section, Trained, by_row
from peftjax.compare.drawing import lines
from peftjax.compare.drawing.rows import Line, marked
from peftjax.compare.records import Record
from peftjax.parallel.mesh import make_mesh
from peftjax.train import assemble, plan
from peftjax.train import run as run_lib
from peftjax.train.run import Program
from peftjax.train.step import make_loss

NAME = "memory"
REMATS = ("none", "minimal", "full")
KINDS = ("base", "adapter", "optimizer", "batch")


@dataclasses.dataclass(frozen=True)
class Shape:
  """A batch, or a micro-batch where updates are accumulated: rows of so many tokens."""

  rows: int
  length: int


def shapes_around(config: ConfigDict, compiled: Sequence[str] = ()) -> list[Shape]:
  """Up to three lengths of whole batches, and the longest of them with a half and a quarter of its rows.

  Args:
    compiled: shapes such as "32x64" that training compiled; its shortest, middle and longest batch are taken.
  """
  rows = config.train.batch_size // config.train.accumulate
  known = [tuple(int(part) for part in shape.split("x")) for shape in compiled if shape.count("x") == 1]
  lengths = sorted({length for count, length in known if count == config.train.batch_size})
  if len(lengths) < 3:
    longest = config.data.max_length
    lengths = sorted({max(longest // part, 1) for part in (4, 2, 1)})
  lengths = [lengths[0], lengths[len(lengths) // 2], lengths[-1]]
  fewer = [Shape(max(rows // part, 1), lengths[-1]) for part in (4, 2)]
  return list(dict.fromkeys([*(Shape(rows, length) for length in lengths), *fewer]))


def ledger(
  config: ConfigDict,
  task: str,
  label_names: Sequence[str],
  temporary: Mapping[str, int] | None = None,
  shapes: Sequence[Shape] = (),
) -> Json:
  """The ledger of a method over shapes of a batch.

  Args:
    config: of a trial.
    task, label_names: what its data made of it.
    temporary: bytes of compiled steps that are known, by the shape of their batch, such as "32x64"; where the largest
      shape's are not among them, that step is compiled.
    shapes: of batches; without any, those of `shapes_around`.

  Returns:
    "remat", the config's; "shapes": {"rows", "length", "arguments" {kind: bytes}, "residuals" {remat: bytes},
    "temporary" (bytes, or None where the step was not compiled)}.
  """
  known = dict(temporary or {})
  wanted = list(shapes) or shapes_around(config, tuple(known))
  config = copy.deepcopy(config)
  config.task.name, config.task.num_labels = task, len(label_names)
  config.mesh.update({axis: 1 for axis in config.mesh})
  programs = {remat: shape_program(config, remat, task, label_names) for remat in REMATS}
  largest = max(wanted, key=lambda shape: (shape.rows * shape.length, shape.length))
  found = []
  for shape in wanted:
    here = copy.deepcopy(config)
    here.train.batch_size, here.data.max_length = shape.rows * config.train.accumulate, shape.length
    name = f"{here.train.batch_size}x{shape.length}"
    compiling = shape == largest and name not in known
    held = plan.compiled_for(here, jax.devices()[:1], arguments=not compiling)
    found.append(
      {
        "rows": shape.rows,
        "length": shape.length,
        "arguments": {kind: held["arguments_by_kind"][kind] for kind in KINDS},
        "residuals": {remat: residual_bytes(program, shape) for remat, program in programs.items()},
        "temporary": held["bytes_per_device"]["temp"] if compiling else known.get(name),
      }
    )
  return {"remat": str(config.model.remat), "shapes": found}


def residual_bytes(program: Program, shape: Shape) -> int:
  """Bytes that the forward pass of the loss keeps for its backward pass, arguments aside.

  Args:
    program: of a model of shapes; its task and its remat policy count.
  """
  config = copy.deepcopy(program.config)
  config.train.batch_size, config.data.max_length = shape.rows, shape.length
  trainable, frozen = masks.partition(program.model.params, program.model.labels())
  batch = plan.batch_shapes(config, program.model, program.task)
  loss = make_loss(program.forward, program.task, program.model.penalty)

  def kept(trainable: Any, frozen: Any, batch: Mapping[str, Any], key: Any) -> Any:
    return jax.vjp(lambda leaves: loss(leaves, frozen, batch, key), trainable, has_aux=True)[1]

  key = jax.eval_shape(lambda: jax.random.PRNGKey(0))
  jaxpr = jax.make_jaxpr(kept)(trainable, frozen, batch, key).jaxpr
  given = {*jaxpr.invars, *jaxpr.constvars}
  saved = {one for one in jaxpr.outvars if not hasattr(one, "val") and one not in given}
  return sum(math.prod(one.aval.shape) * one.aval.dtype.itemsize for one in saved)


def shape_program(config: ConfigDict, remat: str, task: str, label_names: Sequence[str]) -> Program:
  """What training would make of a config, of shapes, on one device and with a remat policy of its own."""
  config = copy.deepcopy(config)
  config.model.remat = remat
  made = tasks.make(task, label_names, config.task.label_smoothing)
  model = assemble.make_model(config, task, label_names=label_names, abstract=True)
  return run_lib.program(config, made, model, make_mesh(config.mesh, jax.devices()[:1]), 1000)


# The dimension ----------------------------------------------------------------------------------------------------


def measure(trained: Trained) -> Json | None:
  """As `ledger`; None for a model that takes no tokens."""
  run = trained.run
  if "input_ids" not in run.model.example_inputs:
    return None
  known = {one["shape"]: one["temp_bytes"] for one in trained.summary.get("compiled", ())}
  return ledger(trained.config, run.task.name, run.task.label_names, known)


def summarize(records: Sequence[Record], summary: Summary) -> Json:
  """{"rows": {"row", "run", and the ledger}}, in the order of the summary."""
  return {"rows": by_row(records, summary, NAME)}


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Its part of the report."""
  rows = found["rows"]
  largest = {one["row"]: _largest(one) for one in rows}
  first = next(iter(largest.values()))
  shape = f"{first['rows']} × {first['length']} tokens"
  told = "; ".join(
    f"{one['row']} {fmt.size(_held(one, largest[one['row']]))}, of which "
    f"{fmt.size(_residuals(one, largest[one['row']]))} for the backward pass"
    for one in rows
  )

  def along(axis: str, narrow: bool) -> Figure | None:
    drawn = {one["row"]: lines.flat(_curve(one, axis)) for one in rows}
    across = "tokens of a row" if axis == "length" else "rows of a batch"
    ticks = sorted({x for points in drawn.values() for x, *_ in points})
    return lines.curves(drawn, summary, across, "", narrow, ticks=ticks, from_zero=fmt.size, marks="all")

  residuals = {row: [at["residuals"][remat] for remat in REMATS] for row, at in largest.items()}
  kept = [Line(row, " · ".join(map(fmt.size, sizes)), tuple(sizes)) for row, sizes in residuals.items()]
  policies = "filled: remat none; circle: minimal; stroke: full (log scale)"
  caption = "Arguments (base, adapter, optimizer, batch) and what is saved for the backward pass, from shapes. "
  return Section(
    heading="Memory against batch and length",
    sentences=(
      (
        "Bytes of a training step's arguments are exact; residuals are the arrays that the forward pass of the traced "
        "loss leaves for its backward pass; temporary bytes are the compiler's, and hold residuals and gradients."
      ),
      f"At {shape}, under each method's own remat policy: {told} (runs {fmt.runs([one['run'] for one in rows])}).",
    ),
    plots=(
      Plot(f"{NAME}-length", "Bytes against length", caption, lambda narrow: along("length", narrow)),
      Plot(f"{NAME}-rows", "Bytes against batch", caption, lambda narrow: along("rows", narrow)),
      Plot(
        f"{NAME}-remat",
        "What remat saves",
        f"Residuals at {shape}: none, minimal, full.",
        lambda narrow: marked(kept, summary, policies, narrow, log=fmt.size),
      ),
    ),
    columns=("run", "batch", *KINDS, *(f"residuals, {remat}" for remat in REMATS), "temporary"),
    rows=tuple(
      (
        one["run"],
        f"{at['rows']} × {at['length']}",
        *(fmt.size(at["arguments"][kind]) for kind in KINDS),
        *(fmt.size(at["residuals"][remat]) for remat in REMATS),
        fmt.size(at["temporary"]),
      )
      for one in rows
      for at in one["shapes"]
    ),
  )


def _largest(one: Mapping[str, Any]) -> Mapping[str, Any]:
  found: Mapping[str, Any] = max(one["shapes"], key=lambda at: (at["rows"] * at["length"], at["length"]))
  return found


def _residuals(one: Mapping[str, Any], at: Mapping[str, Any]) -> int:
  return int(at["residuals"][one["remat"]])


def _held(one: Mapping[str, Any], at: Mapping[str, Any]) -> int:
  return sum(at["arguments"].values()) + _residuals(one, at)


def _curve(one: Mapping[str, Any], axis: str) -> list[tuple[float, float]]:
  """(tokens or rows, bytes) where the other one of the two is the largest."""
  most, other = _largest(one), "rows" if axis == "length" else "length"
  return sorted((at[axis], _held(one, at)) for at in one["shapes"] if at[other] == most[other])


DIMENSION = Dimension(NAME, measure, summarize, section, per=ROW)
