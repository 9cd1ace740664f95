"""One update: what it changes, what it costs, and that micro-batches and vmaps change nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from peftjax import config as config_lib
from peftjax import masks, optim, tasks
from peftjax.train import checks, flops
from peftjax.train.fingerprint import fingerprints
from peftjax.train.state import init_state
from peftjax.train.step import make_loss, make_train_step


def close(a, b, rtol=1e-5, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_give_the_update_of_the_whole_batch(tiny, parts):
  """Also where rows have uneven weights, so a mean of the micro-batches' means would be another number."""
  batch = tiny.batch()
  whole, some = tiny(forward=tiny.without_dropout), tiny(forward=tiny.without_dropout, accumulate=parts)
  state, metrics = jax.jit(whole.step)(whole.state, whole.frozen, batch)
  split_state, split_metrics = jax.jit(some.step)(some.state, some.frozen, batch)
  close(state.trainable, split_state.trainable)
  close(metrics, split_metrics)


def test_loss_is_the_weighted_mean(tiny):
  run, batch = tiny(forward=tiny.without_dropout), tiny.batch()
  _, metrics = jax.jit(run.step)(run.state, run.frozen, batch)
  logits = run.forward(tiny.params(), batch)["logits"]
  losses = -jax.nn.log_softmax(logits)[np.arange(8), batch["labels"]]
  np.testing.assert_allclose(metrics["loss"], np.average(losses, weights=batch["weight"]), rtol=1e-5)


def test_a_filler_row_changes_nothing(tiny):
  run, batch = tiny(forward=tiny.without_dropout), tiny.batch()
  batch["weight"][5] = 0
  shorter = {name: np.delete(array, 5, axis=0) for name, array in batch.items()}
  full, _ = jax.jit(run.step)(run.state, run.frozen, batch)
  short, _ = jax.jit(run.step)(run.state, run.frozen, shorter)
  close(full.trainable, short.trainable)


def test_dropout_differs_by_step_and_repeats_by_seed(tiny):
  run, batch = tiny(), tiny.batch()
  step = jax.jit(run.step)
  _, first = step(run.state, run.frozen, batch)
  _, again = step(run.state, run.frozen, batch)
  _, later = step(run.state._replace(step=run.state.step + 1), run.frozen, batch)
  assert first["loss"] == again["loss"] != later["loss"]


def test_norms_and_rates_are_reported(tiny):
  run, batch = tiny(groups={"head": {"learning_rate": 0.5}}, schedule="constant"), tiny.batch()
  _, metrics = jax.jit(run.step)(run.state, run.frozen, batch)
  assert set(metrics["leaf_norms"]) == set(masks.flatten(run.state.trainable))
  total = np.sqrt(sum(float(norm) ** 2 for norm in metrics["leaf_norms"].values()))
  np.testing.assert_allclose(metrics["grad_norm"], total, rtol=1e-5)
  close(metrics["learning_rate"], {"adapter": 1e-2, "head": 0.5})


def test_an_update_that_is_not_finite_is_left_out(tiny):
  run, batch = tiny(), tiny.batch()
  batch["weight"][0] = np.nan
  state, metrics = jax.jit(run.step)(run.state, run.frozen, batch)
  assert not metrics["finite"] and int(state.step) == 1
  jax.tree.map(np.testing.assert_array_equal, state.trainable, run.state.trainable)
  jax.tree.map(np.testing.assert_array_equal, state.opt_state, run.state.opt_state)


def test_a_batch_of_filler_rows_is_harmless(tiny):
  run, batch = tiny(weight_decay=0.0), tiny.batch()
  batch["weight"][:] = 0
  state, metrics = jax.jit(run.step)(run.state, run.frozen, batch)
  assert metrics["loss"] == 0 and metrics["finite"]
  jax.tree.map(np.testing.assert_array_equal, state.trainable, run.state.trainable)


