"""torch's CPU generator in numpy, for adapters whose frozen random parts are written as a seed alone.

Hugging Face PEFT redraws FourierFT's locations, VeRA's projections and others from a seed when it loads an adapter, so
the same numbers are needed where torch is absent. torch draws from MT19937 (Matsumoto and Nishimura 1998): a float32 in
[0, 1) is the low 24 bits of one word, and a permutation is Fisher and Yates' shuffle from the front with a word a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

Generator = np.random.MT19937


def drawn(draw: Callable[[], Mapping[str, np.ndarray]], shapes: Mapping[str, tuple[int, ...]], key: Any) -> Any:
  """What `draw` gives, as arrays; nothing is drawn where only shapes are asked for.

  Args:
    draw: name -> float32 array.
    shapes: of these.
    key: of the method's leaves: a tracer where the program is traced, and then drawn if it ever runs.
  """
  if isinstance(key, jax.core.Tracer):
    return jax.pure_callback(draw, {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()})
  return {name: jnp.asarray(array) for name, array in draw().items()}


def generator(seed: int) -> Generator:
  """`torch.Generator().manual_seed(seed)`."""
  bits = np.random.MT19937()
  bits._legacy_seeding(seed & 0xFFFFFFFF)
  return bits


def uniform(bits: Generator, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
  """`torch.empty(shape).uniform_(low, high, generator=...)`: float32[shape]."""
  words = bits.random_raw(int(np.prod(shape))).astype(np.uint32)
  unit = (words & np.uint32(2**24 - 1)).astype(np.float64) * 2.0**-24
  span = np.float32(np.float32(high) - np.float32(low))
  # float64 stands for torch's fused multiply-add: one rounding at the end.
  return (unit * np.float64(span) + np.float64(np.float32(low))).astype(np.float32).reshape(shape)


def uniform_bfloat16(bits: Generator, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
  """The same of a bfloat16 tensor, whose draws that round up to `high` become `low`: bfloat16[shape]."""
  drawn = uniform(bits, shape, low, high).astype(ml_dtypes.bfloat16)
  return np.where(drawn == ml_dtypes.bfloat16(high), ml_dtypes.bfloat16(low), drawn)


def kaiming_uniform(bits: Generator, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
  """Uniform within ±√(6 / fan_in), float32[shape]: He et al. 2015 (arXiv 1502.01852)."""
  bound = 3.0**0.5 * (2.0**0.5 / fan_in**0.5)
  return uniform(bits, shape, -bound, bound)


def permutation(bits: Generator, size: int, count: int) -> np.ndarray:
  """The first `count` of `torch.randperm(size, generator=...)`, int64[count], in time and memory of O(count)."""
  words = bits.random_raw(count)
  moved: dict[int, int] = {}  # positions whose value is not their index
  drawn = np.empty(count, np.int64)
  for index in range(count):
    other = index + int(words[index] & 0xFFFFFFFF) % (size - index)
    drawn[index] = moved.get(other, other)
    moved[other] = moved.get(index, index)
  return drawn
