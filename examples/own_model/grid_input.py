"""An input: the planes as they are; in training the maze is mirrored, and the moves with it."""

from __future__ import annotations

import jax
import numpy as np
from grid_source import MOVES, SIDE

from peftjax.data import Input

LEFT, RIGHT = list(MOVES).index("left"), list(MOVES).index("right")


class Planes(Input):
  """All mazes have one size, so that nothing is measured."""

  settings = {"mirror": True}

  def spec(self, rows, length):
    planes = jax.ShapeDtypeStruct((rows, SIDE, SIDE, 3), np.dtype(np.float32))
    return {"planes": planes, "best": jax.ShapeDtypeStruct((rows, len(MOVES)), np.dtype(np.int32))}

  def encode(self, example, rng):
    planes, best = example["planes"], example["best"]
    if rng is not None and self.options.mirror and rng.random() < 0.5:
      planes, best = planes[:, ::-1].copy(), best.copy()
      best[[LEFT, RIGHT]] = best[[RIGHT, LEFT]]
    return {"planes": planes, "best": best}
