"""Compiling the step, once for each shape of batch, with what each compilation took and costs to run."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from peftjax.errors import UserError
from peftjax.files import read_json, write_text
from peftjax.masks import Tree
from peftjax.parallel.mesh import batch_sharding, replicated
from peftjax.quantities import prefixed
from peftjax.train.flops import flops_of
from peftjax.train.state import TrainState
from peftjax.train.step import Metrics, TrainStep

# On TPUs: a product with a gathered leaf is one product behind one gather, which the scheduler hides behind the layer
# before. Products in pieces between permutations held 0.3 GiB more on a LLaMA of 7B and took longer to compile.
_OPTIONS = {"tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "100000"}}


def use_cache(folder: str) -> None:
  """Keeps compiled programs in a folder, unless the environment or the caller has chosen one already."""
  if not jax.config.values.get("jax_compilation_cache_dir"):
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@dataclasses.dataclass(frozen=True)
class Cost:
  """One compiled step.

  Attributes:
    shape: of the batch (`shape_name`): its examples, and their length where there are several.
    compile_seconds: tracing and compiling, or fetching from the cache.
    flops: of matrix products, in all repetitions of scanned layers (`peftjax.train.flops`).
    xla_flops: XLA's own count, which takes every loop's body once.
    temp_bytes: activations and other buffers of the step.
    argument_bytes: state, frozen leaves and batch.
  """

  shape: str
  compile_seconds: float
  flops: int
  xla_flops: float
  temp_bytes: int
  argument_bytes: int


class CompiledStep:
  """A training step with donated state.

  Args:
    step: what is compiled.
    mesh: devices; the batch is split over it.
    state, frozen: laid on it as they will be in every call.
    compiled: told of every compilation.
    together: whether states and batches are those of many runs, stacked.

  Attributes:
    just_compiled: whether the last call compiled.
  """

  def __init__(
    self,
    step: TrainStep,
    mesh: Mesh,
    state: TrainState,
    frozen: Tree,
    compiled: Callable[[Cost], None],
    together: bool = False,
  ):
    place = (jax.tree.map(lambda x: x.sharding, state), jax.tree.map(lambda x: x.sharding, frozen))
    self._jitted = jax.jit(
      step,
      in_shardings=(*place, batch_sharding(mesh, together)),
      out_shardings=(place[0], replicated(mesh)),
      donate_argnums=0,
    )
    self._options = _OPTIONS.get(mesh.devices.flat[0].platform, {})
    self._compiled: dict[Any, Any] = {}
    self._tell, self._together = compiled, together
    self.just_compiled = False

  def __call__(self, state: TrainState, frozen: Tree, batch: Mapping[str, jax.Array]) -> tuple[TrainState, Metrics]:
    key = tuple((name, array.shape, array.dtype) for name, array in sorted(batch.items()))
    self.just_compiled = key not in self._compiled
    if self.just_compiled:
      self._compiled[key], cost = self.compile(state, frozen, batch)
      self._tell(cost)
    return self._compiled[key](state, frozen, batch)

  def compile(self, state: TrainState, frozen: Tree, batch: Mapping[str, Any]) -> tuple[Any, Cost]:
    """(the compiled step, its cost) for arrays, or for shapes with shardings."""
    start = time.perf_counter()
    traced = self._jitted.trace(state, frozen, batch)
    compiled = traced.lower().compile(compiler_options=self._options)
    seconds = time.perf_counter() - start
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis() or {}
    cost = Cost(
      shape=shape_name(batch, skip=int(self._together)),
      compile_seconds=round(seconds, 3),
      flops=flops_of(traced.jaxpr),
      xla_flops=float(analysis.get("flops", 0.0)),
      temp_bytes=int(memory.temp_size_in_bytes) if memory else 0,
      argument_bytes=int(memory.argument_size_in_bytes) if memory else 0,
    )
    return compiled, cost


def shape_name(batch: Mapping[str, Any], skip: int = 0) -> str:
  """The shape of a batch's widest array of at most two axes, such as "32x64"; `skip` first axes do not count."""
  shapes = [array.shape[skip:] for array in batch.values() if array.ndim - skip <= 2]
  return "x".join(str(size) for size in max(shapes, key=lambda shape: (len(shape), shape)))


def _cost(saved: Any, where: str) -> Cost:
  fields = {one.name: str if one.name == "shape" else int | float for one in dataclasses.fields(Cost)}
  fits = isinstance(saved, dict) and saved.keys() == fields.keys()
  if not fits or not all(isinstance(saved[name], kind) for name, kind in fields.items()):
    raise UserError(f"{where}: expected the fields {', '.join(fields)}; remove the file to have it made again")
  return Cost(**saved)


class Costs:
  """``compiled.json`` in a run's folder: the cost of each shape of batch, kept over restarts.

  Args:
    folder: the run's.
    say: shows a line.
    writes: whether this process writes the file.
  """

  def __init__(self, folder: Path, say: Callable[[str], None], writes: bool = True):
    self._path, self._say, self._writes = folder / "compiled.json", say, writes
    saved = read_json(self._path) if self._path.is_file() else {}
    self.by_shape = {shape: _cost(cost, f"{self._path}: {shape!r}") for shape, cost in saved.items()}

  def add(self, cost: Cost) -> None:
    """Takes the cost of a step that was just compiled."""
    self._say(
      f"compiled the step for {cost.shape} in {cost.compile_seconds:.1f} s: {prefixed(cost.flops, 'FLOP')} an update"
    )
    self.by_shape[cost.shape] = cost
    if self._writes:
      text = json.dumps({shape: dataclasses.asdict(one) for shape, one in sorted(self.by_shape.items())}, indent=2)
      write_text(self._path, text + "\n")
