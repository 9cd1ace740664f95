"""peftjax's side of a benchmark: the step that `train` compiles, over random weights."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.shapes import Shape
from peftjax import config as config_lib
from peftjax import masks, methods, tasks
from peftjax.loading import from_config
from peftjax.model import Model
from peftjax.models.layers import Runtime
from peftjax.parallel import mesh as mesh_lib
from peftjax.train import run as run_lib
from peftjax.train.compiling import CompiledStep, Cost, use_cache


def dtypes_of(precision: str, method: str) -> tuple[str, str | None]:
  """(dtype of the base's leaves, compute dtype): what trains is float32, a frozen base is stored as it computes."""
  if precision == "float32":
    return "float32", None
  return ("float32" if method == "full" else precision), precision


def model_of(shape: Shape, method: Mapping[str, Any], precision: str, **runtime: Any) -> Model:
  """The model of shapes alone with its method."""
  dtype, compute = dtypes_of(precision, str(method["name"]))
  run = Runtime(compute_dtype=compute, **runtime)
  base = from_config(shape.hf_config, dtype, task=shape.task, num_labels=shape.labels, runtime=run)
  return base.add(methods.build(method), jax.random.key(1))


def drawn(model: Model) -> Model:
  """The model with random leaves in place of its shapes: norms' scales are one.

  One small program draws each leaf whole, which compiles in seconds where `initialise`, layer by layer, takes a minute.
  """

  def draw(key: jax.Array) -> masks.Tree:
    leaves = {}
    for index, (path, leaf) in enumerate(masks.flatten(model.params).items()):
      if path.endswith("scale"):
        leaves[path] = jnp.ones(leaf.shape, leaf.dtype)
      else:
        values = jax.random.uniform(jax.random.fold_in(key, index), leaf.shape, jnp.float32, -0.035, 0.035)
        leaves[path] = values.astype(leaf.dtype)
    return masks.unflatten(leaves)

  return model.with_params(jax.jit(draw)(jax.random.key(0, impl="rbg")))


class Ours:
  """A training run on one device without its data.

  Args:
    shape: model and batch.
    method: a `config.method` section.
    precision: "float32", or "bfloat16": the dtype that products are computed in.
    runtime: fields of `Runtime`.

  Attributes:
    cost: of the compiled step, after `compile`.
  """

  def __init__(self, shape: Shape, method: Mapping[str, Any], precision: str, **runtime: Any):
    self.shape, self.method, self.precision = shape, dict(method), precision
    self.runtime = {"remat": "none", **runtime}
    self.cost: Cost | None = None
    config = config_lib.default()
    with config.unlocked():
      config.method = self.method
    self._task = tasks.make(shape.task, ("a", "b") if shape.labels else ())
    self._mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
    self._model = model_of(shape, method, precision, **self.runtime)
    self._program = run_lib.program(config, self._task, self._model, self._mesh, 1000)
    self._step: CompiledStep | None = None

  def compile(self) -> Cost:
    """Compiles the step from shapes; no array is made."""
    trainable, frozen = (self._laid(tree) for tree in masks.partition(self._model.params, self._model.labels()))
    state = self._laid(jax.eval_shape(self._program.init, trainable))
    batch = {
      name: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=mesh_lib.batch_sharding(self._mesh))
      for name, one in self.shape.batch().items()
    }
    self._step = CompiledStep(self._program.step(), self._mesh, state, frozen, lambda cost: None)
    self._compiled, self.cost = self._step.compile(state, frozen, batch)
    return self.cost

  def start(self) -> None:
    """Draws weights and makes the state."""
    model = self._drawn()
    trainable, frozen = masks.partition(model.params, model.labels())
    shardings = self._program.layout.shardings
    self._frozen = mesh_lib.put_tree(frozen, shardings(frozen))
    trainable = mesh_lib.put_tree(trainable, shardings(trainable))
    place = shardings(jax.eval_shape(self._program.init, trainable))
    self._state = jax.jit(self._program.init, out_shardings=place)(trainable)
    self._batch = mesh_lib.put_batch(self._mesh, self.shape.batch())

  def _drawn(self) -> Model:
    if self.method["name"] in ("full", "lora"):
      return drawn(self._model)
    base = model_of(self.shape, {"name": "full"}, self.precision, **self.runtime)
    dtype = dtypes_of(self.precision, str(self.method["name"]))[0]
    base = base.with_params(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), base.params))
    base = dataclasses.replace(drawn(base), bound=(), runtime=self._model.runtime)
    return base.add(methods.build(self.method), jax.random.key(1))

  def run(self) -> Any:
    """One update; the result need not be ready."""
    self._state, metrics = self._compiled(self._state, self._frozen, self._batch)
    return metrics["loss"]

  def step(self) -> Any:
    """The step before it is compiled."""
    return self._program.step()

  def held(self) -> tuple[Any, Any, Any]:
    """State, frozen leaves and batch, after `start`."""
    return self._state, self._frozen, self._batch

  def text(self) -> str:
    """The compiled program."""
    return str(self._compiled.as_text())

  def peak_bytes(self) -> int | None:
    """Most bytes that were in use on the device; None on a CPU."""
    stats = jax.devices()[0].memory_stats()
    return int(stats["peak_bytes_in_use"]) if stats else None

  def _laid(self, tree: Any) -> Any:
    shardings = self._program.layout.shardings(tree)
    return jax.tree.map(
      lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, shardings
    )


