"""`peftjax plan`: the exact train step compiled ahead of time, for devices that are not here or for this machine.

The model, the optimizer and the mesh are made as `train` makes them, but of shapes; the step is lowered and compiled as
`train` compiles it. So what is reported is what the compiler will ask for on every device.
"""

from __future__ import annotations

import collections
import copy
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from peftjax import masks, memory
from peftjax.errors import UserError
from peftjax.parallel import mesh as mesh_lib
from peftjax.parallel.cards import CARDS
from peftjax.parallel.topology import limit_bytes, topology_devices
from peftjax.train import assemble
from peftjax.train import run as run_lib
from peftjax.train.compiling import CompiledStep

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# What the compiler for TPUs says where a program does not fit: "Used 22.99G of 15.75G hbm", in an early pass "the total
# memory required for HLO temporaries (22.99G) exceeds", which arguments are counted in.
_OVERFULL = re.compile(r"(?:Used |memory required for [^()]*\()([\d.]+)([KMGT]?)(?: of [\d.]+[KMGT]? hbm|\) exceeds)")
_CARD = "what cuDNN's kernels need beside is not counted; where a card has its fused attention, attention needs less"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def plan(config: ConfigDict, topology: str = "", search: bool = False, arguments: bool = False) -> dict[str, Any]:
  """What the train step of a config needs on every device.

  Args:
    config: as for `train`; `model.path` may hold a config.json alone. A batch is `train.batch_size` rows of the
      greatest length that the input gives.
    topology: a slice such as "v5e:4x4", or a card such as "t4"; empty: this machine's devices.
    arguments: the arguments alone, from shapes; nothing is compiled, and `fits` is False only where they do not fit.
    search: if it does not fit, tries changes that save memory, one on top of the other, until it does.

  Returns:
    As `compiled_for`; with `search` also "tried", one row for every change, and "fitting", the overrides that fit.

  Raises:
    UserError: the config, the slice or the model is not what was expected.
  """
  devices = topology_devices(topology) if topology else jax.devices()
  found = compiled_for(config, devices, arguments) | {"topology": topology}
  changes = list(remedies(config, len(devices)))
  if not search:
    return found | ({} if found["fits"] else {"may_help": [" ".join(one) for one in changes]})
  tried: list[dict[str, Any]] = []
  overrides: list[str] = []
  done = found["fits"]
  for change in changes:
    if done:
      break
    overrides = [*overrides, *change]
    row = compiled_for(_changed(config, overrides), devices, arguments)
    tried.append({"overrides": list(overrides), **{key: row[key] for key in ("fits", "bytes_per_device")}})
    done = row["fits"]
  return found | {"tried": tried, "fitting": overrides if done else None}


def compiled_for(config: ConfigDict, devices: list[Any], arguments: bool = False) -> dict[str, Any]:
  """Compiles the train step of a config for some devices.

  Returns:
    `fits`; `bytes_per_device` {"arguments", "temp", "total"}; `arguments_by_kind` {"frozen", "trainable", "optimizer",
    "batch"}, their bytes on a device: the leaves that do not train, those that do (head included), and a moving average
    among the optimizer's; `limit_bytes`; `compile_seconds`,
    `compile_cpu_seconds` of all threads, which other work on the machine does not change; `devices`, their number;
    `device_kind`; `mesh`; `step_flops`, over all devices; `collectives` {kind: number in the compiled text};
    `largest_replicated`, the bytes of the largest leaf that is whole on every device of a mesh that could split it;
    `notes`.
  """
  mesh = mesh_lib.make_mesh(config.mesh, devices)
  ways = math.prod(mesh.shape[axis] for axis in mesh_lib.BATCH_AXES)
  uneven = config.train.eval_batch_size % ways
  if uneven:  # no part of the step, so that it is told and no mistake yet
    config = copy.deepcopy(config)
    config.train.eval_batch_size += ways - uneven
  run_lib.check_sizes(config, mesh)
  setting = assemble.setting(config)
  if setting.task is None:
    raise UserError(f"task.name: {config.model.path!r} is a bare encoder; set the task that it is to be trained for")
  run_lib.check_batches(config, setting.inputs())
  model = setting.model(abstract=True)
  program = run_lib.program(config, setting.task, model, mesh, config.train.steps or 1000)
  trainable, frozen = (_laid(program.layout.shardings, tree) for tree in masks.partition(model.params, model.labels()))
  state = _laid(program.layout.shardings, jax.eval_shape(program.init, trainable))
  place = mesh_lib.batch_sharding(mesh)
  batch = {
    name: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=place)
    for name, one in setting.inputs().training().batch_spec(config.train.batch_size).items()
  }
  kinds = {
    "frozen": frozen,
    "trainable": state.trainable,
    "optimizer": (state.opt_state, state.average),
    "batch": batch,
  }
  by_kind = {kind: device_bytes(tree) for kind, tree in kinds.items()}
  card = mesh.devices.flat[0].device_kind in CARDS
  found = {
    "arguments_by_kind": by_kind,
    "limit_bytes": limit_bytes(mesh.devices.flat[0]),
    "devices": mesh.size,
    "device_kind": mesh.devices.flat[0].device_kind,
    "mesh": dict(mesh.shape),
    "method": str(config.method.name),
    "largest_replicated": largest_replicated((state, frozen), mesh),
    "notes": [*setting.notes, *program.layout.notes(model.params), *_uneven_note(config, uneven), *([_CARD] * card)],
  }
  if arguments:
    held = sum(by_kind.values())
    alone = {"arguments": held, "temp": None, "total": None}
    return found | {"fits": held <= found["limit_bytes"], "bytes_per_device": alone, "compile_seconds": None}
  step = CompiledStep(program.step(), mesh, state, frozen, lambda _: None)
  cpu = time.process_time()
  try:
    compiled, cost = step.compile(state, frozen, batch)
  except jax.errors.JaxRuntimeError as error:
    if (used := _OVERFULL.search(str(error))) is None:
      raise
    held = sum(by_kind.values())
    total = max(int(float(used[1]) * _UNITS[used[2]]), held)  # the message has two decimals
    each = {"arguments": held, "temp": total - held, "total": total}
    return found | {"fits": False, "bytes_per_device": each, "compile_seconds": None}
  memory = compiled.memory_analysis()
  beside = max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0)
  each = {"arguments": cost.argument_bytes, "temp": cost.temp_bytes}
  each["total"] = cost.argument_bytes + cost.temp_bytes + beside
  return found | {
    "fits": each["total"] <= found["limit_bytes"],
    "bytes_per_device": each,
    "compile_seconds": cost.compile_seconds,
    "compile_cpu_seconds": round(time.process_time() - cpu, 1),
    "step_flops": cost.flops,
    "collectives": collectives(compiled.as_text()),
  }


