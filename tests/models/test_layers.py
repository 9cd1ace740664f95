"""Activations and attention: what the backward pass keeps, and dropped weights on every backend."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from peftjax.models.layers import ACTIVATIONS, attention

X = jnp.linspace(-6.0, 6.0, 101)
PLAIN = {
  "gelu": lambda x: nn.gelu(x, approximate=False),
  "gelu_new": lambda x: nn.gelu(x, approximate=True),
  "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
  "silu": nn.silu,
  "mish": lambda x: x * jnp.tanh(nn.softplus(x)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_activations_and_their_derivatives(name):
  ours, plain = ACTIVATIONS[name], PLAIN[name]
  np.testing.assert_array_equal(ours(X), plain(X))
  for order in (jax.grad, lambda f: jax.grad(jax.grad(f)), lambda f: jax.jacfwd(jax.grad(f))):
    found, expected = (jax.vmap(order(f))(X) for f in (ours, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_one_array_is_kept_of_an_activation(name):
  jaxpr = jax.make_jaxpr(lambda x: jax.vjp(ACTIVATIONS[name], x)[1])(X).jaxpr
  kept = {one for one in jaxpr.outvars if not hasattr(one, "val") and one.aval.shape == X.shape}
  assert len(kept) == 1


def test_every_backend_drops_the_same_weights():
  keys = jax.random.split(jax.random.key(0), 4)
  q = jax.random.normal(keys[0], (2, 7, 4, 3))
  k, v = (jax.random.normal(key, (2, 5, 2, 3)) for key in keys[1:3])
  mask = jnp.arange(5)[None, None, None, :] < jnp.array([5, 3])[:, None, None, None]

  def of(backend, q, k, v):
    return attention(q, k, v, mask, backend=backend, dropout_rate=0.4, dropout_key=keys[3])

  whole, by_head = (of(backend, q, k, v) for backend in ("xla", "heads"))
  np.testing.assert_allclose(by_head, whole, rtol=1e-5, atol=1e-6)
  assert np.abs(whole - attention(q, k, v, mask, backend="xla")).max() > 0.1
  wanted = [jax.grad(lambda *a, b=b: jnp.sum(of(b, *a) ** 2), (0, 1, 2))(q, k, v) for b in ("xla", "heads")]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *wanted)
