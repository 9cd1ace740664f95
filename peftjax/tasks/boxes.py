"""Boxes of objects: (centre x, centre y, width, height) as shares of an image, or (x0, y0, x1, y1) by their corners."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def corners(boxes: jax.Array) -> jax.Array:
  """[..., 4] (x0, y0, x1, y1) from (centre x, centre y, width, height)."""
  centre, size = boxes[..., :2], boxes[..., 2:]
  return jnp.concatenate([centre - size / 2, centre + size / 2], axis=-1)


def generalized_iou(one: jax.Array, other: jax.Array) -> jax.Array:
  """IoU less the share of the smallest box around both that neither covers, [...], from -1 to 1.

      |A ∩ B| / |A ∪ B| - (|H| - |A ∪ B|) / |H|       (Rezatofighi et al. 2019, arXiv 1902.09630)

  Args:
    one, other: [..., 4] corners, broadcast against each other; neither box may be empty.
  """
  low, high = jnp.maximum(one[..., :2], other[..., :2]), jnp.minimum(one[..., 2:], other[..., 2:])
  shared = _area(jnp.concatenate([low, jnp.maximum(low, high)], axis=-1))
  union = _area(one) + _area(other) - shared
  low, high = jnp.minimum(one[..., :2], other[..., :2]), jnp.maximum(one[..., 2:], other[..., 2:])
  around = _area(jnp.concatenate([low, high], axis=-1))
  return shared / union - (around - union) / around


def _area(boxes: jax.Array) -> jax.Array:
  sides = boxes[..., 2:] - boxes[..., :2]
  return sides[..., 0] * sides[..., 1]
