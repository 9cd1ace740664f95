"""LoftQ: LoRA that starts from what quantisation rounded away (Li et al. 2023, arXiv 2310.08659).

    Q_t = q(W - s·A_{t-1} B_{t-1}),    s·A_t B_t = SVD_r(W - Q_t)        t = 1 ... T,  s·A_0 B_0 = 0

Algorithm 1: quantisation and the best product of rank r take turns, so that Q_T + s·A_T B_T is near W. With T = 1, the
default here as in PEFT, the base is q(W) as without LoftQ; more iterations also change it, each module's alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from peftjax.quantize import Quantized, dequantize, like


def loftq(
  original: jax.Array, quantized: Quantized, rank: int, scale: float, iterations: int
) -> tuple[Quantized, jax.Array, jax.Array]:
  """(Q_T, A_T [in, r], B_T [r, out]) of a kernel.

  Args:
    original: W, float32 [in, out].
    quantized: q(W), which also says how to quantise.
  """
  kernel = quantized
  a, b = principal_product(original - dequantize(kernel), rank, scale)
  for _ in range(iterations - 1):
    kernel = like(quantized, original - scale * (a @ b))
    a, b = principal_product(original - dequantize(kernel), rank, scale)
  return kernel, a, b


def principal_product(matrix: jax.Array, rank: int, scale: float) -> tuple[jax.Array, jax.Array]:
  """A [in, r] and B [r, out] with s·A B the best approximation of a matrix by rank r, the singular values halved."""
  u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
  root = jnp.sqrt(s[:rank] / scale)
  return u[:, :rank] * root, root[:, None] * vt[:rank]
