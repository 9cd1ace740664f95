"""Methods on Linen's own modules: maps over several axes, attention, transposed convolutions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import adapters, methods
from peftjax.methods.base import Method, Targeted
from tests.methods import matrix, tiny
from tests.methods.linen_models import PIXELS, Einsums, TinyViT, make

LINEAR = sorted(
  name
  for name, method in methods.METHODS.items()
  if type(method) is type and issubclass(method, Targeted) and "linear" in method.kinds
  and method.delta is not Method.delta
)  # fmt: skip

QUICK = ("lora", "dora", "ia3", "beft")


def method_of(name: str, **settings) -> Method:
  method = matrix.make(name, matrix.SETTINGS.get(name, {}))
  return dataclasses.replace(method, **{"targets": "all-linear", **settings})


def trained(module, method: Method):
  model = make(module).add(method, jax.random.key(3))
  own = {path: leaf for path, leaf in tiny.trainable(model).items() if not model.context.in_head(path)}
  return tiny.replaced(model, tiny.noise_on(own, scale=0.1))


def close(found, wanted) -> None:
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * float(jnp.abs(wanted).max()))


def test_all_linear_takes_every_linear_map():
  model = make(TinyViT).add(method_of("lora"))
  (bound,) = model.bound
  assert len(bound.sites) == 13
  shapes = {site.names[0]: site.shape for site in bound.sites if "_1" not in site.names[0]}
  assert shapes == {
    "patches": (12, 12),
    **{f"blocks_0.attn.{name}": (12, 12) for name in ("query", "key", "value", "out")},
    "blocks_0.fc1": (12, 24),
    "blocks_0.fc2": (24, 12),
  }


@pytest.mark.parametrize(
  ("module", "name"),
  [
    *((TinyViT, name) for name in LINEAR),
    *(pytest.param(Einsums, name, marks=() if name in QUICK else pytest.mark.slow) for name in LINEAR),
  ],
  ids=lambda part: part if isinstance(part, str) else part.__name__,
)
def test_acting_equals_the_change_of_weights(module, name):
  model = trained(module, method_of(name))
  merged, base = model.merge(check=False), make(module)  # the outputs are compared here
  assert merged.adapter_paths() == set()
  found = model(pixels=PIXELS)["logits"]
  close(found, merged(pixels=PIXELS)["logits"])
  assert np.abs(found - base(pixels=PIXELS)["logits"]).max() > 1e-3


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "oft", "vera"])
def test_gradients_are_those_of_the_change_of_weights(name):
  model = trained(TinyViT, method_of(name))
  flat, rest = tiny.trainable(model), tiny.rest_of(model)
  flat = {path: leaf for path, leaf in flat.items() if path in model.adapter_paths()}

  def by_acting(leaves):
    tree = tiny.replaced(model, {**rest, **leaves}).params
    return jnp.sum(jnp.sin(model.forward(tree, {"pixels": PIXELS})["logits"]))

  def by_weights(leaves):
    merged = tiny.replaced(model, {**rest, **leaves}).merge()
    return jnp.sum(jnp.sin(merged.forward(merged.params, {"pixels": PIXELS})["logits"]))

  found, wanted = jax.jit(jax.grad(by_acting))(flat), jax.jit(jax.grad(by_weights))(flat)
  for path, leaf in found.items():
    np.testing.assert_allclose(leaf, wanted[path], rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", ["lora", "oft", "ia3", "hira"])
def test_what_is_merged_can_be_taken_out(name):
  model = trained(TinyViT, method_of(name))
  adapter = adapters.take(model)
  again = adapters.unmerge(model.merge(), dataclasses.replace(adapter, along={}))
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5), again.params, make(TinyViT).params)


def test_a_change_of_weights_converts_to_lora():
  model = trained(TinyViT, method_of("hira", rank=2))
  converted = adapters.to_lora(model, energy=1.0).model
  close(converted(pixels=PIXELS)["logits"], model(pixels=PIXELS)["logits"])


@pytest.mark.parametrize("init", ["kaiming", "pissa"])
def test_lora_on_transposed_convolutions(init):
  model = trained(Einsums, methods.LoRA(rank=3, alpha=5.0, targets=("up", "turned"), init=init))
  assert {site.kind for site in model.bound[0].sites} == {"conv"}
  found = model(pixels=PIXELS)["logits"]
  close(found, model.merge()(pixels=PIXELS)["logits"])
  assert np.abs(found - make(Einsums)(pixels=PIXELS)["logits"]).max() > 1e-2


def test_several_adapters_share_a_batch():
  base = make(TinyViT)
  models = [trained(TinyViT, dataclasses.replace(method_of("lora"), rank=rank)) for rank in (2, 3)]
  each = [dataclasses.replace(adapters.take(model), along={}) for model in models]
  mixed = adapters.mixed(base, each)(pixels=PIXELS, adapter_ids=[1, -1, 0])["logits"]
  for row, wanted in enumerate((adapters.put(base, each[1]), base, adapters.put(base, each[0]))):
    close(mixed[row], wanted(pixels=PIXELS)["logits"][row])


def test_own_copies_of_such_modules_share_a_batch():
  base = make(TinyViT)
  models = [trained(TinyViT, methods.LoRA(rank=2, targets=("query",), modules_to_save=("fc1", "out"))) for _ in (0, 1)]
  each = [adapters.take(model) for model in models]
  mixed = adapters.mixed(base, each)(pixels=PIXELS, adapter_ids=[1, -1, 0])["logits"]
  close(mixed[0], models[1](pixels=PIXELS)["logits"][0])
  close(mixed[1], base(pixels=PIXELS)["logits"][1])
