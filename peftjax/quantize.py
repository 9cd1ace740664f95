"""Quantised arrays: int8, int4 and nf4 in blocks, as `qwix.QArray` leaves of the parameter tree.

    W ≈ s_block · code            int8, int4: code = round(W / s), s = absmax of the block / 127.5 or 7.5
    W ≈ s_block · q[code]         nf4: s = absmax of the block, q the 16 quantiles of arXiv 2305.14314, appendix E

A block is 64 consecutive inputs of one output. The scales of nf4 are quantised again (section 3, "double
quantization"): int8 in blocks of 256 around the mean of the layer's scales, 4.13 bits a parameter in all. A `QArray`
whose `scale` is a `CentredScale` says that; every other field is as qwix has it, with the codes packed two a byte by
XLA's own 4-bit types.

  before   {"query": {"kernel": f32[6, 384, 384]}}
  after    {"query": {"kernel": QArray}} with the arrays kernel.qvalue: uint4[6, 384, 384],
           kernel.scale.deviation.qvalue: int8[6, 6, 384], kernel.scale.deviation.scale: f32[6, 6, 2],
           kernel.scale.mean: f32[6, 1, 1]
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import qwix
from qwix import QArray

from peftjax.errors import UserError

KINDS = ("int8", "int4", "nf4")
SCALE_BLOCK = 256  # of nf4's scales, along the outputs
_SMALLEST_BLOCK = 8
_QTYPES: dict[str, Any] = {"int8": jnp.int8, "int4": jnp.int4, "nf4": "nf4"}


@flax.struct.dataclass
class CentredScale:
  """Scales stored as their mean, float32 [..., 1, 1], and int8 deviations from it, [..., in / block, out]."""

  deviation: QArray
  mean: jax.Array

  shape = property(lambda self: self.deviation.shape)
  ndim = property(lambda self: self.deviation.ndim)
  dtype = property(lambda self: self.mean.dtype)

  def value(self) -> jax.Array:
    """The scales, float32."""
    return self.mean + qwix.dequantize(self.deviation)


def is_quantized(leaf: Any) -> bool:
  """Whether a leaf of the parameter tree is quantised."""
  return isinstance(leaf, QArray)


def kind_of(leaf: Any) -> str:
  """What a leaf is stored as: "nf4", "int8", or the dtype of an array."""
  if not is_quantized(leaf):
    return str(np.dtype(leaf.dtype).name)
  return "nf4" if leaf.qtype == "nf4" else str(np.dtype(leaf.qtype).name)


def block_of(size: int, block: int) -> int:
  """The largest block up to `block` that divides an axis.

  Raises:
    UserError: only blocks too small to be worth their scales do.

  >>> block_of(384, 64), block_of(19, 64), block_of(100, 64)
  (64, 19, 50)
  """
  found = next(one for one in range(min(block, size), 0, -1) if size % one == 0)
  if found < min(_SMALLEST_BLOCK, size):
    raise UserError(f"{size} inputs cannot be divided into blocks of {_SMALLEST_BLOCK} to {block}")
  return found


@functools.partial(jax.jit, static_argnames=("kind", "block"))
def quantize(kernel: jax.Array, kind: str, block: int = 64) -> QArray:
  """A kernel [..., in, out] as a `QArray` of one of `KINDS`; leading axes are layers, each by itself.

  Raises:
    UserError: as `block_of`.
  """
  *layers, features_in, features_out = kernel.shape
  lead = len(layers)
  found: QArray = qwix.quantize(
    kernel.astype(jnp.float32),
    _QTYPES[kind],
    channelwise_axes=(*range(lead), lead + 1),
    tiled_axes={lead: block_of(features_in, block)},
  )
  if kind != "nf4":
    return dataclasses.replace(found, qtype=_QTYPES[kind])
  mean = found.scale.mean(axis=(-2, -1), keepdims=True)
  deviation: QArray = qwix.quantize(
    found.scale - mean,
    jnp.int8,
    channelwise_axes=tuple(range(lead + 1)),
    tiled_axes={lead + 1: _scale_block(features_out)},
  )
  return dataclasses.replace(found, scale=CentredScale(dataclasses.replace(deviation, qtype=jnp.int8), mean))


def _scale_block(size: int) -> int:
  try:
    return block_of(size, SCALE_BLOCK)
  except UserError:
    return size  # a row of scales without good divisors is one block


def dequantize(leaf: Any, dtype: Any = jnp.float32) -> jax.Array:
  """A quantised leaf as an array of a dtype; any other array in that dtype."""
  if not is_quantized(leaf):
    array: jax.Array = leaf.astype(dtype)
    return array
  if isinstance(leaf.scale, CentredScale):
    leaf = dataclasses.replace(leaf, scale=leaf.scale.value())
  return qwix.dequantize(leaf).astype(dtype)


def like(leaf: QArray, kernel: jax.Array) -> QArray:
  """A float kernel quantised as `leaf` is; the kernel may lack its leading axes."""
  return quantize(kernel, kind=kind_of(leaf), block=leaf.shape[-2] // leaf.scale.shape[-2])


@jax.jit
def relative_error(kernel: jax.Array, leaf: QArray) -> jax.Array:
  """‖W - W_q‖ / ‖W‖ in the Frobenius norm, of the worst of the layers, float32 scalar; 0 where W is 0."""
  kernel = kernel.astype(jnp.float32)
  lost, whole = (jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1))) for x in (kernel - dequantize(leaf), kernel))
  return jnp.max(lost / jnp.where(whole > 0, whole, 1.0))


def tree_bytes(tree: Any) -> int:
  """Bytes of a tree's arrays or shapes, two 4-bit values a byte."""
  return sum(-(-int(np.prod(x.shape, dtype=np.int64)) * _bits(x.dtype) // 8) for x in jax.tree.leaves(tree))


def _bits(dtype: Any) -> int:
  if jnp.issubdtype(dtype, jax.dtypes.extended):
    return int(dtype.itemsize) * 8
  return int(jax.dtypes.itemsize_bits(np.dtype(dtype)))
