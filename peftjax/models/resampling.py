"""Two-dimensional bicubic resampling as torch's `interpolate` computes it, as two matrices.

    y[o, p] = sum_h sum_w R[o, h] C[p, w] x[h, w]        R: [new rows, rows], C: [new columns, columns]

Sizes are static, so the matrices are constants of the compiled program, and gradients go through two products.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

_REPLICATED, _ANTIALIASED = -0.75, -0.5  # the kernel's parameter in torch, without and with antialiasing


def bicubic(x: jax.Array, rows: int, columns: int, *, antialias: bool = False) -> jax.Array:
  """[rows, columns, features] from [h, w, features], float32; pixels' centres, not corners, are aligned.

  Args:
    antialias: widen the kernel by the factor of the reduction (Keys' kernel with a = -1/2 then, else -3/4).
  """
  along, across = (matrix(new, old, antialias) for new, old in zip((rows, columns), x.shape))
  return jnp.einsum("oh,pw,hwd->opd", along, across, x.astype(jnp.float32), precision="highest")


@functools.cache
def matrix(new: int, old: int, antialias: bool) -> np.ndarray:
  """float32 [new, old]: the share of each old sample in each new one; every row sums to 1."""
  return (_antialiased if antialias else _replicated)(new, old).astype(np.float32)


def _replicated(new: int, old: int) -> np.ndarray:
  """Four neighbours each; those beyond an edge are the edge's own."""
  found = np.zeros((new, old))
  for index in range(new):
    centre = (index + 0.5) * old / new - 0.5
    first = int(np.floor(centre)) - 1
    for offset in range(4):
      at = min(max(first + offset, 0), old - 1)
      found[index, at] += _cubic(centre - (first + offset), _REPLICATED)
  return found


def _antialiased(new: int, old: int) -> np.ndarray:
  """As many neighbours as the widened kernel reaches; those beyond an edge are left out, and weights sum to 1."""
  scale = old / new
  reach = max(scale, 1.0)
  found = np.zeros((new, old))
  for index in range(new):
    centre = (index + 0.5) * scale
    first, last = max(int(centre - 2 * reach + 0.5), 0), min(int(centre + 2 * reach + 0.5), old)
    weights = np.array([_cubic((at - centre + 0.5) / reach, _ANTIALIASED) for at in range(first, last)])
    found[index, first:last] = weights / weights.sum()
  return found


def _cubic(distance: float, a: float) -> float:
  """Keys' cubic convolution kernel (1981, IEEE TASSP 29:6)."""
  t = abs(distance)
  if t <= 1.0:
    return ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0
  return (((t - 5.0) * t + 8.0) * t - 4.0) * a if t < 2.0 else 0.0
