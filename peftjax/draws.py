"""Draws for dropout: those of `jax.random.bernoulli`, bit for bit, as one straight computation.

On a CPU, JAX hashes in a loop of five rounds, between which whole arrays are written; without the loop the compiler
hashes, compares and drops element by element.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
_BITS = 23  # of a float32's fraction: what a uniform number is made of


def bernoulli(key: jax.Array, p: float, shape: tuple[int, ...], at: jax.Array | None = None) -> jax.Array:
  """bool[shape], each True with probability p: `jax.random.bernoulli(key, p, shape)`.

  Args:
    at: an index of the second axis; only what is drawn there is returned, without that axis.
  """
  counted = jax.config.jax_threefry_partitionable and 0 < math.prod(shape) < 2**32  # type: ignore[attr-defined]
  if not counted or jax.random.key_impl(key) != "threefry2x32":
    drawn = jax.random.bernoulli(key, p, shape)
    return drawn if at is None else lax.dynamic_index_in_dim(drawn, at, 1, keepdims=False)
  words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
  return _below(words, math.ceil(float(np.float32(p)) * 2**_BITS), tuple(shape), at)


@functools.partial(jax.jit, static_argnames=("bound", "shape"))
def _below(key: jax.Array, bound: int, shape: tuple[int, ...], at: jax.Array | None) -> jax.Array:
  """Whether the first bits of each element's hash are below `bound`."""
  number = jnp.zeros(shape if at is None else (*shape[:1], 1, *shape[2:]), jnp.uint32)
  for axis, size in enumerate(shape):
    own = at is not None and axis == 1
    index = jnp.asarray(at, jnp.uint32) if own else lax.broadcasted_iota(jnp.uint32, number.shape, axis)
    number = number * np.uint32(size) + index
  number = number if at is None else number[:, 0]
  high, low = _threefry(key[0], key[1], jnp.zeros_like(number), number)
  return ((high ^ low) >> np.uint32(32 - _BITS)) < np.uint32(bound)


def _threefry(key0: jax.Array, key1: jax.Array, x0: jax.Array, x1: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4.2)."""
  keys = (key0, key1, key0 ^ key1 ^ _PARITY)
  x0, x1 = x0 + keys[0], x1 + keys[1]
  for group in range(5):
    for rotation in _ROTATIONS[group % 2]:
      x0 = x0 + x1
      x1 = ((x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation))) ^ x0
    x0, x1 = x0 + keys[(group + 1) % 3], x1 + keys[(group + 2) % 3] + np.uint32(group + 1)
  return x0, x1
