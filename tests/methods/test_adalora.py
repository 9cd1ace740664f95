"""AdaLoRA's budget, pruning and regulariser."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from peftjax.errors import UserError
from peftjax.methods import AdaLoRA, Site

STEPS = 12
SITE = Site(("a",), "__call__", "linear", ("a.0", "a.1"), (2,), (5, 4))


def method(**settings: Any) -> AdaLoRA:
  return AdaLoRA(**{"init_r": 3, "target_r": 1, "tinit": 2, "tfinal": 4, "modules": 3, **settings})


def tree(seed: int) -> dict[str, Any]:
  """A stacked site of two layers, one alone, and a leaf of another method."""
  rng = np.random.default_rng(seed)
  shapes = {"a": (2,), "b": ()}
  leaves = {"lora_a": (5, 3), "lora_b": (3, 4), "lora_e": (3,)}
  made = {
    module: {name: jnp.asarray(rng.standard_normal(stack + shape), jnp.float32) for name, shape in leaves.items()}
    for module, stack in shapes.items()
  }
  return {**made, "c": {"lora_a": jnp.ones((5, 2)), "lora_b": jnp.ones((2, 4))}}


def test_the_budget_falls_from_the_first_rank_to_the_last_as_a_cube():
  budgets = method().budgets(STEPS)
  assert budgets[:3].tolist() == [9, 9, 9]
  assert budgets[5] == int(6 * (1 - 3 / 6) ** 3 + 3)
  assert budgets[STEPS - 4 :].tolist() == [3] * 5


def test_pruning_leaves_the_target_over_all_sites_and_nothing_comes_back():
  optimizer = method().transform(optax.adam(1e-2), STEPS)
  params, state, left = tree(0), None, []
  state = optimizer.init(params)
  step = jax.jit(optimizer.update)
  for index in range(STEPS):
    updates, state = step(tree(index + 1), state, params)
    params = optax.apply_updates(params, updates)
    left.append(sum(int((params[name]["lora_e"] != 0).sum()) for name in "ab"))
  assert left[:3] == [9, 9, 9]
  assert sorted(left, reverse=True) == left
  assert left[STEPS - 4 :] == [3] * 4
  assert not np.array_equal(params["c"]["lora_a"], np.ones((5, 2)))


def test_between_prunings_values_may_come_back_and_the_last_ranks_stay():
  optimizer = method(delta_t=3).transform(optax.sgd(1e-2), STEPS)
  params = tree(0)
  state, left = optimizer.init(params), []
  for index in range(STEPS):
    updates, state = optimizer.update(tree(index + 1), state, params)
    params = optax.apply_updates(params, updates)
    left.append(sum(int((params[name]["lora_e"] != 0).sum()) for name in "ab"))
  assert left[2] == 9 and left[3] < 9 and left[4] == 9
  assert left[STEPS - 4 :] == [3] * 4


def test_the_penalty_is_the_mean_distance_from_orthonormal():
  leaves = {"lora_a": jnp.eye(5, 3), "lora_b": 2.0 * jnp.eye(3, 4), "lora_e": jnp.ones(3)}
  # ‖AᵀA - I‖ = 0 and ‖BBᵀ - I‖ = 3 √3, over 2 · 3 matrices, times 0.5.
  np.testing.assert_allclose(method().penalty(leaves, SITE), 0.5 * 3 * 3**0.5 / 6, rtol=1e-6)


def test_a_schedule_without_room_for_pruning_is_refused():
  with pytest.raises(UserError, match="leave none of 6 steps"):
    method().transform(optax.sgd(1.0), 6)
  with pytest.raises(UserError, match="target_r"):
    method(target_r=4)
