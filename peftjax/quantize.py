"""Quantised arrays: int8, int4 and nf4 in blocks, as `qwix.QArray` leaves of the parameter tree.

    W ≈ s_block · code            int8, int4: code = round(W / s), s = absmax of the block / 127.5 or 7.5
    W ≈ s_block · q[code]         nf4: s = absmax of the block, q the 16 quantiles of arXiv 2305.14314, appendix E

A block is 64 consecutive inputs of one output. The scales of nf4 are quantised again (section 3, "double
quantization"): int8 in blocks of 256 around the mean of the layer's scales, 4.13 bits a parameter in all.

int8 is a `QArray`. Codes of 4 bits are a `Packed`, two a byte, which becomes a `QArray` inside the layer: as one, each
code would take a byte of the host's memory, and programs compiled ahead of time for a CPU refuse 4-bit arguments, whose
arrays do not report the layout that they have.

  before   {"query": {"kernel": f32[6, 384, 384]}}
  after    {"query": {"kernel": Packed}} with the arrays kernel.qvalue: uint8[6, 192, 384],
           kernel.scale.deviation.qvalue: int8[6, 6, 384], kernel.scale.deviation.scale: f32[6, 6, 2],
           kernel.scale.mean: f32[6, 1, 1]
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeAlias

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
NF4 = np.array(
  [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
  ],
  np.float32,
)  # fmt: skip
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
    """The scales, float32, in the shape of the deviations."""
    return self.mean + qwix.dequantize(self.deviation)


@flax.struct.dataclass
class Packed:
  """4-bit codes, those of inputs 2i and 2i + 1 in the low and the high half of byte i.

  Attributes:
    qvalue: uint8 [..., rows / 2 rounded up, out].
    scale: float32 [..., in / block, out], or that as a `CentredScale`.
    rows: inputs.
    qtype: "int4" (two's complement) or "nf4" (an index of the codebook).
  """

  qvalue: jax.Array
  scale: Any
  rows: int = flax.struct.field(pytree_node=False)
  qtype: str = flax.struct.field(pytree_node=False)

  shape = property(lambda self: (*self.qvalue.shape[:-2], self.rows, self.qvalue.shape[-1]))
  ndim = property(lambda self: self.qvalue.ndim)
  dtype = property(lambda self: self.scale.dtype)

  def unpacked(self) -> QArray:
    """The same with a byte for each code, and with plain scales."""
    halves = jnp.stack([self.qvalue & 15, self.qvalue >> 4], axis=-2)
    codes = halves.reshape(*self.qvalue.shape[:-2], -1, self.qvalue.shape[-1])[..., : self.rows, :]
    if self.qtype == "int4":
      codes = (codes ^ 8).astype(jnp.int8) - 8
    scale = self.scale.value() if isinstance(self.scale, CentredScale) else self.scale
    return QArray(codes, scale, qtype="nf4" if self.qtype == "nf4" else jnp.int8)


def _packed(array: QArray, kind: str) -> Packed:
  codes = array.qvalue.astype(jnp.int8).astype(jnp.uint8) & 15
  rows = codes.shape[-2]
  codes = jnp.pad(codes, [(0, 0)] * (codes.ndim - 2) + [(0, rows % 2), (0, 0)])
  pairs = codes.reshape(*codes.shape[:-2], -1, 2, codes.shape[-1])
  return Packed(pairs[..., 0, :] | pairs[..., 1, :] << 4, array.scale, rows, kind)


Quantized: TypeAlias = QArray | Packed


def is_quantized(leaf: Any) -> bool:
  """Whether a leaf of the parameter tree is quantised."""
  return isinstance(leaf, QArray | Packed)


def kind_of(leaf: Any) -> str:
  """What a leaf is stored as: "nf4", "int8", or the dtype of an array."""
  if not is_quantized(leaf):
    return str(np.dtype(leaf.dtype).name)
  return leaf.qtype if isinstance(leaf, Packed) else "int8"


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
def quantize(kernel: jax.Array, kind: str, block: int = 64) -> Quantized:
  """A kernel [..., in, out] as one of `KINDS`; leading axes are layers, each by itself.

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
  if kind == "int8":
    return dataclasses.replace(found, qtype=jnp.int8)
  if kind == "int4":
    return _packed(found, kind)
  mean = found.scale.mean(axis=(-2, -1), keepdims=True)
  deviation: QArray = qwix.quantize(
    found.scale - mean,
    jnp.int8,
    channelwise_axes=tuple(range(lead + 1)),
    tiled_axes={lead + 1: _scale_block(features_out)},
  )
  scale: Any = CentredScale(dataclasses.replace(deviation, qtype=jnp.int8), mean)
  return _packed(dataclasses.replace(found, scale=scale), kind)


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
  stored: QArray = leaf.unpacked() if isinstance(leaf, Packed) else leaf
  if stored.qtype != "nf4":
    return qwix.dequantize(stored).astype(dtype)
  scale = stored.scale[..., :, None, :]
  values = _nf4_values(stored.qvalue).reshape(*scale.shape[:-2], -1, scale.shape[-1])
  return (values * scale).reshape(stored.qvalue.shape).astype(dtype)


def _nf4_values(codes: jax.Array) -> jax.Array:
  """float32: the codebook's value of every code, by four selections, one for each of its bits.

  Looking them up in a table is a gather of single numbers, which the compiler for TPUs spends minutes on. `lax.select`,
  because the masks of `jnp.where`, a jit of its own, were kept for the backward pass.
  """
  found = [jnp.full(codes.shape, value, jnp.float32) for value in NF4]
  for bit in range(4):
    is_set = (codes >> bit & 1) != 0
    found = [jax.lax.select(is_set, high, low) for low, high in zip(found[::2], found[1::2])]
  return found[0]


def like(leaf: Quantized, kernel: jax.Array) -> Quantized:
  """A float kernel quantised as `leaf` is; the kernel may lack its leading axes."""
  return quantize(kernel, kind=kind_of(leaf), block=leaf.shape[-2] // leaf.scale.shape[-2])


@jax.jit
def relative_error(kernel: jax.Array, leaf: Quantized) -> jax.Array:
  """‖W - W_q‖ / ‖W‖ in the Frobenius norm, of the worst of the layers, float32 scalar; 0 where W is 0."""
  kernel = kernel.astype(jnp.float32)
  lost, whole = (jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1))) for x in (kernel - dequantize(leaf), kernel))
  return jnp.max(lost / jnp.where(whole > 0, whole, 1.0))


def tree_bytes(tree: Any) -> int:
  """Bytes of a tree's arrays or shapes."""
  return sum(-(-int(np.prod(x.shape, dtype=np.int64)) * _bits(x.dtype) // 8) for x in jax.tree.leaves(tree))


def _bits(dtype: Any) -> int:
  if jnp.issubdtype(dtype, jax.dtypes.extended):
    return int(dtype.itemsize) * 8
  return int(jax.dtypes.itemsize_bits(np.dtype(dtype)))
