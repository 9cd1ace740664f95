"""What every reparametrisation keeps to: counts, the start, gradients, merging, FLOPs, stacks."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import masks, methods
from peftjax.errors import UserError
from peftjax.methods import Site
from peftjax.model import Model, from_config, initialise
from peftjax.models.layers import Runtime

HIDDEN, WIDE, LABELS = 20, 28, 3
TARGETS = ("query", "intermediate.dense", "output.dense")
SHAPES = ((HIDDEN, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, WIDE), (WIDE, HIDDEN))  # (in, out) of one layer's sites
LAYERS = 2


@dataclasses.dataclass(frozen=True)
class Case:
  """A method's settings on the tiny model, and what is expected of it."""

  settings: dict[str, Any]
  count: int
  start: str = "bitwise"  # the outputs at the start are the base's: "bitwise", "close" or "free"
  wide: dict[str, Any] = dataclasses.field(default_factory=dict)  # other settings where FLOPs are counted


def per_layer(function: Any) -> int:
  return LAYERS * sum(function(*shape) for shape in SHAPES)


CASES = {
  "lora": Case({"rank": 3, "alpha": 5.0}, per_layer(lambda i, o: 3 * (i + o))),
  "vera": Case({"rank": 3}, per_layer(lambda i, o: 3 + o)),
  "fourierft": Case({"n_frequency": 7, "init_weights": True}, per_layer(lambda i, o: 7)),
  "vblora": Case(
    {"rank": 3, "num_vectors": 5, "vector_length": 4},
    per_layer(lambda i, o: 3 * 5 * (i + o) // 4) + 5 * 4,
    "free",
    {"vector_length": 16},
  ),
}
NAMES = sorted(CASES)


def tiny(scan: bool = True, hidden: int = HIDDEN, wide: int = WIDE, heads: int = 2, layers: int = LAYERS) -> Model:
  config = {
    "model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 31, "hidden_size": hidden,
    "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": wide, "hidden_act": "gelu",
    "max_position_embeddings": 40, "initializer_range": 0.3,
  }  # fmt: skip
  model = from_config(config, num_labels=LABELS, runtime=Runtime(scan_layers=scan, dropout=0.0))
  return initialise(model, jax.random.key(1))


def method_of(name: str, **changes: Any) -> methods.Method:
  return methods.build({"name": name, "targets": TARGETS, **CASES[name].settings, **changes})


def filled(model: Model, scale: float = 0.3) -> Model:
  """The model with random values in every leaf that a method trains."""
  flat, labels = masks.flatten(model.params), masks.flatten(model.labels())
  for index, path in enumerate(sorted(model.adapter_paths())):
    if labels[path] != masks.FROZEN:
      key = jax.random.fold_in(jax.random.key(7), index)
      flat[path] = flat[path] + scale * jax.random.normal(key, flat[path].shape)
  return model.with_params(masks.unflatten(flat))


def batch(length: int = 9, rows: int = 3) -> dict[str, jax.Array]:
  ids = jax.random.randint(jax.random.key(2), (rows, length), 0, 31)
  return {"input_ids": ids, "attention_mask": jnp.ones((rows, length), jnp.int32).at[0, 5:].set(0)}


def loss_of(model: Model, trainable: masks.Tree, frozen: masks.Tree, inputs: dict[str, jax.Array]) -> Any:
  logits = model.forward(masks.combine(trainable, frozen), inputs)["logits"]
  return -jax.nn.log_softmax(logits)[:, 1].mean(), logits


@functools.cache
def base() -> Model:
  return tiny()


@functools.cache
def added(name: str) -> Model:
  return base().add(method_of(name))


@functools.cache
def results(name: str) -> tuple[Model, dict[str, jax.Array], jax.Array, jax.Array]:
  """(model with random leaves, its gradients, its logits, the logits at the start)."""
  fresh, model = added(name), filled(added(name))
  step = jax.jit(jax.grad(functools.partial(loss_of, model), has_aux=True))
  found, logits = step(*masks.partition(model.params, model.labels()), batch())
  _, start = step(*masks.partition(fresh.params, model.labels()), batch())
  return model, masks.flatten(found), logits, start


def step_cost(model: Model, length: int = 32, rows: int = 8) -> tuple[float, int]:
  """(FLOPs, temporary bytes) of a loss and its gradients, compiled."""
  trainable, frozen = masks.partition(model.params, model.labels())
  step = jax.jit(jax.grad(functools.partial(loss_of, model), has_aux=True))
  compiled = step.lower(trainable, frozen, batch(length, rows)).compile()
  return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes


@functools.cache
def broad() -> Model:
  """One unrolled layer, wide enough that the layers' own matmuls are what is counted."""
  return tiny(False, 64, 96, 4, layers=1)


@functools.cache
def full_cost() -> float:
  return step_cost(broad().add(methods.Full()))[0]


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_the_published_formula(name: str):
  model = added(name)
  trainable, _ = masks.partition(model.params, model.labels())
  head = sum(math.prod(leaf.shape) for path, leaf in masks.flatten(trainable).items() if path.startswith("classifier."))
  assert masks.count(trainable).parameters - head == CASES[name].count


@pytest.mark.parametrize("name", NAMES)
def test_the_start_is_the_base(name: str):
  start, (_, _, _, logits) = CASES[name].start, results(name)
  expected = base()(**batch())["logits"]
  if start == "free":
    assert np.abs(logits - expected).max() > 1e-6
    return
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
  for site, leaves, kernel, shared in sites_of(added(name)) if start == "bitwise" else ():
    x = jax.random.normal(jax.random.key(3), (4, site.shape[0]))
    np.testing.assert_array_equal(act(added(name).methods[0], site, leaves, kernel, shared, x), x @ kernel)


@pytest.mark.parametrize("name", NAMES)
def test_the_method_acts_and_merges(name: str):
  model, _, logits, _ = results(name)
  assert np.abs(logits - base()(**batch())["logits"]).max() > 1e-2
  merged = model.merge()
  assert not merged.adapter_paths()
  np.testing.assert_allclose(merged(**batch())["logits"], logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_leaf_of_the_method_gets_a_gradient_and_no_other(name: str):
  model, found, _, _ = results(name)
  expected = {path for path in model.adapter_paths() if path.rpartition(".")[2] in type(model.methods[0]).leaf_names}
  assert {path for path in found if not path.startswith("classifier.")} == expected
  for path, gradient in found.items():
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, path


@pytest.mark.parametrize("name", NAMES)
def test_leaves_do_not_depend_on_how_layers_are_stored(name: str):
  stacked, unrolled = added(name).unrolled(), base().unrolled().add(method_of(name))
  assert stacked.adapter_paths() == unrolled.adapter_paths()
  for path in stacked.adapter_paths():
    leaf, other = (masks.flatten(model.params)[path] for model in (stacked, unrolled))
    np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_needs_fewer_flops_than_full_fine_tuning(name: str):
  assert step_cost(broad().add(method_of(name, **CASES[name].wide)))[0] < full_cost()


def sites_of(model: Model) -> Iterator[tuple[Site, dict[str, Any], jax.Array, dict[str, Any]]]:
  """(site, leaves, kernel, shared leaves) of the first layer."""
  flat, (bound,) = masks.flatten(model.params), model.bound
  for site in bound.sites:
    own = {path.removeprefix(".".join(site.path) + "."): leaf[0] for path, leaf in flat.items()
           if path.startswith(".".join(site.path) + ".")}  # fmt: skip
    yield site.one(0), own, own["kernel"], model.params.get(bound.shared_path, {})


def act(
  method: methods.Method, site: Site, leaves: dict[str, Any], kernel: jax.Array, shared: dict[str, Any], x: jax.Array
) -> jax.Array:
  """The site's output for x, without its bias, one operation at a time."""
  call = methods.Call(base={"kernel": kernel}.get, shared=shared, dropout=lambda value, rate: value)
  return method.after(leaves, x, method.before(leaves, x, site, call) @ kernel, site, call)


def test_unrolled_layers_compute_what_stacked_ones_do():
  model, _, logits, _ = results("vera")
  np.testing.assert_allclose(model.unrolled()(**batch())["logits"], logits, rtol=1e-5, atol=1e-5)


def test_a_field_of_another_method_is_refused():
  with pytest.raises(UserError, match="no field 'n_frequency'"):
    methods.build({"name": "vera", "n_frequency": 3})
