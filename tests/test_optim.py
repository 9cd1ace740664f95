"""Groups, schedules, weight decay and the bytes of the optimizer's state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from peftjax import config as config_lib
from peftjax import masks, optim
from peftjax.errors import UserError


def optim_config(**fields):
  config = config_lib.default().optim
  config.update({"learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0, "clip_norm": 0.0, **fields})
  return config


def tree(seed=0):
  key = jax.random.PRNGKey(seed)
  shapes = {"layer.query.kernel": (3, 5, 7), "layer.query.bias": (3, 7), "norm.scale": (5,), "head.kernel": (7, 2)}
  keys = jax.random.split(key, len(shapes))
  return masks.unflatten({name: jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items())})


STACKS = {"layer": 3}


def labels(params):
  return masks.label(params, lambda name, leaf: "head" if name.startswith("head") else "body", STACKS)


def run(transform, params, grads, steps=1):
  state = transform.init(params)
  for _ in range(steps):
    updates, state = transform.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def test_schedule_values():
  linear = optim.make_schedule("linear", 10, 0.2)
  values = [float(linear(jnp.int32(step))) for step in range(10)]
  np.testing.assert_allclose(values, [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8], rtol=1e-6)
  cosine = optim.make_schedule("cosine", 8)
  np.testing.assert_allclose([cosine(jnp.int32(0)), cosine(jnp.int32(4)), cosine(jnp.int32(8))], [1, 0.5, 0], atol=1e-7)
  constant = optim.make_schedule("constant", 10, 0.3)
  np.testing.assert_allclose([constant(jnp.int32(s)) for s in (0, 1, 2, 3, 9)], [1 / 3, 2 / 3, 1, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_every_update_of_a_schedule_moves(name):
  schedule = optim.make_schedule(name, 7, 0.3)
  assert all(0 < float(schedule(jnp.int32(step))) <= 1 for step in range(7))


@pytest.mark.parametrize("name", optim.SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.5, 0.99])
def test_schedules_of_few_updates(name, steps, warmup):
  """Also where all updates are warming up: every one moves, the rate is never above its peak, and rises first."""
  schedule = optim.make_schedule(name, steps, warmup)
  shares = [float(schedule(jnp.int32(step))) for step in range(steps)]
  assert all(0 < share <= 1 for share in shares)
  rising = round(warmup * steps)
  np.testing.assert_allclose(shares[:rising], [(step + 1) / rising for step in range(rising)], rtol=1e-6)
  assert shares[min(rising, steps - 1)] == 1.0


def test_no_clipping_is_no_clipping():
  params = tree()
  grads = jax.tree.map(lambda leaf: 1e3 * jnp.ones_like(leaf), params)
  moved = {}
  for norm in (0.0, 1e9):
    transform = optim.make_optimizer(optim_config(name="sgd", clip_norm=norm), labels(params), 10)
    moved[norm], _ = run(transform, params, grads)
  jax.tree.map(np.testing.assert_array_equal, moved[0.0], moved[1e9])


def test_galore_projects_something():
  params = {"dense": {"kernel": jnp.ones((6, 9)), "bias": jnp.ones(9)}, "layer": {"kernel": jnp.ones((2, 4, 5))}}
  optim.check_projects(optim_config(name="galore", galore_rank=5), params, {"layer": 2})
  optim.check_projects(optim_config(name="adamw", galore_rank=500), params, {"layer": 2})
  with pytest.raises(UserError, match=r"optim\.galore_rank=6: no kernel that trains .*; choose at most 5"):
    optim.check_projects(optim_config(name="galore", galore_rank=6), params, {"layer": 2})
  with pytest.raises(UserError, match="choose another optimizer"):
    optim.check_projects(optim_config(name="galore"), {"dense": {"bias": jnp.ones(9)}}, {})


def test_groups_have_their_own_rates_and_decay():
  params, grads = tree(), tree(1)
  config = optim_config(name="sgd", weight_decay=0.5)
  config.groups = {"head": {"learning_rate": 1e-1, "weight_decay": 0.0}}
  new, state = run(optim.make_optimizer(config, labels(params), 10, stacks=STACKS), params, grads)
  flat, flat_grads, flat_new = masks.flatten(params), masks.flatten(grads), masks.flatten(new)
  for name, value in flat.items():
    rate = 1e-1 if name.startswith("head") else 1e-2
    decay = 0.5 if name == "layer.query.kernel" else 0.0
    np.testing.assert_allclose(flat_new[name], value - rate * (flat_grads[name] + decay * value), rtol=1e-5, atol=1e-6)
  rates = optim.learning_rates(state)
  assert set(rates) == {"head", "body"}
  np.testing.assert_allclose([rates["head"], rates["body"]], [1e-1, 1e-2], rtol=1e-6)


def test_the_user_wins_over_the_method():
  groups = {"a", "b", "c"}
  config = optim_config(groups={"b": {"learning_rate": 3e-3}, "c": {"learning_rate_multiplier": 0.5}})
  method = {"b": {"learning_rate_multiplier": 16.0}, "a": {"learning_rate_multiplier": 16.0, "weight_decay": 0.0}}
  found = optim.group_settings(config, groups, method)
  assert found["a"].learning_rate == pytest.approx(0.16) and found["a"].weight_decay == 0.0
  assert found["b"].learning_rate == pytest.approx(3e-3)
  assert found["c"].learning_rate == pytest.approx(5e-3) and found["c"].weight_decay == config.weight_decay


def test_the_method_gives_the_default_rate():
  config = optim_config(learning_rate=0.0)
  assert optim.group_settings(config, {"a"}, learning_rate=7e-4)["a"].learning_rate == 7e-4
  with pytest.raises(UserError, match="expected a positive number"):
    optim.group_settings(config, {"a"})


def test_clipping_is_by_the_norm_of_all_trainable_leaves():
  params, grads = tree(), tree(1)
  config = optim_config(name="sgd", weight_decay=0.0, clip_norm=0.25, learning_rate=1.0)
  new, _ = run(optim.make_optimizer(config, labels(params), 10), params, grads)
  moved = jax.tree.map(lambda a, b: a - b, params, new)
  np.testing.assert_allclose(optax.tree.norm(moved), 0.25, rtol=1e-5)


def test_decay_acts_on_matrices():
  shape = jax.ShapeDtypeStruct
  assert optim.decays("a.kernel", shape((3, 4), jnp.float32))
  assert not optim.decays("a.bias", shape((4,), jnp.float32))
  assert not optim.decays("layer.a.bias", shape((3, 4), jnp.float32), {"layer": 3})
  assert not optim.decays("layer.a.gate", shape((3, 4), jnp.float32), {"layer": 3})
  assert not optim.decays("a.LayerNorm.kernel", shape((3, 4), jnp.float32))
  assert optim.decays("layer.a.kernel", shape((3, 4, 5), jnp.float32), {"layer": 3})
  experts = {"layer": 3, "layer.experts": 4}
  assert not optim.decays("layer.experts.up.bias", shape((3, 4, 5), jnp.float32), experts)
  assert optim.decays("layer.experts.up.kernel", shape((3, 4, 5, 6), jnp.float32), experts)


@pytest.mark.parametrize(("name", "copies"), [("adamw", 2), ("lion", 1), ("sgd", 0)])
def test_state_bytes_are_those_of_the_trainable_leaves(name, copies):
  params = tree()
  state = optim.make_optimizer(optim_config(name=name), labels(params), 10).init(params)
  assert optim.optimizer_bytes(state) == copies * masks.count(params).bytes


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "sgd"])
def test_a_stack_trains_as_its_layers_do(name):
  stacked = {"layer": {"kernel": jax.random.normal(jax.random.PRNGKey(0), (3, 130, 140))}}
  grads = jax.tree.map(jnp.sin, stacked)

  def split(tree):
    return {"layer": {str(index): {"kernel": tree["layer"]["kernel"][index]} for index in range(3)}}

  config = optim_config(name=name, weight_decay=0.1)
  one, _ = run(optim.make_optimizer(config, {"layer": {"kernel": "g"}}, 9, stacks=STACKS), stacked, grads, 3)
  groups = jax.tree.map(lambda _: "g", split(stacked))
  many, _ = run(optim.make_optimizer(config, groups, 9), split(stacked), split(grads), 3)
  for index in range(3):
    np.testing.assert_allclose(one["layer"]["kernel"][index], many["layer"][str(index)]["kernel"], rtol=1e-5, atol=1e-7)


def test_sweep_over_rates_is_a_vmap_over_states():
  params, grads = tree(), tree(1)
  config = optim_config(weight_decay=0.1)
  transform = optim.make_optimizer(config, labels(params), 10)
  peaks = jnp.array([1e-3, 3e-2])
  state = jax.vmap(lambda peak: optim.with_peaks(transform.init(params), {"head": peak, "body": peak}))(peaks)
  update = jax.vmap(lambda state: transform.update(grads, state, params)[0])
  swept = update(state)
  for index, peak in enumerate(peaks):
    config.learning_rate = float(peak)
    alone, _ = run(optim.make_optimizer(config, labels(params), 10), params, grads)
    for name, update in masks.flatten(swept).items():
      expected = masks.flatten(alone)[name] - masks.flatten(params)[name]
      np.testing.assert_allclose(update[index], expected, rtol=1e-3, atol=1e-6)
  with pytest.raises(KeyError):
    optim.with_peaks(transform.init(params), {"tail": 1.0})


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"name": "adamm"}, "did you mean 'adamw'"),
    ({"schedule": "cosin"}, "did you mean 'cosine'"),
    ({"warmup": 1.5}, r"optim\.warmup=1\.5: expected a number from 0 to below 1"),
    ({"clip_norm": -1.0}, r"optim\.clip_norm=-1\.0: expected a finite number of at least 0"),
    ({"b2": 1.0}, r"optim\.b2=1\.0"),
    ({"eps": 0.0}, r"optim\.eps=0\.0"),
    ({"weight_decay": float("nan")}, r"optim\.weight_decay=nan"),
    ({"learning_rate": 1e300}, "1e\\+300 for the group"),
    ({"learning_rate": 1e-60}, "1e-60 for the group"),
    ({"groups": {"head": {"warmup": 1.0}}}, r"optim\.groups\.head\.warmup=1\.0"),
    ({"groups": {"head": {"schedule": "cosinus"}}}, "did you mean 'cosine'"),
    ({"groups": {"head": {"weight_decay": "none"}}}, r"optim\.groups\.head\.weight_decay='none'"),
    ({"groups": {"head": {"learning_rate_multiplier": 0.0}}}, "expected a finite number above 0"),
    ({"groups": {"head": 3}}, r"optim\.groups\.head=3: expected fields"),
    ({"groups": {"hed": {"learning_rate": 1.0}}}, "did you mean 'head'"),
    ({"groups": {"head": {"learning_rat": 1.0}}}, "did you mean 'learning_rate'"),
    ({"groups": {"head": {"learning_rate": -1.0}}}, "expected a finite number of at least 0"),
    ({"groups": {"head": {"learning_rate": 0.0}}}, "expected a positive number"),
  ],
)
def test_mistakes_are_named(fields, message):
  with pytest.raises(UserError, match=message):
    optim.make_optimizer(optim_config(**fields), labels(tree()), 10)


def test_a_stack_within_a_stack_is_treated_leaf_by_leaf():
  params = {"layer": {"experts": {"kernel": jax.random.normal(jax.random.PRNGKey(0), (2, 3, 4, 5))}}}
  scaled = optim.per_layer(optax.scale_by_param_block_rms(), {"layer": 2, "layer.experts": 3})
  ones = jax.tree.map(jnp.ones_like, params)
  updates, _ = scaled.update(ones, scaled.init(params), params)
  kernel = params["layer"]["experts"]["kernel"]
  expected = jnp.sqrt(jnp.mean(kernel**2, axis=(2, 3), keepdims=True)) * jnp.ones_like(kernel)
  np.testing.assert_allclose(updates["layer"]["experts"]["kernel"], expected, rtol=1e-5)
