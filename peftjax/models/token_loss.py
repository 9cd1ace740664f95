"""The loss of next-token prediction from hidden states, in chunks, so that [batch, length, vocabulary] never exists."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

IGNORED = -100
"""The target of tokens that carry no loss."""

_CHUNK_ELEMENTS = 2**24
"""Logits that exist at once: 64 MiB in float32."""


def token_losses(module: Any, hidden_BxLxE: jax.Array, targets_BxL: jax.Array, vocabulary: int) -> jax.Array:
  """float32[B, L]: -log softmax(module.head(hidden))[target]; 0 where the target is `IGNORED`.

  The head runs on a few positions at a time, and the backward pass computes their logits once more. A frozen head costs
  no weight gradient; methods that act on it act here too.
  """
  batch, length = targets_BxL.shape
  chunk = min(length, max(1, _CHUNK_ELEMENTS // (batch * vocabulary)))
  count = -(-length // chunk)
  padding = count * chunk - length
  hidden = jnp.pad(hidden_BxLxE, ((0, 0), (0, padding), (0, 0)))
  targets = jnp.pad(targets_BxL, ((0, 0), (0, padding)), constant_values=IGNORED)

  def chunks(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x.reshape(batch, count, chunk, *x.shape[2:]), 1, 0)

  def one(model: Any, carry: tuple[()], inputs: tuple[jax.Array, jax.Array]) -> tuple[tuple[()], jax.Array]:
    return carry, cross_entropy(model.head(inputs[0]), inputs[1])

  scanned = nn.scan(
    nn.remat(one, prevent_cse=False), variable_broadcast="params", split_rngs={"params": False, "dropout": True}
  )
  _, losses = scanned(module, (), (chunks(hidden), chunks(targets)))
  return jnp.moveaxis(losses, 0, 1).reshape(batch, -1)[:, :length]


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """float32[...]: -log softmax(logits)[target] of logits [..., V]; 0 where the target is `IGNORED`."""
  logits = logits.astype(jnp.float32)
  wanted = targets != IGNORED
  chosen = jnp.take_along_axis(logits, jnp.where(wanted, targets, 0)[..., None], axis=-1)[..., 0]
  return jnp.where(wanted, jax.nn.logsumexp(logits, axis=-1) - chosen, 0.0)
