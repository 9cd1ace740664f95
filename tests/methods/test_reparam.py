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
from flax import linen as nn

from peftjax import masks, methods
from peftjax.errors import UserError
from peftjax.methods import Site
from peftjax.model import Model
from peftjax.models.building import build
from peftjax.models.family import ENCODER, Architecture, Family
from peftjax.models.layers import Runtime, stack_of

HIDDEN, WIDE = 20, 28
TARGETS = ("query", "up", "down")
SHAPES = ((HIDDEN, HIDDEN), (HIDDEN, WIDE), (WIDE, HIDDEN))  # (in, out) of one layer's sites
LAYERS = 2


@dataclasses.dataclass(frozen=True)
class Case:
  """A method's settings on the tiny model, and what is expected of it."""

  settings: dict[str, Any]
  count: int
  start: str = "bitwise"  # the outputs at the start are the base's: "bitwise", "close" or "free"
  wide: dict[str, Any] = dataclasses.field(default_factory=dict)  # other settings where FLOPs are counted
  sizes: tuple[int, int] = (64, 96)  # hidden and wide, there
  flops: float = 1.0  # of a step, over those of full fine-tuning; above 1 where the update has full rank


def per_layer(function: Any) -> int:
  return LAYERS * sum(function(*shape) for shape in SHAPES)


def count_of_lokr_both() -> int:
  """Factors near 5 and below: 20 = 5 · 4, 28 = 4 · 7; both matrices are products of rank 1."""
  five, four = (5, 4), (4, 7)
  pairs = ((five, five), (five, four), (four, five))
  return LAYERS * sum(i1 + o1 + i2 + o2 for (i1, i2), (o1, o2) in pairs)


