"""A tiny encoder and decoder, and every method on them with random leaves; compiled once a method for all tests."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax import masks, methods
from peftjax.methods import METHODS, Method
from peftjax.model import Model
from tests.methods import test_reparam, tiny
from tests.models import decoder_models

T = ("query", "up", "down")  # of the toy: [20, 20], [20, 28] and [28, 20]
N = 3

SETTINGS: dict[str, dict[str, Any]] = {
  "full": {},
  "head": {},
  "bitfit": {},
  "layernorm": {},
  "beft": {"targets": T},
  "last_k": {"k": 1},
  "patterns": {"train": ("query",)},
  "lora": {"targets": T, "rank": 5, "alpha": 7.0},
  "dora": {"targets": T, "rank": 5, "alpha": 7.0},
  "adalora": {"targets": T, "init_r": 5, "target_r": 3},
  "vera": {"targets": T, "rank": 5},
  "fourierft": {"targets": T, "n_frequency": 17},
  "vblora": {"targets": T, "rank": 2, "num_vectors": 7, "vector_length": 4},
  "loha": {"targets": T, "rank": 2},
  "lokr": {"targets": T, "rank": 2},
  "oft": {"targets": T, "oft_block_size": 4},
  "boft": {"targets": T, "boft_block_size": 4},
  "miss": {"targets": T, "rank": 5},
  "hra": {"targets": T, "rank": 4},
  "randlora": {"targets": T, "rank": 5, "alpha": 4.0},
  "shira": {"targets": T, "rank": 2},
  "c3a": {"targets": T, "block_size": 4},
  "hira": {"targets": T, "rank": 5},
  "gralora": {"targets": T, "rank": 4, "hybrid_r": 3},
  "road": {"targets": T, "group_size": 4},
  "delora": {"targets": T, "rank": 5},
  "ia3": {"targets": T, "feedforward": ("down",)},
  "houlsby": {"bottleneck_dim": 5},
  "pfeiffer": {"bottleneck_dim": 5},
  "parallel_adapter": {"bottleneck_dim": 5, "learned_scale": True},
  "compacter": {"bottleneck_dim": 6, "phm_dim": 3},
  "adapter_plus": {"bottleneck_dim": 5},
  "reft": {"rank": 2},
  "prompt": {"num_virtual_tokens": N},
  "p_tuning": {"num_virtual_tokens": N, "encoder_hidden_size": 5},
  "prefix": {"num_virtual_tokens": N, "reparametrize": True, "encoder_hidden_size": 5},
  "p_tuning_v2": {"num_virtual_tokens": N},
  "llama_adapter": {"num_virtual_tokens": N},
  "trainable_tokens": {"token_indices": (30, 11, 5, 17)},
  "mam": {"num_virtual_tokens": N, "bottleneck_dim": 5},
  "unipelt": {"rank": 2, "num_virtual_tokens": N, "bottleneck_dim": 5},
  "hybrid": {
    "methods": ({"name": "lora", "rank": 5, "targets": ("query", "down")}, {"name": "ia3", "targets": ("up",)})
  },
}
NAMES = tuple(METHODS)
QUICK = ("lora", "dora", "vera", "loha", "oft", "ia3", "beft", "hybrid", "houlsby", "prompt", "prefix", "bitfit")
"""One of each way of acting; the others are tested in slow runs."""


def method(name: str, **changes: Any) -> Method:
  return methods.build({"name": name, **SETTINGS[name], **changes})


@functools.cache
def toy() -> Model:
  return test_reparam.toy()


@functools.cache
def encoder() -> Model:
  return tiny.encoder()


@functools.cache
def decoder() -> Model:
  return decoder_models.random_model(decoder_models.LLAMA)


def on_toy(name: str) -> bool:
  """Whether the method acts on linear layers alone, for which a model that compiles in a moment is enough."""
  return method(name).parts[0].kinds[:1] == ("linear",) and name != "unipelt"


def base(name: str) -> Model:
  return _base(on_toy(name))


@functools.cache
def _base(is_toy: bool) -> Model:
  return toy() if is_toy else encoder()


def batch(name: str) -> dict[str, jax.Array]:
  return {"x": test_reparam.batch(rows=4)["x"]} if on_toy(name) else tiny.batch(size=4)


@functools.cache
def fresh(name: str) -> Model:
  return base(name).add(method(name), jax.random.key(0))


@functools.cache
def adapted(name: str, seed: int = 1) -> Model:
  """The model with the method and random values in what it adds; the head is the base's."""
  model = fresh(name)
  own = {path: leaf for path, leaf in tiny.trainable(model).items() if not model.context.in_head(path)}
  return tiny.replaced(model, tiny.noise_on(own, seed))


def base_logits(name: str) -> jax.Array:
  return _base_logits(on_toy(name))


@functools.cache
def _base_logits(is_toy: bool) -> jax.Array:
  model, name = _base(is_toy), "lora" if is_toy else "prompt"
  return jax.jit(lambda params, inputs: model.forward(params, inputs)["logits"])(model.params, batch(name))


def with_lora(model: Model, seed: int, scale: float = 0.3, **settings: Any) -> Model:
  """A model with a LoRA of random leaves, its head untouched."""
  added = model.add(methods.LoRA(**settings), jax.random.key(seed))
  random, flat = np.random.default_rng(seed), masks.flatten(added.params)
  for path in sorted(added.adapter_paths()):
    flat[path] = jnp.asarray(scale * random.normal(size=flat[path].shape), jnp.float32)
  return added.with_params(masks.unflatten(flat))


def close(found: Any, wanted: Any, tolerance: float = 1e-5) -> None:
  wanted = np.asarray(wanted)
  np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * max(1.0, np.abs(wanted).max()))