def model_flops(shape: Shape, method: str) -> float:
  """FLOPs that an update needs, nothing computed twice: 6 a weight and token with full fine-tuning, else 4.

  Products with weights, and attention's two: 4 · S · heads · head size a token and layer forward, half of it where no
  token sees a later one, times 3. Adapters' own products and weight gradients are left out, as is the embedding lookup.
  """
  model = from_config(shape.hf_config, task=shape.task, num_labels=shape.labels)
  per_weight = 6 if method == "full" else 4
  encoder, decoder = shape.rows * shape.length, shape.rows * shape.targets
  total = 0.0
  for path, leaf in masks.flatten(model.params).items():
    if not path.endswith(".kernel"):
      continue
    tokens = encoder
    if shape.targets and "decoder" in path.split("."):
      tokens = encoder if re.search(r"(EncDecAttention|encoder_attn)\.[kv]", path) else decoder
    if "pooler" in path or "classifier" in path or "score" in path:
      tokens = shape.rows
    total += per_weight * tokens * math.prod(leaf.shape)
  hf = model.hf_config
  hidden = int(hf.get("hidden_size", hf.get("n_embd", hf.get("d_model", 768))))
  if hf.get("tie_word_embeddings", True) and not shape.labels:
    total += per_weight * (decoder or encoder) * hidden * int(hf["vocab_size"])
  return total + 3 * _attention_flops(shape, model, hidden)


def _attention_flops(shape: Shape, model: Model, hidden: int) -> float:
  hf, rows = model.hf_config, shape.rows
  heads = int(_first(hf, "num_attention_heads", "n_head", "num_heads", "encoder_attention_heads"))
  width = heads * int(hf.get("head_dim") or hf.get("d_kv") or hidden // heads)
  layers = int(_first(hf, "num_hidden_layers", "n_layer", "num_layers", "encoder_layers"))
  if shape.targets:
    pairs = shape.length**2 + shape.targets**2 / 2 + shape.targets * shape.length
  else:
    pairs = shape.length**2 / (2 if shape.task == "causal_lm" else 1)
  return 4.0 * rows * layers * pairs * width


def _first(hf: Mapping[str, Any], *names: str) -> Any:
  """The first entry of config.json that is there; 12 where none is."""
  return next((hf[name] for name in names if name in hf), 12)


def finite(value: Any) -> bool:
  """Whether a loss is a number."""
  return bool(np.isfinite(np.asarray(value)))


__all__ = ["Ours", "drawn", "dtypes_of", "finite", "model_flops", "model_of", "use_cache"]