CASES = {
  "lora": Case({"rank": 3, "alpha": 5.0}, per_layer(lambda i, o: 3 * (i + o))),
  "dora": Case({"rank": 3, "alpha": 5.0}, per_layer(lambda i, o: 3 * (i + o) + o), "close"),
  "dora pissa": Case({"rank": 3, "init": "pissa"}, per_layer(lambda i, o: 3 * (i + o) + o), "close"),
  "adalora": Case({"init_r": 3, "target_r": 2}, per_layer(lambda i, o: 3 * (i + o) + 3)),
  "vera": Case({"rank": 3}, per_layer(lambda i, o: 3 + o)),
  "fourierft": Case({"n_frequency": 7, "init": "zeros"}, per_layer(lambda i, o: 7), sizes=(192, 256)),
  "vblora": Case(
    {"rank": 3, "num_vectors": 5, "vector_length": 4},
    per_layer(lambda i, o: 3 * 5 * (i + o) // 4) + 5 * 4,
    "free",
    {"vector_length": 16},
  ),
  "loha": Case({"rank": 2}, per_layer(lambda i, o: 4 * (i + o))),
  "loha dense": Case({"rank": 5}, per_layer(lambda i, o: 10 * (i + o)), flops=1.05),
  "lokr": Case({"rank": 2}, per_layer(lambda i, o: 16 + 2 * (i // 4 + o // 4))),
  "lokr lycoris": Case(
    {"rank": 1, "decompose_both": True, "decompose_factor": 5, "init": "lycoris"}, count_of_lokr_both()
  ),
  "oft": Case({"oft_block_size": 4}, per_layer(lambda i, o: 6 * i // 4)),
  "oft exact": Case(
    {"rank": 2, "use_cayley_neumann": False, "block_share": True},
    per_layer(lambda i, o: math.comb(i // 2, 2)),
    wide={"rank": 8},
  ),
  "boft": Case({"boft_block_size": 4}, per_layer(lambda i, o: 4 * i + o)),
  "boft butterfly": Case({"boft_block_size": 2, "boft_n_butterfly_factor": 2}, per_layer(lambda i, o: 2 * 2 * i + o)),
  "miss": Case({"rank": 3}, per_layer(lambda i, o: 3 * o)),
  "miss mini": Case({"rank": 3, "mini_r": 2, "init": "mini"}, per_layer(lambda i, o: 6)),
  "miss bat": Case({"rank": 4, "init": "bat"}, per_layer(lambda i, o: 4 * o), flops=1.1),
  "hra": Case({"rank": 4}, per_layer(lambda i, o: 4 * i), "close"),
  "hra gs": Case({"rank": 3, "apply_gs": True}, per_layer(lambda i, o: 3 * i), "free"),
  "randlora": Case({"rank": 3, "alpha": 4.0}, per_layer(lambda i, o: 7 * (3 + 20)), flops=1.2),
  "randlora sparse": Case({"rank": 3, "alpha": 4.0, "sparse": True}, per_layer(lambda i, o: 7 * (3 + 20)), flops=1.2),
  "shira": Case({"rank": 3}, per_layer(lambda i, o: 3 * (i + o)), flops=1.1),
  "c3a": Case({"block_size": 4, "init": "zeros"}, per_layer(lambda i, o: i * o // 4), wide={"block_size": 16}),
  "hira": Case({"rank": 3}, per_layer(lambda i, o: 3 * (i + o)), flops=1.1),
  "gralora": Case({"rank": 4, "gralora_k": 2, "hybrid_r": 3}, per_layer(lambda i, o: 7 * (i + o))),
  "road": Case({"group_size": 4}, per_layer(lambda i, o: o)),
  "road 4": Case({"group_size": 4, "variant": "road_4"}, per_layer(lambda i, o: 4 * o)),
  "delora": Case({"rank": 3}, per_layer(lambda i, o: 3 * (i + o) + 1)),
}
NAMES = sorted(CASES)


class Block(nn.Module):
  """x + up, tanh, down."""

  sizes: tuple[int, int]

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
    hidden = nn.tanh(nn.Dense(self.sizes[1], name="up")(nn.Dense(self.sizes[0], name="query")(x)))
    return x + nn.Dense(self.sizes[0], name="down")(hidden), None


class Toy(nn.Module):
  """A stack of blocks."""

  sizes: tuple[int, int]
  runtime: Runtime

  def setup(self) -> None:
    self.layer = stack_of(Block, (self.sizes,), LAYERS, self.runtime)

  def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
    return {"logits": self.layer(x)[0]}


def toy(scan: bool = True, sizes: tuple[int, int] = (HIDDEN, WIDE)) -> Model:
  """A model of random parameters; compiling it takes much less than a transformer."""
  family = Family(
    model_types=("toy",),
    parse=lambda config: sizes,
    architectures={"Toy": Architecture(lambda config, runtime: Toy(config, runtime), ENCODER)},
    stacks=lambda config: {"layer": LAYERS},
    inputs=lambda config: {"x": jax.ShapeDtypeStruct((2, 3, sizes[0]), jnp.float32)},
  )
  runtime = Runtime(scan_layers=scan)
  module, shapes, sites, stacks = build(family, "Toy", sizes, runtime)
  model = Model(module, shapes, sizes, {"model_type": "toy"}, family, "Toy", runtime, sites, stacks)
  rng = np.random.default_rng(1)
  return model.with_params(
    jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32), shapes)
  )


def method_of(name: str, **changes: Any) -> methods.Method:
  return methods.build({"name": name.split()[0], "targets": TARGETS, **CASES[name].settings, **changes})


def filled(model: Model, scale: float = 0.3) -> Model:
  """The model with random values in every leaf that a method trains."""
  flat, labels = masks.flatten(model.params), masks.flatten(model.labels())
  rng = np.random.default_rng(7)
  for path in sorted(model.adapter_paths()):
    if labels[path] != masks.FROZEN:
      flat[path] = jnp.asarray(flat[path] + scale * rng.standard_normal(flat[path].shape), jnp.float32)
  return model.with_params(masks.unflatten(flat))


def batch(length: int = 5, rows: int = 3, size: int = HIDDEN) -> dict[str, jax.Array]:
  return {"x": jnp.asarray(np.random.default_rng(2).standard_normal((rows, length, size)), jnp.float32)}


def loss_of(model: Model, trainable: masks.Tree, frozen: masks.Tree, inputs: dict[str, jax.Array]) -> Any:
  logits = model.forward(masks.combine(trainable, frozen), inputs)["logits"]
  return jnp.mean(jnp.sin(logits)), logits


@functools.cache
def base() -> Model:
  return toy()


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


def step_cost(model: Model, length: int = 64, rows: int = 8) -> tuple[float, int]:
  """(FLOPs, temporary bytes) of a loss and its gradients, compiled."""
  trainable, frozen = masks.partition(model.params, model.labels())
  step = jax.jit(jax.grad(functools.partial(loss_of, model), has_aux=True))
  compiled = step.lower(trainable, frozen, batch(length, rows, model.config[0])).compile()
  return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes


@functools.cache
def broad(sizes: tuple[int, int]) -> Model:
  """Unrolled, as the compiler counts a loop's body once."""
  return toy(False, sizes)


@functools.cache
def full_cost(sizes: tuple[int, int]) -> float:
  return step_cost(broad(sizes).add(methods.Full()))[0]


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_the_published_formula(name: str):
  model = added(name)
  trainable, _ = masks.partition(model.params, model.labels())
  assert masks.count(trainable).parameters == CASES[name].count


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
  np.testing.assert_allclose(merged(**batch())["logits"], logits, rtol=1e-5, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize("name", NAMES)
def test_every_leaf_of_the_method_gets_a_gradient_and_no_other(name: str):
  model, found, _, _ = results(name)
  buffers = type(model.methods[0]).buffer_names
  expected = {path for path in model.adapter_paths() if path.rpartition(".")[2] not in buffers}
  assert set(found) == expected
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
  case = CASES[name]
  assert step_cost(broad(case.sizes).add(method_of(name, **case.wide)))[0] < case.flops * full_cost(case.sizes)


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
  if method.acts_by_delta(site):
    return x @ (kernel + method.delta(leaves, {"kernel": kernel}, site, shared)["kernel"])
  return method.after(leaves, x, method.before(leaves, x, site, call) @ kernel, site, call)


def test_unrolled_layers_compute_what_stacked_ones_do():
  model, _, logits, _ = results("vera")
  np.testing.assert_allclose(model.unrolled()(**batch())["logits"], logits, rtol=1e-5, atol=1e-5)


def test_a_field_of_another_method_is_refused():
  with pytest.raises(UserError, match="no field 'n_frequency'"):
    methods.build({"name": "vera", "n_frequency": 3})
