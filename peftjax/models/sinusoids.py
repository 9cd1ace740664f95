"""Positions that are computed and not learned, though checkpoints store them."""

from __future__ import annotations

import math

import numpy as np


def sinusoids(length: int, size: int) -> np.ndarray:
  """float32 [length, size]: sines and then cosines of positions, of wavelengths from 2π to 20000π.

  Vaswani et al. 2017 (arXiv 1706.03762), section 3.5, with the halves side by side as Whisper has them.
  """
  steps = np.arange(size // 2, dtype=np.float32) * -np.float32(math.log(10_000) / (size // 2 - 1))
  angles = np.arange(length, dtype=np.float32)[:, None] * np.exp(steps)[None]
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