def _uneven_note(config: ConfigDict, uneven: int) -> list[str]:
  size = config.train.eval_batch_size
  return [f"training on this mesh needs another train.eval_batch_size, such as {size}"] if uneven else []


def _laid(shardings: Callable[[Any], Any], tree: Any) -> Any:
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, shardings(tree)
  )


def device_bytes(tree: Any) -> int:
  """Bytes of a tree of laid shapes or arrays on one device."""
  return sum(_bytes(leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(tree))


def largest_replicated(tree: Any, mesh: Mesh) -> int:
  """Bytes of the largest leaf that every device holds whole, where the mesh has an axis to split leaves over."""
  if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
    return 0
  whole = [leaf for leaf in jax.tree.leaves(tree) if leaf.sharding.is_fully_replicated]
  return max([_bytes(leaf.shape, leaf.dtype) for leaf in whole], default=0)


def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
  return -(-math.prod(shape) * jax.dtypes.itemsize_bits(dtype) // 8)


def collectives(text: str) -> dict[str, int]:
  """How many collectives of each kind stand in a compiled program's text; a loop's body counts once."""
  found = collections.Counter(re.findall(rf" ({'|'.join(_COLLECTIVES)})(?:-start)?\(", text))
  return dict(sorted(found.items()))


# What would make it fit -------------------------------------------------------------------------------------------


def remedies(config: ConfigDict, devices: int) -> Iterator[list[str]]:
  """Overrides that save memory and are not in the config yet, the cheapest first."""
  if config.mesh.fsdp in (1,) and devices > 1:
    yield ["mesh.data=1", "mesh.fsdp=-1"]
  if config.model.remat != "full":
    yield ["model.remat=full"]
  if config.model.compute_dtype != "bfloat16" and config.model.dtype == "float32":
    yield ["model.compute_dtype=bfloat16"]
  if config.method.name != "full" and config.model.dtype == "float32":
    yield ["model.dtype=bfloat16"]
  if config.method.name != "full" and not config.model.quantize:
    yield ["model.quantize=int8"]
    yield ["model.quantize=nf4"]
  ways = config.train.batch_size // config.train.accumulate
  while ways > devices and ways % 2 == 0:
    ways //= 2
    yield [f"train.accumulate={config.train.batch_size // ways}"]
  if config.method.name == "full":
    yield ["method.name=lora"]


def _changed(config: ConfigDict, overrides: list[str]) -> ConfigDict:
  from peftjax import config as config_lib

  changed = copy.deepcopy(config)
  for override in overrides:
    config_lib.apply(changed, override)
  return changed


def show(result: dict[str, Any], console: Console) -> None:
  """Prints what `plan` returned: bytes a device by kind, the verdict, notes and what may help."""
  each, limit = result["bytes_per_device"], result["limit_bytes"]
  where = result["topology"] or "this machine"
  console.print(
    f"{where}: {result['devices']} × {result['device_kind']}, mesh "
    + ", ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
  )
  table = Table("per device", "", box=None, header_style="bold", pad_edge=False)
  for kind, size in result["arguments_by_kind"].items():
    table.add_row(f"  {kind}", memory.shown(size))
  for kind in ("arguments", "temp", "total"):
    table.add_row(kind, "-" if each[kind] is None else memory.shown(each[kind]))
  table.add_row("limit", memory.shown(limit))
  console.print(table)
  verdict = "fits" if result["fits"] else "does not fit"
  seconds = result["compile_seconds"]
  if each["total"] is None:
    console.print("arguments alone, nothing was compiled: " + ("they fit" if result["fits"] else verdict))
  else:
    console.print(verdict + (f"; compiled in {seconds:.0f} s" if seconds is not None else "; the compiler gave up"))
  for kind, count in result.get("collectives", {}).items():
    console.print(f"  {count} × {kind}")
  for line in result["notes"]:
    console.print(f"note: {line}")
  for line in result.get("may_help", ()):
    console.print(f"may help: {line}   (--search tries)")
  for row in result.get("tried", ()):
    state = "fits" if row["fits"] else "does not fit"
    size = row["bytes_per_device"]["total"] or row["bytes_per_device"]["arguments"]
    console.print(f"tried {' '.join(row['overrides'])}: {memory.shown(size)}, {state}")