def test_steps_of_many_states_are_one_vmapped_step(tiny):
  run = tiny()
  batches = [tiny.batch(seed=seed) for seed in range(3)]
  states = []
  for seed in range(3):
    trainable = masks.partition(tiny.params(seed), run.labels)[0]
    state = init_state(trainable, run.optimizer, seed)
    peak = 10.0 ** -(seed + 1)
    states.append(state._replace(opt_state=optim.with_peaks(state.opt_state, {"adapter": peak, "head": peak})))
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
  stacked_batch = jax.tree.map(lambda *arrays: np.stack(arrays), *batches)
  swept, swept_metrics = jax.jit(jax.vmap(run.step, in_axes=(0, None, 0)))(stacked, run.frozen, stacked_batch)
  for index, (state, batch) in enumerate(zip(states, batches)):
    alone, metrics = jax.jit(run.step)(state, run.frozen, batch)
    close(jax.tree.map(lambda leaf, i=index: leaf[i], swept.trainable), alone.trainable)
    np.testing.assert_allclose(swept_metrics["loss"][index], metrics["loss"], rtol=1e-5)


def mlp(depth=6, hidden=64, rank=4):
  keys = iter(jax.random.split(jax.random.PRNGKey(0), 3 * depth))
  params = {
    str(i): {
      "kernel": jax.random.normal(next(keys), (hidden, hidden)) / hidden**0.5,
      "lora_a": jax.random.normal(next(keys), (hidden, rank)),
      "lora_b": jax.random.normal(next(keys), (rank, hidden)),
    }
    for i in range(depth)
  }

  def forward(params, inputs, rng=None):
    x = jax.nn.one_hot(inputs["input_ids"], hidden)
    for leaves in params.values():
      x = jnp.tanh(x @ leaves["kernel"] + (x @ leaves["lora_a"]) @ leaves["lora_b"])
    return {"logits": x.mean(1)[:, :3]}

  return params, forward


@pytest.mark.parametrize("accumulate", [1, 2])
def test_frozen_weight_gradients_are_not_computed(tiny, accumulate):
  """With the norm of the gradient logged, clipping on, and micro-batches."""
  params, forward = mlp()
  batch = tiny.batch(rows=8, length=32)
  cost = {}
  for name, mask in {"full": masks.full, "lora": lambda name, _: "a" if "lora" in name else masks.FROZEN}.items():
    labels = masks.label(params, mask)
    trainable, frozen = masks.partition(params, labels)
    config = config_lib.default().optim
    config.learning_rate = 1e-3
    assert config.clip_norm > 0
    optimizer = optim.make_optimizer(config, labels, 10)
    step = make_train_step(make_loss(forward, tasks.make("text_classification", "abc")), optimizer, accumulate)
    state = init_state(trainable, optimizer, 0)
    compiled = jax.jit(step, donate_argnums=0).lower(state, frozen, batch).compile()
    cost[name] = compiled.cost_analysis()["flops"], flops.count_flops(step, state, frozen, batch)
    assert optim.optimizer_bytes(state.opt_state) == 2 * masks.count(trainable).bytes
  assert cost["lora"][0] <= 0.75 * cost["full"][0]
  assert cost["lora"][1] <= 0.75 * cost["full"][1]


def test_flops_count_a_scan_as_often_as_it_runs():
  w, x = jnp.ones((6, 16, 16)), jnp.ones((4, 16))

  def scanned(w, x):
    return jax.lax.scan(lambda h, one: (jnp.tanh(h @ one), None), x, w)[0].sum()

  def unrolled(w, x):
    for one in w:
      x = jnp.tanh(x @ one)
    return x.sum()

  expected = 2 * 4 * 16 * 16 * (6 + 5 + 6)  # forward, back through all inputs but the first, weights
  gradient = [flops.count_flops(jax.grad(function), w, x) for function in (scanned, unrolled)]
  assert gradient[1] == expected
  assert expected <= gradient[0] <= expected + 2 * 4 * 16 * 16


