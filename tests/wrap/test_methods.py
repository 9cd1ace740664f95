"""Methods on models of a user's own against the weights that merging makes: outputs and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import peftjax
from peftjax import eva, masks, methods
from peftjax.composite import compose
from peftjax.errors import UserError
from tests.wrap import grid, models


def needs(case: str) -> None:
  """Skips where the library that a case is of is not there."""
  library = {"equinox": "equinox", "haiku": "haiku"}.get(case.partition("_")[0])
  if library:
    pytest.importorskip(library)


@pytest.mark.parametrize("name", grid.METHOD_SETTINGS)
@pytest.mark.parametrize("case", grid.CASES)
def test_acting_equals_the_merged_weights(case, name):
  needs(case)
  model, inputs, _ = grid.wrapped(case)
  grid.check(grid.adapted(model, grid.at_linear(model, name)), inputs)


@pytest.mark.parametrize("case", grid.CASES)
def test_without_methods_it_is_the_users_own_function(case):
  needs(case)
  model, inputs, own = grid.wrapped(case)
  grid.close({"y": model(**inputs)}, {"y": own}, 1e-5)


def test_the_start_of_lora_is_the_base_and_the_bases_leaves_are_the_same_arrays():
  model, inputs, _ = grid.wrapped("function")
  added = model.add(grid.make("lora"))
  before, after = masks.flatten(model.params), masks.flatten(added.params)
  assert all(after[path] is leaf for path, leaf in before.items())
  grid.close(added(**inputs), model(**inputs), 1e-6)


@pytest.mark.parametrize("targets", [("conv",), ("embed",)])
def test_lora_on_a_convolution_and_on_both_uses_of_a_tied_table(targets):
  model, inputs, _ = grid.wrapped("function")
  tying = targets == ("embed",)
  added = grid.moved(model.add(methods.LoRA(rank=3, targets=targets, ensure_weight_tying=tying)))
  assert [site.kind for site in added.bound[0].sites] == (["embedding", "unembedding"] if tying else ["conv"])
  grid.compare(added, inputs)


def test_trained_rows_of_a_tied_table():
  model, inputs, _ = grid.wrapped("function")
  grid.compare(grid.moved(model.add(methods.TrainableTokens(token_indices=(1, 5, 7), targets=("embed",)))), inputs)


def test_a_tied_table_of_which_one_use_is_acted_on_does_not_merge():
  model, _, _ = grid.wrapped("function")
  with pytest.raises(UserError, match="embed is looked up and is the output layer too"):
    model.add(methods.LoRA(rank=2, targets=("embed",))).merge()


def test_experts_have_a_matrix_each_and_layers_of_a_scan_too():
  model, _, _ = grid.wrapped("function")
  sites = {site.places[0].leaf: site for site in model.sites}
  assert sites["experts.0"].stack == (models.EXPERTS,)
  assert sites["experts.0"].shape == (models.HIDDEN, models.INNER)
  assert sites["mlp.up.w"].names == ("mlp.0.up.w", "mlp.1.up.w", "mlp.2.up.w")
  assert sites["mlp.up.w"].has_bias and not sites["proj"].has_bias
  assert sites["blocks.1.attn.q.kernel"].shape == (models.HIDDEN, models.HEADS * models.SIZE)
  flat = masks.flatten(model.add(methods.LoRA(rank=3, targets=("experts.*", "up"))).params)
  assert flat["experts.0_adapter.lora_a"].shape == (models.EXPERTS, models.HIDDEN, 3)
  assert flat["mlp.up.lora_a"].shape == (models.LAYERS, models.HIDDEN, 3)


_NAMED_PLACES = [
  name for name, method in methods.METHODS.items() if method.kinds and not set(method.kinds) & {"linear", "embedding"}
]


@pytest.mark.parametrize("name", _NAMED_PLACES)
def test_methods_that_need_named_places_say_so(name):
  model, _, _ = grid.wrapped("function")
  with pytest.raises(UserError) as error:
    model.add(methods.METHODS[name]())
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(("method", "trained"), [
  (methods.BitFit(), {"blocks.0.ln.bias", "blocks.1.ln.bias", "mlp.up.b", "conv.bias"}),
  (methods.LayerNormTuning(), {f"blocks.{i}.ln.{leaf}" for i in (0, 1) for leaf in ("scale", "bias")}),
  (methods.Patterns(train=("proj", "up")), {"proj", "mlp.up.w", "mlp.up.b"}),
])  # fmt: skip
def test_masks(method, trained):
  model, _, _ = grid.wrapped("function")
  groups = masks.flatten(model.add(method).labels())
  assert {path for path, group in groups.items() if group != masks.FROZEN} == trained


def test_layers_of_a_scan_that_would_be_treated_differently_are_one_line():
  model, _, _ = grid.wrapped("function")
  with pytest.raises(UserError, match="treat them alike"):
    model.add(methods.LoRA(rank=2, targets=("up",), layers=(1,)))


def test_a_leaf_that_the_program_changes_first_is_acted_on_as_a_whole():
  draw = models.Draw(7)
  params = {"w": draw(12, 8), "v": draw(8, 8), "u": draw(3, 8, 5)}

  def function(params, x):
    h = x @ (params["w"] / jnp.linalg.norm(params["w"], axis=0))
    h = jax.lax.fori_loop(0, 2, lambda _, h: jnp.tanh(h @ params["v"]) @ params["v"].T, h)
    return jax.lax.cond(h.sum() > 0, lambda h: h @ params["u"][0], lambda h: h @ params["u"][1], h)

  model = peftjax.wrap(function, params, {"x": draw(4, 12)})
  notes = {row.path: row.note for row in model.module.found.rows}
  assert "in weight space" in notes["w"] and "in weight space" in notes["v"]
  added, x = grid.moved(model.add(methods.LoRA(rank=2, targets=("w", "v")))), draw(4, 12)
  grid.close({"y": added(x=x)}, {"y": added.merge()(x=x)}, 1e-5)
  with pytest.raises(UserError, match="no change of the weights"):
    model.add(_Additive(targets=("w",)))


class _Additive(methods.LoRA):
  """A LoRA without a delta."""

  delta = methods.Method.delta


def test_a_custom_derivative_is_kept():
  @jax.custom_vjp
  def product(x, w):
    return x @ w

  product.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, 2.0 * saved[0].T @ g))
  draw = models.Draw(8)
  params, x = {"w": draw(5, 4)}, draw(3, 5)
  model = peftjax.wrap(lambda params, x: product(x, params["w"]), params, {"x": x})
  assert "derivatives of its own" in model.module.found.rows[0].note
  added = grid.moved(model.add(methods.LoRA(rank=2, targets=("w",))))
  grid.compare(added, {"x": x})


def test_a_bias_that_is_added_to_more_than_the_product_stays_as_it_is():
  draw = models.Draw(9)
  params, x = {"up": {"kernel": draw(6, 6), "bias": draw(6)}}, draw(4, 6)
  model = peftjax.wrap(lambda params, x: x + x @ params["up"]["kernel"] + params["up"]["bias"], params, {"x": x})
  grid.compare(grid.adapted(model, methods.IA3(targets=("up",), feedforward=())), {"x": x})


def test_a_stack_that_is_named_without_its_layers_gets_near_misses():
  model, _, _ = grid.wrapped("function")
  with pytest.raises(UserError, match="'mlp.up.w' matches none of 22 modules; did you mean 'up.w'"):
    model.add(methods.LoRA(targets=("mlp.up.w",)))


def test_two_methods_of_which_one_changes_the_weight_follow_each_other():
  draw = models.Draw(9)
  params, ids = {"table": draw(7, 6)}, models.tokens() % 7
  model = peftjax.wrap(lambda params, ids: params["table"][ids] @ params["table"].T, params, {"ids": ids})
  tokens = methods.TrainableTokens(token_indices=(2, 3), targets=("table",))
  added = grid.moved(model.add([tokens, methods.LoHa(rank=2, targets=("table",))]))
  grid.close(added(ids=ids), added.merge()(ids=ids), 1e-5)


def test_what_needs_this_packages_modules_says_so():
  model, _, _ = grid.wrapped("function")
  lora = methods.LoRA(rank=2, targets=("proj",))
  for act, wanted in (
    (lambda: model.quantized("int8"), "not quantised here"),
    (lambda: eva.add(model, lora, []), "eva watches the modules of this package's families"),
    (lambda: compose({"one": model}), "wrap one function of all components"),
    (lambda: model.add(methods.RoAd(targets=("up",), group_size=2)), "pairs of outputs, and mlp.0.up.w has 7"),
  ):
    with pytest.raises(UserError, match=wanted) as error:
      act()
    assert "\n" not in str(error.value)
