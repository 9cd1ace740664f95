"""Tiny encoders with odd sizes, and the few compiled programs that the tests of methods share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from peftjax import masks
from peftjax.methods import Method
from peftjax.model import Model
from peftjax.testing.bases import (
  HEADS,
  HIDDEN,
  LABELS,
  LAYERS,
  LENGTH,
  Flat,
  batch,
  config,
  encoder,
  noise_on,
  replaced,
  rest_of,
  trainable,
)

__all__ = [
  "HEADS", "HIDDEN", "LABELS", "LAYERS", "LENGTH", "Flat", "batch", "config", "encoder", "noise_on", "replaced",
  "rest_of", "trainable",
]  # fmt: skip


def adapter_count(model: Model) -> int:
  """Parameters that train outside the head."""
  leaves = [leaf for path, leaf in trainable(model).items() if not model.context.in_head(path)]
  return sum(int(np.prod(leaf.shape)) for leaf in leaves)


def score(model: Model, flat: Flat, rest: Flat, inputs: dict[str, jax.Array]) -> jax.Array:
  """A number that depends on all outputs at real tokens; all leaves are arguments, so that XLA folds no constants."""
  outputs = model.forward(masks.unflatten({**rest, **flat}), inputs)
  total = jnp.zeros(())
  for leaf in outputs.values():
    rows = jnp.cos(jnp.arange(leaf[..., 0].size, dtype=jnp.float32)).reshape(leaf.shape[:-1])
    rows = rows * inputs["attention_mask"] if leaf.ndim == 3 else rows
    total += jnp.einsum("...,...d,d->", rows, jnp.tanh(leaf), jnp.sin(1.0 + jnp.arange(leaf.shape[-1])))
  return total


def added(method: Method, model: Model | None = None, seed: int = 0) -> Model:
  """A tiny BERT classifier with the method."""
  return (model or encoder()).add(method, jax.random.key(seed))


def traced_flops(model: Model, inputs: dict[str, jax.Array]) -> float:
  """FLOPs of the gradient of what trains, before XLA's own optimizations; from shapes alone."""
  step = jax.jit(jax.grad(lambda flat, rest: score(model, flat, rest, inputs)))
  return step.lower(trainable(model), rest_of(model)).cost_analysis()["flops"]
