"""How far arrays are apart."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def distance(found: Any, wanted: Any) -> float:
  """‖found - wanted‖ / ‖wanted‖ over all leaves of two trees, in float64; infinite where something is not finite."""
  ours = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(found)]
  theirs = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(wanted)]
  if len(ours) != len(theirs) or not all(np.isfinite(leaf).all() for leaf in ours):
    return float("inf")
  apart = sum(float(np.square(a - b).sum()) for a, b in zip(ours, theirs, strict=True))
  size = sum(float(np.square(b).sum()) for b in theirs)
  return (apart / size) ** 0.5 if size else apart**0.5
