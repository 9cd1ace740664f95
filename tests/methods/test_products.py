"""Products of sequences: values and gradients of the plain product, and no transposed copies on a CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.placement import Placement, in_rows, matmul, placed
from tests.train.copies import transposed_copies

KEYS = jax.random.split(jax.random.key(0), 4)
X = jax.random.normal(KEYS[0], (2, 7, 5))
A = jax.random.normal(KEYS[1], (5, 3))
B = jax.random.normal(KEYS[2], (3, 11))
WANTED = jax.random.normal(KEYS[3], (2, 7, 11))


def loss(product, x, a, b):
  return jnp.sum(jnp.tanh(product(product(x, a), b)) * WANTED)


def test_gradients_are_those_of_the_plain_product():
  found, expected = (jax.grad(lambda *leaves, f=f: loss(f, *leaves), (0, 1, 2))(X, A, B) for f in (matmul, jnp.matmul))
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5), found, expected)
  tangents = [jax.jvp(lambda b, f=f: f(f(X, A), b), (B,), (B,))[1] for f in (matmul, jnp.matmul)]
  np.testing.assert_allclose(*tangents, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (0, 3, 5), (2, 3, 4, 5)])
def test_any_number_of_axes(shape):
  x = jax.random.normal(KEYS[0], shape)
  np.testing.assert_allclose(matmul(x, A), x @ A, rtol=1e-5, atol=1e-6)


def test_other_devices_get_the_product_as_it_is():
  with placed(Placement("tpu")):
    assert in_rows(lambda x: x + x.ndim, X)[0, 0, 0] == X[0, 0, 0] + 3


def test_gradients_copy_nothing_transposed():
  """Of the plain product, the output's gradient is copied, with the activation's derivative computed within."""

  def of(product, b, x):
    return jnp.sum(jax.nn.gelu(product(x, b)) ** 2)

  x, b = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(4, 96, 8), (8, 512)])
  plain, ours = (
    transposed_copies(jax.jit(jax.grad(lambda b, x, f=f: of(f, b, x))).lower(b, x).compile().as_text())
    for f in (jnp.matmul, matmul)
  )
  assert max(plain.values()) == 4 * 96 * 512
  assert max(ours.values(), default=0) < 4 * 96 * 512