def test_flops_of_a_convolution_and_of_what_nobody_reads():
  kernel, image = jnp.ones((3, 3, 5, 7)), jnp.ones((2, 8, 8, 5))

  def convolve(kernel, image):
    image @ jnp.ones((5, 100))
    return jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

  assert flops.count_flops(convolve, kernel, image) == 2 * (2 * 8 * 8 * 7) * (3 * 3 * 5)


def test_leaves_that_stand_still_are_named(tiny):
  run = tiny()
  state, metrics = jax.jit(run.step)(run.state, run.frozen, tiny.batch())
  checks.check_moved(run.state.trainable, state.trainable, metrics, run.optimizer)
  flat = masks.flatten(state.trainable) | {"classifier.bias": run.state.trainable["classifier"]["bias"]}
  with pytest.raises(RuntimeError, match=r"1 trainable leaves .* did not move: classifier\.bias"):
    checks.check_moved(run.state.trainable, masks.unflatten(flat), metrics, run.optimizer)


def test_leaves_that_the_optimizer_holds_are_named(tiny):
  run = tiny()
  bias = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "bias", run.state.trainable)
  held = optax.chain(run.optimizer, optax.masked(optax.set_to_zero(), bias))
  state, metrics = jax.jit(make_train_step(run.loss, held))(
    init_state(run.state.trainable, held, 0), run.frozen, tiny.batch()
  )
  with pytest.raises(RuntimeError, match=r"1 trainable leaves .* did not move: classifier\.bias"):
    checks.check_moved(run.state.trainable, state.trainable, metrics, held)


@pytest.mark.parametrize(("rate", "scale"), [(1e-9, 1.0), (1e-3, 1e-16)], ids=["rate", "gradient"])
def test_leaves_that_move_by_less_than_float32_can_tell_stop_no_run(tiny, rate, scale):
  run = tiny(learning_rate=rate, weight_decay=0.0)
  trainable = {**run.state.trainable, "classifier": jax.tree.map(jnp.ones_like, run.state.trainable["classifier"])}

  def small(*given):
    total, sums = run.loss(*given)
    return total * scale, sums

  state, metrics = jax.jit(make_train_step(small, run.optimizer))(
    run.state._replace(trainable=trainable), run.frozen, tiny.batch()
  )
  assert (state.trainable["classifier"]["bias"] == 1.0).all() and metrics["leaf_norms"]["classifier.bias"] > 0
  checks.check_moved(trainable, state.trainable, metrics, run.optimizer)


def test_a_loss_that_no_trained_leaf_has_a_part_in_is_told(tiny, caplog):
  """As that of denoising, of an autoencoder that trains alone."""
  run = tiny()
  cut = lambda trainable, *more: run.loss(jax.lax.stop_gradient(trainable), *more)  # noqa: E731
  state, metrics = jax.jit(make_train_step(cut, run.optimizer))(run.state, run.frozen, tiny.batch())
  checks.check_moved(run.state.trainable, state.trainable, metrics, run.optimizer)
  assert "no leaf that trains had a gradient" in caplog.text
  caplog.clear()
  state, metrics = jax.jit(make_train_step(run.loss, run.optimizer))(run.state, run.frozen, tiny.batch())
  checks.check_moved(run.state.trainable, state.trainable, metrics, run.optimizer)
  assert caplog.text == ""


def test_frozen_leaves_that_change_are_named(tiny):
  before = fingerprints(tiny().frozen)
  changed = masks.flatten(tiny().frozen)
  changed["embeddings.embedding"] = changed["embeddings.embedding"].at[3, 2].add(1e-6)
  checks.check_unchanged(before, fingerprints(tiny().frozen))
  with pytest.raises(RuntimeError, match=r"1 frozen leaves changed .*embeddings\.embedding"):
    checks.check_unchanged(before, fingerprints(masks.unflatten(changed)))
