"""Draws for dropout against `jax.random.bernoulli`."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from peftjax.draws import bernoulli

KEYS = {"raw": jax.random.PRNGKey(3), "typed": jax.random.key(2**31), "rbg": jax.random.key(1, impl="rbg")}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("p", [0.9, 0.5, 1e-9, float(np.nextafter(np.float32(1), np.float32(0)))])
def test_draws_are_jax_s(kind, p):
  for shape in [(), (7,), (3, 5, 11)]:
    found, expected = bernoulli(KEYS[kind], p, shape), jax.random.bernoulli(KEYS[kind], p, shape)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", KEYS)
def test_draws_at_one_index_of_the_second_axis(kind):
  whole = jax.random.bernoulli(KEYS[kind], 0.7, (3, 5, 11, 2))
  at = jax.jit(lambda index: bernoulli(KEYS[kind], 0.7, (3, 5, 11, 2), at=index))
  for index in range(5):
    np.testing.assert_array_equal(at(index), whole[:, index])


def test_many_keys_at_once_draw_what_each_draws():
  keys = jax.random.split(jax.random.PRNGKey(1), 4)
  found = jax.vmap(lambda key: bernoulli(key, 0.3, (5, 3)))(keys)
  np.testing.assert_array_equal(found, [jax.random.bernoulli(key, 0.3, (5, 3)) for key in keys])


def test_draws_compile_to_no_loop():
  text = jax.jit(lambda key: bernoulli(key, 0.9, (64, 32))).lower(KEYS["raw"]).compile().as_text()
  assert "while" not in text
