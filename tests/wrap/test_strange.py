"""Models as strangers write them: each holds or uses leaves in a way that once ended in a traceback or a refusal."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import peftjax
from peftjax import methods
from peftjax.errors import UserError
from tests.wrap import grid, models

draw = models.Draw(11)


def ragged() -> Any:
  """Experts over rows sorted by expert."""
  inputs = {"x": draw(9, 6), "sizes": jnp.array([2, 3, 4])}
  return (lambda params, x, sizes: lax.ragged_dot(x, params["w"], sizes)), {"w": draw(3, 6, 4)}, inputs


def by_number() -> Any:
  """One leaf of three matrices, each taken by its number."""

  def function(params: Any, x: jax.Array) -> jax.Array:
    q, k, v = (x @ params["w"][number] for number in range(3))
    return jax.nn.softmax(q @ k.swapaxes(-1, -2)) @ v

  return function, {"w": draw(3, 6, 8)}, {"x": draw(2, 5, 6)}


def ensemble() -> Any:
  """Convolutions mapped over their kernels, which are then one of several groups."""

  def one(kernel: jax.Array, x: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))

  function = lambda params, x: jax.vmap(one, (0, None))(params["w"], x).mean(0)  # noqa: E731
  return function, {"w": draw(3, 3, 8, 8)}, {"x": draw(2, 5, 8)}


def in_fewer_bits() -> Any:
  """Leaves and outputs of 32 bits, products of 16."""

  def function(params: Any, x: jax.Array) -> jax.Array:
    h = jnp.tanh(x.astype(jnp.bfloat16) @ params["w"].astype(jnp.bfloat16))
    return (h @ params["v"].astype(jnp.bfloat16)).astype(jnp.float32)

  return function, {"w": draw(6, 8), "v": draw(8, 3)}, {"x": draw(4, 6)}


def without_keys() -> Any:
  """A Haiku transform whose `apply` takes no key."""
  hk = pytest.importorskip("haiku")
  transform = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(3, name="w")(x)))
  return transform, transform.init(jax.random.key(0), draw(4, 6)), {"x": draw(4, 6)}


@pytest.mark.parametrize("make", [ragged, by_number, ensemble, in_fewer_bits, without_keys])
def test_lora_acts_and_merges(make):
  function, params, inputs = make()
  model = peftjax.wrap(function, params, inputs)
  added = grid.adapted(model, methods.LoRA(rank=2, targets=("w*",)))
  found, base = added(**inputs), model(**inputs)
  assert float(jnp.abs(found - base).max()) > 1e-2
  grid.close({"y": added.merge()(**inputs)}, {"y": found}, 2e-2 if make is in_fewer_bits else 1e-5)


def test_a_function_that_reads_none_of_its_leaves_is_one_line():
  w = draw(6, 4)
  with pytest.raises(UserError, match="reads none of its 1 leaves"):
    peftjax.wrap(lambda params, x: x @ w, {"v": draw(4, 3)}, {"x": draw(2, 6)})
