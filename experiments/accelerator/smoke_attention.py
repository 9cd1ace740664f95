"""Attention's backends on this device against a float32 computation on it, with gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.accelerator.distance import distance
from peftjax.models import cudnn
from peftjax.models.layers import attention
from peftjax.placement import mapped

MASKS = ("none", "right", "left", "causal", "causal-right", "causal-left", "segments", "window")


def check(checks: Any) -> None:
  """Every mask at several sizes, then what falls back."""
  sizes = [(64, 12, 12, 64), (128, 8, 2, 64), (256, 4, 4, 128), (130, 6, 3, 80), (512, 4, 1, 256)]
  checks.attempt("bias with a gradient", compare_bias)
  checks.attempt("vmapped", compare_mapped)
  for index, mask in enumerate(MASKS):
    for step in (0, 1, 3):  # every mask with three of the sizes
      size = sizes[(index + step) % len(sizes)]
      checks.attempt(f"{mask} {size}", compare, mask, *size)
  checks.attempt("odd length", compare, "right", 127, 4, 4, 64)
  checks.attempt("soft cap", compare, "causal", 128, 4, 4, 64, 20.0)


def mask_of(kind: str, rows: int, length: int) -> jax.Array | None:
  """bool[B or 1, 1, L or 1, S]; every query sees a key."""
  at = np.arange(length)
  lengths = np.array([length - 3 * (row % 4) * length // 16 for row in range(rows)])
  right = (at[None] < lengths[:, None])[:, None, None]
  left = right[..., ::-1]
  diagonal = (at[None, :] <= at[:, None])[None, None]
  segment = (at[None] * (1 + np.arange(rows)[:, None] % 3)) // max(length // 3, 1)
  masks: dict[str, Any] = {
    "none": None,
    "right": right,
    "left": left,
    "causal": diagonal,
    "causal-right": diagonal & right,
    "causal-left": diagonal & left,
    "segments": diagonal & (segment[:, None, :, None] == segment[:, None, None, :]),
    "window": np.broadcast_to(
      diagonal & (at[None, :] > at[:, None] - length // 4)[None, None], (rows, 1, length, length)
    ),
  }
  return None if masks[kind] is None else jnp.asarray(masks[kind])


def inputs(rows: int, length: int, heads: int, kv_heads: int, size: int) -> tuple[jax.Array, ...]:
  """Queries, keys, values and a gradient of the output, float32."""
  keys = jax.random.split(jax.random.key(length + heads), 4)
  shapes = [(rows, length, heads, size), *2 * [(rows, length, kv_heads, size)], (rows, length, heads, size)]
  return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


def compare(kind: str, length: int, heads: int, kv_heads: int, size: int, softcap: float | None = None) -> Any:
  """Errors of "auto" and "xla" in bfloat16 against float32, of the output and of all gradients."""
  mask, causal = mask_of(kind, 4, length), kind not in ("none", "right", "left")
  q, k, v, cotangent = inputs(4, length, heads, kv_heads, size)
  if kind in ("causal-left",):  # rows of padding before the text see nothing; their outputs are nobody's
    seen = mask.any(axis=(1, 3))[..., None, None]
    cotangent = cotangent * seen
  else:
    seen = jnp.ones((4, length, 1, 1))

  def run(q: Any, k: Any, v: Any, backend: str, dtype: Any) -> Any:
    def scored(q: Any, k: Any, v: Any) -> Any:
      low = [x.astype(dtype) for x in (q, k, v)]
      y = attention(*low, mask, softcap=softcap, backend=backend, causal=causal) * seen
      return (y.astype(jnp.float32) * cotangent).sum(), y.astype(jnp.float32)

    (_, y), grads = jax.value_and_grad(scored, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return y, grads

  def all_three(q: Any, k: Any, v: Any) -> Any:
    with jax.default_matmul_precision("highest"):
      wanted = run(q, k, v, "xla", jnp.float32)
    return wanted, run(q, k, v, "auto", jnp.bfloat16), run(q, k, v, "xla", jnp.bfloat16)

  wanted, found, plain = jax.device_get(jax.jit(all_three)(q, k, v))
  low = q.astype(jnp.bfloat16)
  why = cudnn.reason(low, k.astype(jnp.bfloat16), mask, None, softcap, False)
  errors = {"auto": distance(found, wanted), "xla": distance(plain, wanted)}
  return errors["auto"] < max(2 * errors["xla"], 0.01), {"backend": why or "cudnn", **errors}


def compare_bias() -> Any:
  """A relative bias that trains, with right padding: what `jax.nn` gives on cuDNN against float32."""
  q, k, v, cotangent = inputs(4, 128, 4, 4, 64)
  bias, mask = jax.random.normal(jax.random.key(9), (1, 4, 128, 128)), mask_of("right", 4, 128)

  def run(implementation: str, dtype: Any) -> Any:
    def scored(q: Any, k: Any, v: Any, bias: Any) -> Any:
      low = [x.astype(dtype) for x in (q, k, v, bias)]
      spread = jnp.broadcast_to(mask, (4, 1, 128, 128))
      y = jax.nn.dot_product_attention(
        *low[:3],
        bias=low[3],
        mask=spread,
        scale=1.0,
        implementation=implementation,  # type: ignore[arg-type]
      )
      return (y.astype(jnp.float32) * cotangent).sum(), y

    (_, y), grads = jax.jit(jax.value_and_grad(scored, argnums=(0, 1, 2, 3), has_aux=True))(q, k, v, bias)
    return jax.device_get((y.astype(jnp.float32), grads))

  with jax.default_matmul_precision("highest"):
    wanted = run("xla", jnp.float32)
  found, plain = run("cudnn", jnp.bfloat16), run("xla", jnp.bfloat16)
  figures = {"cudnn": distance(found, wanted), "xla": distance(plain, wanted)}
  figures |= {"bias_cudnn": distance(found[1][3], wanted[1][3]), "bias_xla": distance(plain[1][3], wanted[1][3])}
  return figures["cudnn"] < max(2 * figures["xla"], 0.01), figures


def compare_mapped() -> Any:
  """Two runs at once, as a sweep computes them, against one after the other."""
  mask = mask_of("right", 4, 64)
  pairs = [inputs(4, 64, 4, 4, 64), inputs(4, 64, 4, 4, 64)]
  q, k, v = (jnp.stack([pair[index] for pair in pairs]).astype(jnp.bfloat16) for index in range(3))

  def scored(q: Any, k: Any, v: Any) -> Any:
    return attention(q, k, v, mask).astype(jnp.float32).sum()

  with mapped():
    both = jax.jit(jax.vmap(jax.grad(scored, argnums=(0, 1, 2))))(q, k, v)
  single = [jax.jit(jax.grad(scored, argnums=(0, 1, 2)))(q[i], k[i], v[i]) for i in range(2)]
  figure = max(distance(jax.tree.map(lambda x, at=i: x[at], both), single[i]) for i in range(2))
  return figure < 0.01, {"distance": figure}
