"""Every method that is a change of weights, on every model of a user's own: what it does there, and what it should."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import peftjax
from peftjax import masks
from peftjax.errors import UserError
from peftjax.methods import METHODS, Method
from peftjax.methods.attach import attach
from peftjax.model import Model
from tests.wrap import models

ALL = masks.ALL_LINEAR

METHOD_SETTINGS: dict[str, dict[str, Any]] = {
  "lora": {"rank": 3, "alpha": 5.0},
  "dora": {"rank": 3, "alpha": 5.0},
  "adalora": {"init_r": 3, "target_r": 2},
  "vera": {"rank": 5},
  "fourierft": {"n_frequency": 9},
  "vblora": {"rank": 2, "num_vectors": 5, "vector_length": 1},
  "loha": {"rank": 2},
  "lokr": {"rank": 2},
  "oft": {"rank": 1},
  "boft": {"boft_block_size": 0, "boft_block_num": 1},
  "miss": {"rank": 2},
  "hra": {"rank": 2},
  "randlora": {"rank": 3, "alpha": 4.0},
  "shira": {"rank": 1},
  "c3a": {"block_size": 1},
  "hira": {"rank": 3},
  "gralora": {"rank": 2, "gralora_k": 1, "alpha": 4.0},
  "road": {"group_size": 2},
  "delora": {"rank": 3, "delora_lambda": 1.5},
  "beft": {},
  "ia3": {"feedforward": ()},
}


def make(name: str, targets: masks.Patterns = ALL, **more: Any) -> Method:
  """A method at all linear sites, or at those of some patterns."""
  return METHODS[name](targets=targets, **{**METHOD_SETTINGS[name], **more})


@functools.cache
def wrapped(case: str) -> tuple[Model, dict[str, Any], Any]:
  """(model, inputs, what the user's own function gives)."""
  if case == "function":
    inputs: dict[str, Any] = {"x": models.tokens()}
    params = models.function_params()
    return peftjax.wrap(models.function, params, inputs), inputs, models.function(params, **inputs)
  if case == "nnx":
    net = models.NnxTransformer(nnx.Rngs(0))
    inputs = {"x": models.tokens()}
    return peftjax.wrap(net, example_inputs=inputs), inputs, net(**inputs)
  if case == "linen":
    module, variables, inputs = models.linen_vit()
    return peftjax.wrap(module, variables, inputs), inputs, module.apply(variables, **inputs)
  if case == "haiku":
    transform, params, inputs = models.haiku_transformer()
    return peftjax.wrap(transform, params, inputs), inputs, transform.apply(params, None, **inputs)
  function, net, inputs = {"equinox_mlp": models.equinox_mlp, "equinox_vit": models.equinox_vit}[case]()
  return peftjax.wrap(function, net, inputs), inputs, function(net, **inputs)


CASES = ("function", "nnx", "linen", "equinox_mlp", "equinox_vit", "haiku")


def jitted(function: Callable[..., Any]) -> Callable[..., Any]:
  """The function compiled quickly, for one run."""
  return jax.jit(
    function, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
  )


def moved(model: Model, seed: int = 5, scale: float = 0.1) -> Model:
  """The model with its adapter's floating leaves moved away from where they start."""
  added, flat = model.adapter_paths(), masks.flatten(model.params)
  for number, path in enumerate(sorted(added)):
    leaf = flat[path]
    if path.rpartition(".")[2] in trained(model) and jnp.issubdtype(leaf.dtype, jnp.floating):
      flat[path] = leaf + scale * jax.random.normal(jax.random.fold_in(jax.random.key(seed), number), leaf.shape)
  return model.with_params(masks.unflatten(flat))


def trained(model: Model) -> set[str]:
  """The names of the leaves that its methods train."""
  return {name for method in model.methods for name in method.leaf_names}


def scalar(outputs: Any) -> jax.Array:
  """A number that depends on every output."""
  weights = [
    jax.random.normal(jax.random.key(index), leaf.shape) for index, leaf in enumerate(jax.tree.leaves(outputs))
  ]
  return sum(((leaf * weight).mean() for leaf, weight in zip(jax.tree.leaves(outputs), weights)), jnp.float32(0))


def compare(model: Model, inputs: Mapping[str, Any], tolerance: float = 1e-5) -> None:
  """Asserts that outputs and gradients of the adapter's leaves are those of the merged weights."""
  labels = model.labels()
  trainable, frozen = masks.partition(model.params, labels)

  def acting(part: Any) -> tuple[jax.Array, Any]:
    outputs = model.forward(masks.combine(part, frozen), inputs)
    return scalar(outputs), outputs

  def merged(part: Any) -> tuple[jax.Array, Any]:
    whole = model.with_params(masks.combine(part, frozen)).merge()
    outputs = whole.forward(whole.params, inputs)
    return scalar(outputs), outputs

  (_, one), ones = jitted(jax.value_and_grad(acting, has_aux=True))(trainable)
  (_, two), twos = jitted(jax.value_and_grad(merged, has_aux=True))(trainable)
  close(one, two, tolerance)
  close(ones, twos, tolerance)
  sizes = [float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(twos)]
  assert max(sizes, default=0.0) > 0.0


def at_linear(model: Model, name: str) -> Method:
  """The method at all linear sites; RoAd, which turns pairs, at those of an even number of outputs."""
  odd = tuple(one for site in model.sites if site.kind == "linear" and site.shape[1] % 2 for one in site.names)
  return make(name, **({"exclude": odd} if name == "road" else {}))


def adapted(model: Model, method: Method, seed: int = 5, scale: float = 0.1) -> Model:
  """`moved` of the model with the method, its leaves made by one program."""
  shapes = model.with_params(jax.eval_shape(lambda tree: tree, model.params)).add(method, jax.random.key(1))

  def leaves(params: masks.Tree) -> masks.Tree:
    return moved(shapes.with_params(attach(params, shapes.bound, jax.random.key(1))), seed, scale).params

  return shapes.with_params(jitted(leaves)(model.params))


def check(model: Model, inputs: Mapping[str, Any], tolerance: float = 1e-5) -> None:
  """`compare` of a model with an adapter; BEFT, a bias alone, has no place in a base that lacks some biases."""
  (method,) = model.methods
  if method.name == "beft" and not all(site.has_bias for one in model.bound for site in one.sites):
    with pytest.raises(UserError, match="has no bias"):
      model.merge()
    return
  compare(model, inputs, 5e-5 if method.name == "fourierft" else tolerance)  # an FFT's rounding in float32


def close(one: Any, two: Any, tolerance: float) -> None:
  """Asserts that the trees agree, each leaf relative to the greatest of its own values or, if that is less, of all."""
  flat, other = masks.flatten(one), masks.flatten(two)
  assert flat.keys() == other.keys()
  greatest = max((float(np.abs(leaf).max()) for leaf in other.values()), default=0.0)
  for path, leaf in flat.items():
    scale = max(float(np.abs(other[path]).max()), 0.1 * greatest, 1e-30)
    error = float(np.abs(np.asarray(leaf) - np.asarray(other[path])).max()) / scale
    assert error <= tolerance, (path, error)
