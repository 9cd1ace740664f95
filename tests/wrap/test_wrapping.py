"""What a wrapped model gives: the user's own object again, files, transformations of JAX, and one line for mistakes."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import peftjax
from peftjax import adapters, masks, methods
from peftjax.errors import UserError
from peftjax.train.flops import count_flops
from tests.wrap import grid, models

LORA = methods.LoRA(rank=3, alpha=5.0, targets=("q", "up", "proj"))


@functools.cache
def adapted():
  """(model with a moved LoRA, inputs)."""
  model, inputs, _ = grid.wrapped("function")
  return grid.moved(model.add(LORA)), inputs


def test_unwrap_gives_the_users_own_kind_of_object():
  model, inputs = adapted()
  params = model.merge().unwrap()
  assert jax.tree.structure(params) == jax.tree.structure(models.function_params())
  grid.close(models.function(params, **inputs), model(**inputs), 1e-5)
  with pytest.raises(UserError, match="merge"):
    model.unwrap()


def test_unwrap_of_an_nnx_module_and_of_linen_variables():
  model, inputs, own = grid.wrapped("nnx")
  net = model.unwrap()
  assert isinstance(net, models.NnxTransformer)
  np.testing.assert_allclose(net(**inputs), own, rtol=1e-5, atol=1e-6)
  linen, _, _ = grid.wrapped("linen")
  assert set(linen.unwrap()) == {"params", "batch_stats"}


def test_an_adapter_goes_into_files_and_back(tmp_path):
  model, _ = adapted()
  model.save_adapter(tmp_path / "a")
  base, _, _ = grid.wrapped("function")
  back = base.load_adapter(tmp_path / "a")
  assert back.methods == model.methods
  assert all(bool((one == two).all()) for one, two in zip(jax.tree.leaves(model.params), jax.tree.leaves(back.params)))
  other = peftjax.wrap(lambda params, x: x @ params["q"], {"q": jnp.ones((3, 2))}, {"x": jnp.ones((1, 3))})
  with pytest.raises(UserError):
    other.load_adapter(tmp_path / "a")


def test_an_adapter_on_other_values_of_the_leaves_that_do_not_train_is_refused_unless_asked(tmp_path):
  model, _ = adapted()
  model.save_adapter(tmp_path / "a")
  base, _, _ = grid.wrapped("function")
  other = base.with_params(jax.tree.map(lambda leaf: leaf * 1.5, base.params))
  with pytest.raises(UserError, match="the adapter was trained on another base"):
    other.load_adapter(tmp_path / "a")
  taken = other.load_adapter(tmp_path / "a", other_base=True)
  added = model.adapter_paths()
  flat, saved = masks.flatten(taken.params), masks.flatten(model.params)
  assert added and all(bool((flat[path] == saved[path]).all()) for path in added)


@pytest.mark.parametrize(
  ("field", "value", "said"),
  [
    ("methods", [3], "methods=.*expected a list, each value an object"),
    ("methods", [{"name": "lora", "rank": "x", "targets": ["*"]}], "method.rank"),
    ("methods", [{"name": "lora", "scale": "x"}], r"methods\[0\].scale"),
    ("sites", [{"path": 3}], r"sites\[0\].path=3: expected a text"),
    ("sites", [], "here its methods act on"),
    ("format", 3, "format 3; expected"),
    ("base_sha256", 3, "base_sha256=3: expected a text"),
  ],
)
def test_a_damaged_adapter_json_is_one_line(tmp_path, field, value, said):
  model, _ = adapted()
  model.save_adapter(tmp_path)
  config = json.loads((tmp_path / "adapter.json").read_text())
  (tmp_path / "adapter.json").write_text(json.dumps({**config, field: value}))
  with pytest.raises(UserError, match=said) as error:
    grid.wrapped("function")[0].load_adapter(tmp_path)
  assert "\n" not in str(error.value)


def test_scaled_and_disabled():
  model, inputs = adapted()
  base, _, own = grid.wrapped("function")
  grid.close(model.scaled(0.0)(**inputs), own, 1e-5)
  grid.close(adapters.disabled(model)(**inputs), own, 1e-5)
  grid.close(model.scaled(0.5)(**inputs), model.scaled(0.5).merge()(**inputs), 1e-5)
  turned = grid.moved(base.add(grid.make("boft"))).scaled(0.5)  # its change of the weights takes the bias along
  grid.close(turned(**inputs), turned.merge()(**inputs), 1e-5)


def test_every_example_of_a_batch_has_its_own_adapter():
  base, _, _ = grid.wrapped("function")
  ones = [adapters.take(grid.moved(base.add(LORA), seed)) for seed in (1, 2)]
  both, x = adapters.mixed(base, ones), models.tokens(4)
  found = both(x=x, adapter_ids=[1, -1, 0, 1])
  alone = [adapters.put(base, one)(x=x) for one in ones]
  for row, out in enumerate((alone[1], base(x=x), alone[0], alone[1])):
    grid.close(
      {name: value[row] for name, value in found.items()}, {name: value[row] for name, value in out.items()}, 1e-5
    )


def test_under_jit_grad_vmap_and_donation():
  model, _ = adapted()
  trainable, frozen = masks.partition(model.params, model.labels())

  def loss(part, x):
    return grid.scalar(model.forward(masks.combine(part, frozen), {"x": x}))

  xs = jnp.stack([models.tokens(seed=seed) for seed in (1, 2)])
  gradient = jax.jit(jax.grad(loss))
  each = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(trainable, xs)
  grid.close(jax.tree.map(lambda leaf: leaf[1], each), gradient(trainable, xs[1]), 1e-5)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(part, x):
    return jax.tree.map(lambda leaf, change: leaf - 0.1 * change, part, jax.grad(loss)(part, x))

  expected = jax.tree.map(lambda leaf, change: leaf - 0.1 * change, trainable, gradient(trainable, xs[0]))
  grid.close(step(jax.tree.map(jnp.copy, trainable), xs[0]), expected, 1e-5)


def test_flops_and_no_product_of_the_weights_size():
  """An MLP of 8 layers of 128, 64 rows: LoRA's step to full's, and no product as big as a weight."""
  draw = models.Draw(4)
  params = [{"kernel": draw(128, 128)} for _ in range(8)]

  def function(params, x):
    for layer in params:
      x = jnp.tanh(x @ layer["kernel"])
    return x

  model = peftjax.wrap(function, params, {"x": draw(64, 128)})
  x = draw(64, 128)

  def step(model):
    part, frozen = masks.partition(model.params, model.labels())
    return jax.value_and_grad(lambda p: model.forward(masks.combine(p, frozen), {"x": x}).sum()), part

  lora, full = step(model.add(methods.LoRA(rank=1, targets="all-linear"))), step(model.add(methods.Full()))
  assert count_flops(*lora) <= 0.70 * count_flops(*full)
  compiled = [jax.jit(one).lower(part).compile().cost_analysis()["flops"] for one, part in (lora, full)]
  assert compiled[0] <= 0.70 * compiled[1]
  made = [tuple(variable.aval.shape) for equation in jax.make_jaxpr(lora[0])(lora[1]).jaxpr.eqns
          if equation.primitive.name == "dot_general" for variable in equation.outvars]  # fmt: skip
  assert (128, 128) not in made


def test_keys_of_the_users_own_pass_through_and_dropout_is_the_methods_too():
  key = jax.random.key(3)
  net = models.NnxTransformer(nnx.Rngs(0))
  net.train()
  model = peftjax.wrap(net, example_inputs={"x": models.tokens()})
  x = {"x": models.tokens()}
  one, same, other = (model.forward(model.params, x, rng) for rng in (key, key, jax.random.key(4)))
  assert bool((one == same).all()) and not bool((one == other).all())

  def noisy(params, x, key):
    return x @ params["w"] + jax.random.normal(key, (x.shape[0], 1))

  draw = models.Draw()
  own = peftjax.wrap(noisy, {"w": draw(5, 4)}, {"x": draw(3, 5), "key": key})
  y = draw(3, 5)
  np.testing.assert_allclose(own(x=y, key=key), noisy(own.unwrap(), y, key), rtol=1e-6)
  dropping = grid.moved(own.add(methods.LoRA(rank=2, targets=("w",), dropout=0.5)))
  once, again = (dropping.forward(dropping.params, {"x": y, "key": key}, rng) for rng in (None, key))
  assert not bool((once == again).all())


def test_flags_are_part_of_the_program():
  module, variables, inputs = models.linen_vit()
  model = peftjax.wrap(module, variables, {**inputs, "train": False})
  trained = model(**inputs, train=True, rngs={"dropout": jax.random.key(1)})
  expected = module.apply(variables, **inputs, train=True, rngs={"dropout": jax.random.key(1)})
  np.testing.assert_allclose(trained, expected, rtol=1e-4, atol=1e-5)


def test_other_batch_sizes_and_lengths_need_no_other_wrapping():
  model, _ = adapted()
  x = jax.random.randint(jax.random.key(9), (3, 9), 0, models.VOCAB)
  grid.close(model(x=x), model.merge()(x=x), 1e-5)


def test_repr_fits_on_a_screen():
  model, _ = adapted()
  lines = repr(model).split("\n")
  assert len(lines) <= 28 and all(len(line) < 160 for line in lines)
  assert "lora" in lines[0]


MISTAKES = {
  "pattern": (lambda m: m.add(methods.LoRA(targets=("upp",))), "'upp' matches none.*up"),
  "other": (lambda m: m.add(methods.LoRA(targets=("embedd",))), "embed"),
  "head": (
    lambda m: peftjax.wrap(models.function, models.function_params(), {"x": models.tokens()}, head="pro"),
    "proj",
  ),
  "argument": (lambda m: peftjax.wrap(models.function, models.function_params(), {"xs": models.tokens()}), "'xs'.*x"),
  "no array": (lambda m: peftjax.wrap(models.function, {"act": jnp.tanh}, {"x": 1}), "'act' is a function"),
  "number": (lambda m: peftjax.wrap(models.function, {"a": {"heads": 4}}, {"x": 1}), "'a.heads' is int 4"),
  "no inputs": (lambda m: peftjax.wrap(models.function, models.function_params()), "example_inputs"),
  "no params": (lambda m: peftjax.wrap(models.function, example_inputs={"x": 1}), "its parameters"),
  "no model": (lambda m: peftjax.wrap(3, example_inputs={"x": 1}), "got int"),
  "linen": (lambda m: peftjax.wrap(models.LinenViT(), example_inputs={"x": 1}), "its variables"),
  "registered": (lambda m: m.save("nowhere"), "unwrap"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name):
  model, _, _ = grid.wrapped("function")
  act, wanted = MISTAKES[name]
  with pytest.raises(UserError, match=wanted) as error:
    act(model)
  assert "\n" not in str(error.value)


def test_two_leaves_at_fault_are_named():
  """A target that the program uses in a way that no method acts on says which leaf and why."""
  draw = models.Draw()
  params = {"w": draw(4, 4), "positions": draw(6, 4)}
  model = peftjax.wrap(lambda params, x: (x + params["positions"]) @ params["w"], params, {"x": draw(6, 4)})
  with pytest.raises(UserError, match="positions.*add"):
    model.add(methods.LoRA(targets=("positions",)))
