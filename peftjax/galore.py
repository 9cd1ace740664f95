"""GaLore: full-parameter training with low-rank optimizer state (Zhao et al. 2024, arXiv 2403.03507).

    every T updates:   U, S, Vᵀ = svd(G),   P = U[:, :r]          the gradient G: [m, n], m <= n
    every update:      R = Pᵀ G,   N = inner(R),   G̃ = α P N

The inner transform (Adam) keeps its moments of R, [r, n] instead of [m, n]. Where m > n the right singular vectors are
taken and R = G Q is [m, r]. All parameters train and none is added, so it is an optimizer, not a method:
`config.method.name = "full"`, `config.optim.name = "galore"`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from peftjax.errors import UserError

Flat = dict[str, Any]


class GaLoreState(NamedTuple):
  """Updates done; name -> orthonormal projection [..., m, r] of each projected leaf; the inner transform's state."""

  step: jax.Array
  projections: Flat
  inner: Any


def scale_by_galore(
  inner: optax.GradientTransformation,
  rank: int = 128,
  update_every: int = 200,
  scale: float = 0.25,
  stacks: Mapping[str, int] | None = None,
  projects: Callable[[str, Any], bool] | None = None,
) -> optax.GradientTransformation:
  """Runs `inner` on gradients projected to `rank` dimensions.

  Args:
    inner: what turns gradients to directions, such as `optax.scale_by_adam()`; it sees a flat dict of leaves.
    rank: r.
    update_every: T, updates between two singular value decompositions. Within `jax.vmap`, as in a sweep, a
      decomposition is computed at every update and thrown away.
    scale: α.
    stacks: dotted path of each stack of layers -> number of layers; each layer of a stacked leaf is its own matrix.
    projects: (name, leaf) -> whether a matrix larger than the rank is projected; default: every one.

  Raises:
    UserError: a rank or an interval below 1.
  """
  if rank < 1 or update_every < 1:
    raise UserError(f"galore: rank {rank} and update_every {update_every} must be at least 1")

  def is_projected(name: str, leaf: Any) -> bool:
    stacked = any(name.startswith(stack + ".") for stack in stacks or {})
    is_matrix = len(leaf.shape) - stacked == 2 and min(leaf.shape[-2:]) > rank
    return is_matrix and (projects is None or projects(name, leaf))

  def init(params: Any) -> GaLoreState:
    flat = _flat(params)
    projections = {
      name: jnp.zeros((*leaf.shape[:-2], min(leaf.shape[-2:]), rank), leaf.dtype)
      for name, leaf in flat.items()
      if is_projected(name, leaf)
    }
    compact = {name: _down(leaf, projections[name]) if name in projections else leaf for name, leaf in flat.items()}
    return GaLoreState(jnp.zeros((), jnp.int32), projections, inner.init(compact))

  def update(updates: Any, state: GaLoreState, params: Any = None) -> tuple[Any, GaLoreState]:
    flat, values = _flat(updates), None if params is None else _flat(params)
    projections = jax.lax.cond(
      state.step % update_every == 0,
      lambda: {name: principal(flat[name], rank) for name in state.projections},
      lambda: state.projections,
    )

    def compact(leaves: Flat) -> Flat:
      return {name: _down(leaf, projections[name]) if name in projections else leaf for name, leaf in leaves.items()}

    directions, inner_state = inner.update(compact(flat), state.inner, None if values is None else compact(values))
    done = {
      name: scale * _up(direction, projections[name]) if name in projections else direction
      for name, direction in directions.items()
    }
    new = jax.tree_util.tree_map_with_path(lambda path, leaf: done[_name(path)].astype(leaf.dtype), updates)
    return new, GaLoreState(state.step + 1, projections, inner_state)

  return optax.GradientTransformation(init, update)


def principal(gradient: jax.Array, rank: int) -> jax.Array:
  """[..., min(m, n), r]: the singular vectors of a gradient [..., m, n], on its shorter side, of the largest values."""
  u, _, vt = jnp.linalg.svd(gradient.astype(jnp.float32), full_matrices=False)
  vectors = u if _is_wide(gradient) else vt.mT
  return vectors[..., :rank].astype(gradient.dtype)


def _is_wide(matrix: jax.Array) -> bool:
  return matrix.shape[-2] <= matrix.shape[-1]


def _down(matrix: jax.Array, projection: jax.Array) -> jax.Array:
  return projection.mT @ matrix if _is_wide(matrix) else matrix @ projection


def _up(compact: jax.Array, projection: jax.Array) -> jax.Array:
  is_wide = compact.shape[-2] == projection.shape[-1] and compact.shape[-1] >= projection.shape[-2]
  return projection @ compact if is_wide else compact @ projection.mT


def _flat(tree: Any) -> Flat:
  """Dotted name -> leaf; leaves of other groups, which `optax.multi_transform` masks, are passed over."""
  return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _name(path: Any) -> str:
  return ".".join(key.key for key in path)
