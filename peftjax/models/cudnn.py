"""Attention on CUDA devices by cuDNN's fused kernel, which holds no weights and takes grouped heads as they are.

What it takes, and what falls back to the other backends (`reason`): it computes on Ampere and what came later, in
bfloat16 or float16, with heads of at most 256 numbers (128 before Hopper) in steps of 8, and neither drops nor caps
weights. Masks of any kind are given to it as a bias: padding on either side, segments, windows. Where the caller says
that no token sees a later one, the blocks above the diagonal are skipped as well. Its rule for `jax.vmap` takes no bias
that all heads share, so programs of many runs at once (`placement.mapped`) compute masked attention without it.

Shapes are in the names: B batch, L query length, S key length, H query heads, K key heads, D head size.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from peftjax.placement import current

_DTYPES = (jnp.bfloat16, jnp.float16)


def reason(
  q_BxLxHxD: jax.Array,
  k_BxSxKxD: jax.Array,
  mask: jax.Array | None,
  bias: jax.Array | None,
  softcap: float | None,
  drops: bool,
) -> str:
  """Why cuDNN cannot compute this attention; empty where it can."""
  size, length, slots = q_BxLxHxD.shape[-1], q_BxLxHxD.shape[1], k_BxSxKxD.shape[1]
  if not _has_cuda(current().platform):
    return "the device is not a CUDA device"
  if _capability() < 8.0:
    return f"the kernel is there from Ampere on (compute capability 8.0), and the device has {_capability()}"
  if q_BxLxHxD.dtype not in _DTYPES or k_BxSxKxD.dtype != q_BxLxHxD.dtype:
    return f"it computes in bfloat16 or float16, not {q_BxLxHxD.dtype}"
  largest = 256 if _capability() >= 9.0 else 128
  if size % 8 or size > largest:
    return f"heads of {size} numbers: at most {largest} in steps of 8 are possible"
  if softcap is not None:
    return "the logits are capped"
  if drops:
    return "weights are dropped, with a key of this step"
  if bias is not None and jax.__version_info__ < (0, 11):
    return "before jax 0.11 a bias that is masked gets no gradient"
  if (mask is not None or bias is not None) and (length % 2 or slots % 2):
    return f"a mask or bias of {length} x {slots}: even sizes are possible"
  if current().mapped and (mask is not None or bias is not None):
    return "a mask or bias of many runs at once"
  if length == 1:
    return "one query"
  return ""


def attention(
  q_BxLxHxD: jax.Array,
  k_BxSxKxD: jax.Array,
  v_BxSxKxD: jax.Array,
  mask: jax.Array | None,
  bias: jax.Array | None,
  scale: float,
  causal: bool,
) -> jax.Array:
  """[B, L, H, D], as `peftjax.models.layers.attention`; `reason` must be empty.

  Args:
    causal: the mask lets no token see a later one, and L = S.
  """
  batch, length, slots = q_BxLxHxD.shape[0], q_BxLxHxD.shape[1], k_BxSxKxD.shape[1]
  if causal and mask is not None and mask.shape[0] == 1 < batch:
    mask = None  # nothing in it depends on the rows: it is the diagonal
  if mask is not None:
    mask = jnp.broadcast_to(mask, (*mask.shape[:2], length, slots))
  if bias is not None:
    bias = jnp.broadcast_to(bias, (*bias.shape[:2], length, slots)).astype(q_BxLxHxD.dtype)
  return jax.nn.dot_product_attention(
    q_BxLxHxD, k_BxSxKxD, v_BxSxKxD, bias, mask, scale=scale, is_causal=causal, implementation="cudnn"
  )


def _has_cuda(platform: str) -> bool:
  if platform not in ("gpu", "cuda") or jax.default_backend() != "gpu":
    return False
  return "cuda" in jax.devices()[0].client.platform_version.lower()


@functools.cache
def _capability() -> float:
  return float(jax.devices()[0].compute_capability)
