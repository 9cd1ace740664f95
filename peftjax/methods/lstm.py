"""A long short-term memory over a prompt, as `torch.nn.LSTM` computes it (Hochreiter and Schmidhuber 1997)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def lstm(leaves: dict[str, Any], prefix: str, x: jax.Array, reverse: bool) -> jax.Array:
  """One direction of an LSTM layer over [n, in]; gates in torch's order: input, forget, cell, output."""
  hidden_kernel = leaves[prefix + "hidden_kernel"]
  driven = x @ leaves[prefix + "input_kernel"] + leaves[prefix + "input_bias"] + leaves[prefix + "hidden_bias"]

  def step(carry: tuple[jax.Array, jax.Array], one: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    hidden, cell = carry
    gate_in, gate_forget, candidate, gate_out = jnp.split(one + hidden @ hidden_kernel, 4)
    cell = jax.nn.sigmoid(gate_forget) * cell + jax.nn.sigmoid(gate_in) * jnp.tanh(candidate)
    hidden = jax.nn.sigmoid(gate_out) * jnp.tanh(cell)
    return (hidden, cell), hidden

  zeros = jnp.zeros(hidden_kernel.shape[0], driven.dtype)
  return jax.lax.scan(step, (zeros, zeros), driven, reverse=reverse)[1]
