"""The loss of next-token prediction from hidden states, in chunks, so that [batch, length, vocabulary] never exists."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.models.placement import current

IGNORED = -100
"""The target of tokens that carry no loss."""

_CHUNK_ELEMENTS = 2**24
"""Logits that exist at once on a device: 64 MiB in float32."""


def token_losses(module: Any, hidden_BxLxE: jax.Array, targets_BxL: jax.Array, vocabulary: int) -> dict[str, jax.Array]:
  """What `cross_entropy` gives for the logits module.head(hidden), [B, L] each.

  The head runs on a few positions at a time, and the backward pass computes their logits once more. A frozen head costs
  no weight gradient; methods that act on it act here too.
  """
  batch, length = targets_BxL.shape
  rows = -(-batch // current().batch)  # on one device
  chunk = min(length, max(1, _CHUNK_ELEMENTS // (rows * vocabulary)))
  count = -(-length // chunk)
  padding = count * chunk - length
  hidden = jnp.pad(hidden_BxLxE, ((0, 0), (0, padding), (0, 0)))
  targets = jnp.pad(targets_BxL, ((0, 0), (0, padding)), constant_values=IGNORED)

  def chunks(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x.reshape(batch, count, chunk, *x.shape[2:]), 1, 0)

  def one(model: Any, carry: tuple[()], inputs: tuple[jax.Array, jax.Array]) -> tuple[tuple[()], dict[str, jax.Array]]:
    return carry, cross_entropy(model.head(inputs[0]), inputs[1])

  scanned = nn.scan(
    nn.remat(one, prevent_cse=False), variable_broadcast="params", split_rngs={"params": False, "dropout": True}
  )
  _, found = scanned(module, (), (chunks(hidden), chunks(targets)))
  return {name: jnp.moveaxis(x, 0, 1).reshape(batch, -1)[:, :length] for name, x in found.items()}


def cross_entropy(logits: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
  """Of logits [..., V], both 0 where the target is `IGNORED`:

  "token_losses" float32[...], -log softmax(logits)[target]; "token_hits" float32[...], 1 where no token is likelier.
  """
  logits = logits.astype(jnp.float32)
  wanted = targets != IGNORED
  chosen = jnp.take_along_axis(logits, jnp.where(wanted, targets, 0)[..., None], axis=-1)[..., 0]
  losses = jnp.where(wanted, jax.nn.logsumexp(logits, axis=-1) - chosen, 0.0)
  hits = wanted & (jax.lax.stop_gradient(chosen) >= jax.lax.stop_gradient(logits).max(axis=-1))
  return {"token_losses": losses, "token_hits": hits.astype(jnp.float32)}
