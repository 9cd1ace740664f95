"""Arithmetic on the changes of several adapters: weighted sums, pruning, majority signs.

    linear           Σ wᵢ τᵢ
    magnitude_prune  Σ wᵢ top(τᵢ)              the largest `density` of each τ
    ties             the mean of wᵢ top(τᵢ) over those that have the majority's sign
    dare_linear      Σ wᵢ drop(τᵢ)             each element kept with probability `density`, and divided by it
    dare_ties        ties with drop in place of top

TIES: Yadav et al. 2023, arXiv 2306.01708. DARE: Yu et al. 2023, arXiv 2311.03099. As in Hugging Face PEFT's
`add_weighted_adapter`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

KINDS = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
SIGNS = ("total", "frequency")


def combined(
  tensors: Sequence[jax.Array],
  weights: Sequence[float],
  kind: str,
  density: float,
  sign: str,
  keys: jax.Array,
) -> jax.Array:
  """One tensor from several of one shape.

  Args:
    kind: one of `KINDS`.
    density: share that pruning keeps.
    sign: how ties elects a sign: by the sum of values ("total") or of signs ("frequency").
    keys: one random key for each tensor.
  """
  if kind in ("ties", "magnitude_prune"):
    tensors = [largest_elements(one, density) for one in tensors]
  elif kind != "linear":
    tensors = [dropped(one, density, key) for one, key in zip(tensors, keys)]
  stack = jnp.stack(list(tensors))
  weighted = stack * jnp.asarray(weights, stack.dtype).reshape(-1, *[1] * (stack.ndim - 1))
  if kind not in ("ties", "dare_ties"):
    return weighted.sum(axis=0)
  votes = (stack if sign == "total" else jnp.sign(stack)).sum(axis=0)
  agrees = jnp.sign(stack) == jnp.where(votes >= 0, 1.0, -1.0)
  return (weighted * agrees).sum(axis=0) / jnp.maximum(agrees.sum(axis=0), 1)


def largest_elements(tensor: jax.Array, density: float) -> jax.Array:
  """The elements of largest magnitude, int(density · size) of them; zeros elsewhere."""
  if density >= 1.0:
    return tensor
  count = int(density * tensor.size)
  places = jax.lax.top_k(jnp.abs(tensor).reshape(-1), count)[1]
  keep = jnp.zeros(tensor.size, bool).at[places].set(True)
  return jnp.where(keep.reshape(tensor.shape), tensor, 0.0)


def dropped(tensor: jax.Array, density: float, key: jax.Array) -> jax.Array:
  """Each element kept with probability `density` and divided by it."""
  if density >= 1.0:
    return tensor
  return jnp.where(kept(key, tensor.shape, density), tensor / density, 0.0)


def kept(key: jax.Array, shape: tuple[int, ...], density: float) -> jax.Array:
  """bool[shape]: which elements `dropped` keeps."""
  return jax.random.bernoulli(key, density, shape)
