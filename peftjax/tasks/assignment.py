"""The linear assignment problem, exactly, in a compiled program: shortest augmenting paths.

    min over injective π of Σ_i C[i, π(i)]

One row after the other is assigned along the shortest path to a free column, in costs reduced by the dual variables u
and v (Jonker and Volgenant 1987, Computing 38; as written down by Crouse 2016, IEEE TAES 52(4), which is what scipy's
`linear_sum_assignment` computes). A step looks at all columns at once: at most rows² steps follow each other, where
optax's `hungarian_algorithm` has one for each column of each, which on accelerators is what a step would wait for.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

_INFINITE = 1e6  # in the place of a cost that is no number


def assign(cost: jax.Array, count: jax.Array | int) -> jax.Array:
  """The column of each row at the least sum of costs, int32 [R].

  Args:
    cost: [R, C], R <= C; what is not finite costs more than anything that is.
    count: how many of the first rows take part; the others get C.

  >>> assign(jnp.array([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0]]), 2).tolist()
  [1, 0]
  """
  rows, columns = cost.shape
  if rows > columns:
    raise ValueError(f"{rows} rows for {columns} columns")
  cost = jnp.where(jnp.isfinite(cost), cost, _INFINITE).astype(jnp.float32)

  def add(row: jax.Array, state: Any) -> Any:
    u, v, row_of, column_of = state
    start = {
      "shortest": jnp.full(columns, jnp.inf),
      "before": jnp.full(columns, -1),  # the row from which a column was reached
      "seen": jnp.zeros(columns, bool),
      "through": jnp.zeros(rows, bool),  # rows that the tree of paths holds
      "row": row,
      "length": jnp.float32(0.0),
      "sink": jnp.int32(-1),
    }
    tree = jax.lax.while_loop(lambda tree: tree["sink"] < 0, lambda tree: _grown(tree, cost, u, v, row_of), start)
    length, seen, shortest = tree["length"], tree["seen"], tree["shortest"]
    others = tree["through"] & (jnp.arange(rows) != row)
    u = u + jnp.where(others, length - shortest[column_of], 0.0)
    u = u.at[row].add(length)
    v = v - jnp.where(seen, length - shortest, 0.0)
    row_of, column_of = _augmented(tree["sink"], row, tree["before"], row_of, column_of)
    return u, v, row_of, column_of

  zeros = (jnp.zeros(rows), jnp.zeros(columns), jnp.full(columns, -1), jnp.full(rows, columns))
  found: jax.Array = jax.lax.fori_loop(0, jnp.asarray(count, jnp.int32), add, zeros)[3]
  return found


def _grown(tree: Any, cost: jax.Array, u: jax.Array, v: jax.Array, row_of: jax.Array) -> Any:
  """The tree of shortest paths with one column more: the nearest that is not in it."""
  row = tree["row"]
  length = tree["length"] + cost[row] - u[row] - v
  better = (length < tree["shortest"]) & ~tree["seen"]
  shortest = jnp.where(better, length, tree["shortest"])
  column = jnp.where(tree["seen"], jnp.inf, shortest).argmin()
  is_free = row_of[column] < 0
  return {
    "shortest": shortest,
    "before": jnp.where(better, row, tree["before"]),
    "seen": tree["seen"].at[column].set(True),
    "through": tree["through"].at[row].set(True),
    "row": jnp.where(is_free, row, row_of[column]),
    "length": shortest[column],
    "sink": jnp.where(is_free, column, -1).astype(jnp.int32),
  }


def _augmented(
  sink: jax.Array, row: jax.Array, before: jax.Array, row_of: jax.Array, column_of: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The assignment turned round along the path that ends in `sink`, back to the row that was added."""

  def turn(state: Any) -> Any:
    column, _, row_of, column_of = state
    at = before[column]
    return column_of[at], at == row, row_of.at[column].set(at), column_of.at[at].set(column)

  start = (sink, jnp.bool_(False), row_of, column_of)
  _, _, row_of, column_of = jax.lax.while_loop(lambda state: ~state[1], turn, start)
  return row_of, column_of
