"""The loss of next-token prediction from hidden states, in chunks, so that [batch, length, vocabulary] never exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from peftjax.placement import current

IGNORED = -100
"""The target of tokens that carry no loss."""

_CHUNK_ELEMENTS = 2**24
"""Logits that exist at once on a device: 64 MiB in float32."""

_GPU_FACTOR = 16
"""So many times more on a GPU, where thin products wait for the table instead of computing."""

Head = Callable[[jax.Array, jax.Array], jax.Array]
"""(hidden states [B, chunk, E], number of the chunk, which dropout depends on) -> logits [B, chunk, vocabulary]."""


def token_losses(module: Any, hidden_BxLxE: jax.Array, targets_BxL: jax.Array, vocabulary: int) -> dict[str, jax.Array]:
  """What `cross_entropy` gives for the logits module.head(hidden), [B, L] each; `module` is the outermost one.

  The head runs on some positions at a time. Where nothing that it reads trains, the gradient of the hidden states is
  formed together with the losses, since a token's loss depends on its own states alone: logits are computed once.
  Otherwise the backward pass computes them once more. Methods that act on the head act here too.
  """
  batch, length = targets_BxL.shape
  count = chunk_count(-(-batch // current().batch), length, vocabulary)
  chunk = -(-length // count)
  padding = count * chunk - length
  hidden = jnp.pad(hidden_BxLxE, ((0, 0), (0, padding), (0, 0)))
  targets = jnp.pad(targets_BxL, ((0, 0), (0, padding)), constant_values=IGNORED)

  def chunks(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x.reshape(batch, count, chunk, *x.shape[2:]), 1, 0)

  found = _losses(_head_of(module), chunks(hidden), chunks(targets))
  return {name: jnp.moveaxis(x, 0, 1).reshape(batch, -1)[:, :length] for name, x in found.items()}


def chunk_count(rows: int, length: int, vocabulary: int) -> int:
  """Into how many equal parts the positions are divided, so that not too many logits exist at once on a device."""
  most = _CHUNK_ELEMENTS * (_GPU_FACTOR if current().platform == "gpu" else 1)
  return -(-length // max(1, most // (rows * vocabulary)))


def _head_of(module: Any) -> Head:
  """The module's head as a function of its own, which JAX may transform."""
  free, variables = module.unbind()
  key = module.make_rng("dropout") if module.has_rng("dropout") else None

  def head(hidden: jax.Array, number: jax.Array) -> jax.Array:
    rngs = None if key is None else {"dropout": jax.random.fold_in(key, number)}
    logits: jax.Array = free.apply(variables, hidden, method="head", rngs=rngs)
    return logits

  return head


def _losses(head: Head, hidden: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
  """`cross_entropy` of hidden states [chunks, B, chunk, E], one chunk after the other."""
  numbers = jnp.arange(len(targets))
  # What the head reads becomes arguments, of which the rule below is told whether they are differentiated.
  logits_of, read = jax.closure_convert(head, hidden[0], numbers[0])

  def one(states: jax.Array, read: Any, targets: jax.Array, number: jax.Array) -> dict[str, jax.Array]:
    return cross_entropy(logits_of(states, number, *read), targets)

  def scanned(function: Callable[..., Any], hidden: jax.Array, read: Any, targets: jax.Array) -> Any:
    return jax.lax.scan(
      lambda _, x: (None, function(x[0], read, *x[1:])), None, (hidden, targets, numbers[: len(targets)])
    )[1]

  def loss_and_gradient(states: jax.Array, read: Any, targets: jax.Array, number: jax.Array) -> Any:
    def losses_of(x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
      found = one(x, read, targets, number)
      return found["token_losses"], found

    losses, pull, found = jax.vjp(losses_of, states, has_aux=True)
    return found, pull(jnp.ones_like(losses))[0]

  @jax.custom_vjp
  def losses(hidden: jax.Array, read: Any, targets: jax.Array) -> dict[str, jax.Array]:
    found: dict[str, jax.Array] = scanned(one, hidden, read, targets)
    return found

  def forward(hidden: Any, read: Any, targets: Any) -> Any:
    trained = [leaf.perturbed for leaf in read]
    if not any(trained):
      found, gradient = scanned(loss_and_gradient, hidden.value, [leaf.value for leaf in read], targets.value)
      return found, {"gradient": gradient, "read": len(read) * [None]}

    def of_trained(hidden: jax.Array, values: list[jax.Array]) -> dict[str, jax.Array]:
      given = iter(values)
      whole = [next(given) if leaf.perturbed else leaf.value for leaf in read]
      found: dict[str, jax.Array] = scanned(jax.checkpoint(one, prevent_cse=False), hidden, whole, targets.value)
      return found

    found, pull = jax.vjp(of_trained, hidden.value, [leaf.value for leaf in read if leaf.perturbed])
    return found, {"pull": pull, "read": [jnp.zeros(()) if trains else None for trains in trained]}

  def backward(kept: Any, cotangents: Any) -> Any:
    cotangents = jax.tree.map(_materialised, cotangents, is_leaf=lambda x: isinstance(x, SymbolicZero))
    if "gradient" in kept:
      gradient = kept["gradient"]
      scales = cotangents["token_losses"][..., None].astype(gradient.dtype)
      return gradient * scales, kept["read"], None
    of_hidden, of_read = kept["pull"](cotangents)
    given = iter(of_read)
    return of_hidden, [None if leaf is None else next(given) for leaf in kept["read"]], None

  losses.defvjp(forward, backward, symbolic_zeros=True)
  found: dict[str, jax.Array] = losses(hidden, read, targets)
  return found


def _materialised(cotangent: Any) -> jax.Array:
  if isinstance(cotangent, SymbolicZero):
    return jnp.zeros(cotangent.shape, cotangent.dtype)
  return cotangent


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
