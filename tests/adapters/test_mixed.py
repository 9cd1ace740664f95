"""Batches in which every example names its adapter: each row as that adapter alone, gradients to it alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import adapters, masks, methods
from peftjax.adapters import abilities
from peftjax.errors import UserError
from peftjax.loading import from_config, initialise
from peftjax.models.layers import Runtime
from tests.adapters import cases
from tests.methods import tiny
from tests.models import decoder_models

SHARES = [name for name in cases.NAMES if abilities.can(cases.method(name), "mixed_batch") is True]
IDS = np.array([1, -1, 0, 1])


def some(names):
  """Each takes a second or more to compile; one method of each kind is enough for a quick run."""
  return [name if name in cases.QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def noisy(name, seed):
  """An adapter, its head too where it has one."""
  model = cases.fresh(name)
  return tiny.replaced(model, tiny.noise_on(tiny.trainable(model), seed))


@functools.cache
def stacked(name):
  models = [noisy(name, 1), noisy(name, 2)]
  return models, adapters.mixed(cases.base(name), [adapters.take(model) for model in models])


def logits_of(model, inputs, ids=None):
  run = jax.jit(lambda params, ids: model.forward(params, inputs, None, ids)["logits"])
  return run(model.params, ids)


@pytest.mark.parametrize("name", some(SHARES))
def test_every_row_is_what_its_adapter_gives_alone(name):
  (models, model), inputs = stacked(name), cases.batch(name)
  run = jax.jit(lambda params: models[0].forward(params, inputs)["logits"])
  each = [run(one.params) for one in models]
  logits = logits_of(model, inputs, jnp.asarray(IDS))
  for row, number in enumerate(IDS):
    cases.close(logits[row], (cases.base_logits(name) if number < 0 else each[number])[row])
  assert np.abs(each[0] - each[1]).max() > 1e-2


def loss(logits):
  return jnp.sum(jnp.sin(logits) * jnp.arange(1.0, 1.0 + logits.size).reshape(logits.shape) / logits.size)


@pytest.mark.parametrize("name", ["lora", "ia3", "loha", *some(["houlsby"]), *some(["reft", "unipelt", "layernorm"])])
def test_gradients_reach_the_adapters_that_are_named_and_are_theirs_alone(name):
  (models, model), inputs, ids = stacked(name), cases.batch(name), jnp.asarray(IDS)

  def whole(trainable, frozen, ids):
    return loss(model.forward(masks.combine(trainable, frozen), inputs, None, ids)["logits"])

  def single(trainable, frozen, number):
    logits = models[0].forward(masks.combine(trainable, frozen), inputs)["logits"]
    return loss(jnp.where((ids == number).reshape(-1, *[1] * (logits.ndim - 1)), logits, 0.0))

  step, of_one = jax.jit(jax.grad(whole)), jax.jit(jax.grad(single))
  parts = masks.partition(model.params, model.labels())
  grads = masks.flatten(step(*parts, ids))
  of_first = masks.flatten(step(*parts, jnp.asarray([0, -1, 0, 0])))
  seen = set()
  for number, one in enumerate(models):
    for path, wanted in masks.flatten(of_one(*masks.partition(one.params, one.labels()), number)).items():
      module, _, leaf = path.rpartition(".")
      place = path if path in grads else f"{module}.own_{leaf}"
      axis = len(masks.stack_shape(path, model.stacks))
      cases.close(jnp.take(grads[place], number, axis=axis), wanted, 2e-5)
      assert number == 0 or not np.any(jnp.take(of_first[place], 1, axis=axis))
      seen.add(place)
  assert seen == set(grads)


@pytest.mark.parametrize("name", [name for name in cases.NAMES if name not in SHARES])
def test_what_cannot_share_a_batch_says_why(name):
  with pytest.raises(UserError) as caught:
    adapters.mixed(cases.base(name), [adapters.take(noisy(name, 1))])
  assert str(caught.value) == abilities.can(cases.method(name), "mixed_batch")


def loras():
  """Ranks, scales, modules and a bias differ."""
  toy = cases.toy()
  return [
    cases.with_lora(toy, 1, targets=("query",), rank=3, alpha=7.0),
    cases.with_lora(toy, 2, targets=("query", "down"), rank=5, alpha=2.0, lora_bias=True),
    cases.with_lora(toy, 3, targets=("up",), rank=2, alpha=3.0, init="pissa"),
  ]


def test_loras_of_any_rank_scale_and_modules_share_a_batch_with_other_methods():
  models = [*loras(), cases.adapted("ia3")]
  model = adapters.mixed(cases.toy(), [adapters.take(one) for one in models])
  assert [one.method.name for one in model.bound] == ["lora", "ia3"]
  assert model.params["layer"]["query"]["lora_a"].shape == (2, 3, 20, 5)
  ids = np.array([3, 0, 1, 2])
  found = model(**cases.batch("lora"), adapter_ids=ids)["logits"]
  for row, number in enumerate(ids):
    cases.close(found[row], models[number](**cases.batch("lora"))["logits"][row])


def test_a_mixed_model_comes_apart_again_stacked_or_unrolled():
  models, model = stacked("bitfit")
  for whole in (model, model.unrolled()):
    for one, adapter in zip(models, adapters.split(whole), strict=True):
      again = adapters.put(cases.encoder() if whole is model else cases.encoder().unrolled(), adapter)
      wanted = masks.flatten((one if whole is model else one.unrolled()).params)
      for path, leaf in masks.flatten(again.params).items():
        np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)
      assert set(adapters.take(again).along) == set(adapter.along)
  both = [adapters.take(models[0]), adapters.take(models[1].unrolled())]
  assert adapters.mixed(cases.encoder(), both).adapter_paths() == model.unrolled().adapter_paths()
  assert len(model.unrolled().bound[0].sites) > len(model.bound[0].sites) > 0
  for one, adapter in zip(loras(), adapters.split(adapters.mixed(cases.toy(), list(map(adapters.take, loras()))))):
    found, wanted = adapters.deltas(adapters.put(cases.toy(), adapter)), adapters.deltas(one)
    for path, change in found.items():
      cases.close(change, wanted.get(path, jnp.zeros_like(change)))
  with pytest.raises(UserError, match="does not hold several"):
    adapters.split(cases.toy())


def test_ids_and_adapters_that_do_not_fit_are_named():
  model = stacked("lora")[1]
  batch = cases.batch("lora")
  with pytest.raises(UserError, match="adapter_ids: -1 to 2; the model holds 2 adapters, 0 to 1"):
    model(**batch, adapter_ids=[2, -1, 0, 0])
  with pytest.raises(UserError, match="expected one integer for each example, got float"):
    model(**batch, adapter_ids=[0.5])
  with pytest.raises(UserError, match="2 entries, and layer.0.query gets 4 rows"):
    model(**batch, adapter_ids=[0, 1])
  with pytest.raises(UserError, match="say by adapter_ids"):
    model(**batch)
  with pytest.raises(UserError, match="does not hold several"):
    cases.toy()(**batch, adapter_ids=[0, 0, 0, 0])
  with pytest.raises(UserError, match="several adapters"):
    model.merge()
  pair = [adapters.take(cases.toy().add(cases.method("vera", rank=rank))) for rank in (3, 4)]
  with pytest.raises(UserError, match="with different settings"):
    adapters.mixed(cases.toy(), pair)
  moe = initialise(
    from_config({**decoder_models.LLAMA, "model_type": "mixtral", "num_local_experts": 4}), jax.random.key(0)
  )
  with pytest.raises(UserError, match="is an expert"):
    adapters.mixed(moe, [adapters.take(moe.add(methods.LoRA(targets=("w1",))))])


def test_a_mixed_batch_costs_what_one_adapter_does():
  base = tiny.encoder(hidden_size=96, intermediate_size=384, max_position_embeddings=64).unrolled()
  one = base.add(methods.LoRA(rank=4, targets="all-linear"), jax.random.key(0))
  many = adapters.mixed(base, [adapters.take(one)] * 4)
  inputs, ids = tiny.batch(size=8, length=32), jnp.arange(8) % 4

  def flops(model, ids):
    run = jax.jit(lambda params, inputs, ids: model.forward(params, inputs, None, ids)["logits"])
    return run.lower(model.params, inputs, ids).compile().cost_analysis()["flops"]

  assert flops(many, ids) <= 1.1 * flops(one, None)


@pytest.mark.parametrize("name", ["prefix", *some(["prompt"])])
def test_a_decoder_under_remat_with_rows_that_have_none(name):
  base = decoder_models.random_model(decoder_models.LLAMA, runtime=Runtime(remat="full"))
  settings = {"prefix": {"reparametrize": False, "encoder_hidden_size": 0}, "prompt": {"init": "random"}}[name]
  models = [decoder_models.with_method(base, cases.method(name, **settings), seed) for seed in (1, 2)]
  model = adapters.mixed(base, [adapters.take(one) for one in models])
  ids = decoder_models.token_ids(4)
  mask = np.ones_like(ids)
  mask[1, 6:] = mask[2, 4:] = 0
  inputs = {"input_ids": jnp.asarray(ids), "attention_mask": jnp.asarray(mask)}
  found = logits_of(model, inputs, jnp.asarray(IDS))
  run = jax.jit(lambda params: models[0].forward(params, inputs)["logits"])
  each = [run(one.params) for one in models]
  for row, number in enumerate(IDS):
    wanted = logits_of(base, inputs) if number < 0 else each[number]
    cases.close(found[row][mask[row] > 0], wanted[row][mask[row] > 0])


def test_dropout_draws_for_every_example():
  model = adapters.mixed(cases.toy(), [adapters.take(cases.with_lora(cases.toy(), 1, targets=("query",), dropout=0.5))])
  inputs = {"x": jnp.broadcast_to(cases.batch("lora")["x"][:1], cases.batch("lora")["x"].shape)}
  run = jax.jit(lambda key: model.forward(model.params, inputs, key, jnp.zeros(4, jnp.int32))["logits"])
  found = run(jax.random.key(0))
  assert not np.allclose(found[0], found[1]) and np.array_equal(found, run(jax.random.key(0)))
  assert not np.allclose(found, run(jax.random.key(1)))


@pytest.mark.parametrize("name", ["lora", "dora", "hira"])
def test_adapters_that_act_at_once_are_the_sum_of_what_they_change(name):
  pair = [adapters.take(noisy(name, 1)), adapters.take(noisy(name, 2))]
  model = adapters.summed(cases.toy(), pair, (0.7, -0.4))
  each = [adapters.deltas(adapters.put(cases.toy(), one)) for one in pair]
  flat = masks.flatten(cases.toy().params)
  for path, change in adapters.deltas(model).items():
    cases.close(change, 0.7 * each[0][path] - 0.4 * each[1][path])
    flat[path] = flat[path] + change
  wanted = cases.toy().with_params(masks.unflatten(flat))(**cases.batch(name))["logits"]
  cases.close(model(**cases.batch(name))["logits"], wanted)


def test_what_has_no_sum_says_so():
  base = cases.encoder()
  with pytest.raises(UserError, match="prompt cannot be summed"):
    adapters.summed(base, [adapters.take(noisy("prompt", 1))] * 2)
  with pytest.raises(UserError, match="say by `along` whose"):
    adapters.summed(base, [adapters.take(noisy("houlsby", seed)) for seed in (1, 2)])
  model = adapters.summed(base, [adapters.take(noisy("houlsby", seed)) for seed in (1, 2)], along=1)
  np.testing.assert_array_equal(
    model.params["classifier"]["kernel"], noisy("houlsby", 2).params["classifier"]["kernel"]
  )
