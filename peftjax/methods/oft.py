"""OFT: Orthogonal Finetuning (Qiu et al. 2023, arXiv 2306.07280), on the input side as in OFTv2 (arXiv 2506.19847).

    y = (x R) W + b,  R = diag(R₁ ... R_n),  R_k = (I + Q_k)(I - Q_k)⁻¹,  Q_k = -Q_kᵀ        Q_k: [block, block]

x is rotated block by block, so W is never touched. The inverse is Neumann's series cut off, I + 2Q + 2Q² + 2Q³ + Q⁴ for
five terms, or exact on request. Q starts at zero, so the model starts as the base, bitwise. At a convolution the kernel
is rotated, [in · window, out].
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from peftjax import masks
from peftjax.methods.base import MAY_BE_ZERO, Call, Context, Leaves
from peftjax.methods.linear import LinearMethod
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class OFT(LinearMethod):
  """Rotations of the input's blocks.

  Attributes:
    rank: number of blocks; 0: by `oft_block_size`.
    oft_block_size: size of a block where `rank` is 0. A number or size that does not divide becomes the nearest that
      does.
    coft: keep the norm of each Q within `eps` / √blocks.
    eps: of `coft`.
    block_share: one Q for all blocks.
    use_cayley_neumann: Neumann's series instead of the inverse.
    num_cayley_neumann_terms: its length.
  """

  name: ClassVar[str] = "oft"
  kinds: ClassVar[tuple[str, ...]] = ("linear", "conv")
  windows: ClassVar[tuple[int, ...]] = (2,)
  leaf_names: ClassVar[tuple[str, ...]] = ("oft_r",)
  learning_rate: ClassVar[float] = 1e-3

  rank: int = 0
  oft_block_size: int = dataclasses.field(default=32, metadata=MAY_BE_ZERO)
  coft: bool = False
  eps: float = 6e-5
  block_share: bool = False
  use_cayley_neumann: bool = True
  num_cayley_neumann_terms: int = 5

  def bind(self, context: Context) -> Self:
    bound = super().bind(context)
    return dataclasses.replace(bound, oft_block_size=0) if self.rank else bound

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del key, base
    blocks, size = self._blocks(site)
    return {"oft_r": jnp.zeros((1 if self.block_share else blocks, size * (size - 1) // 2))}

  def acts_by_delta(self, site: Site) -> bool:
    return site.kind == "conv"

  def before(self, leaves: Leaves, x: jax.Array, site: Site, call: Call) -> jax.Array:
    blocks, size = self._blocks(site)
    rotations = self._rotations(leaves, site).astype(x.dtype)
    return jnp.einsum("...nk,nkc->...nc", x.reshape(*x.shape[:-1], blocks, size), rotations).reshape(x.shape)

  def transform(self, optimizer: optax.GradientTransformation, total_steps: int) -> optax.GradientTransformation:
    """With `coft` every update ends where the constraint holds."""
    del total_steps
    return _constrained(optimizer, self.eps) if self.coft else optimizer

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del shared
    blocks, size = self._blocks(site)
    kernel = base["kernel"]
    rotated = jnp.einsum("nkc,nco->nko", self._rotations(leaves, site), kernel.reshape(blocks, size, -1))
    return {"kernel": rotated.reshape(kernel.shape) - kernel}

  def _blocks(self, site: Site) -> tuple[int, int]:
    """(number, size)."""
    features_in = site.shape[0]
    if self.rank:
      blocks = nearest_divisor(features_in, self.rank)
      return blocks, features_in // blocks
    size = nearest_divisor(features_in, self.oft_block_size)
    return features_in // size, size

  def _rotations(self, leaves: Leaves, site: Site) -> jax.Array:
    """[blocks, size, size]."""
    blocks, size = self._blocks(site)
    vectors = leaves["oft_r"]
    if self.coft:
      vectors = vectors + jax.lax.stop_gradient(_within(vectors, self.eps) - vectors)
    rotations = cayley(_skew(vectors, size), self.num_cayley_neumann_terms if self.use_cayley_neumann else 0)
    return jnp.broadcast_to(rotations, (blocks, size, size))


def nearest_divisor(size: int, wanted: int) -> int:
  """The divisor of `size` that is nearest to `wanted`, the smaller of two.

  >>> nearest_divisor(20, 3), nearest_divisor(768, 32), nearest_divisor(20, 64)
  (2, 32, 20)
  """
  return min((d for d in range(1, size + 1) if size % d == 0), key=lambda d: (abs(d - wanted), d))


def cayley(skew: jax.Array, terms: int = 0) -> jax.Array:
  """Rotations [..., n, n] from skew-symmetric matrices Q.

  terms = 0 gives (I - Q)(I + Q)⁻¹, as PEFT has it: the transpose of what the series, I + 2Q + 2Q² + ... , tends to.
  """
  identity = jnp.eye(skew.shape[-1], dtype=skew.dtype)
  if terms == 0:
    # X (I + Q) = I - Q, transposed: Qᵀ = -Q.
    return jnp.swapaxes(jnp.linalg.solve(identity - skew, identity + skew), -1, -2)
  if terms == 1:
    return jnp.broadcast_to(identity, skew.shape)
  series, power = identity + 2.0 * skew, skew
  if terms == 2:
    return series
  for _ in range(2, max(terms - 1, 3)):
    power = power @ skew
    series = series + 2.0 * power
  return series + power @ skew


def _skew(vectors: jax.Array, size: int) -> jax.Array:
  """[n, size, size] with the vectors [n, size (size - 1) / 2] above the diagonal, row by row."""
  rows, columns = np.triu_indices(size, 1)
  upper = jnp.zeros((vectors.shape[0], size, size), vectors.dtype).at[:, rows, columns].set(vectors)
  return upper - jnp.swapaxes(upper, -1, -2)


def _within(vectors: jax.Array, eps: float) -> jax.Array:
  """Each row scaled down so that its skew-symmetric matrix has a norm of at most eps / √rows."""
  limit = eps / vectors.shape[-2] ** 0.5
  norm = jnp.sqrt(2.0 * jnp.sum(jnp.square(vectors), axis=-1, keepdims=True))
  return jnp.where(norm <= limit, vectors, vectors * (limit / jnp.maximum(norm, limit)))


def _constrained(inner: optax.GradientTransformation, eps: float) -> optax.GradientTransformation:
  def update(gradients: masks.Tree, state: optax.OptState, params: masks.Tree) -> tuple[masks.Tree, optax.OptState]:
    updates, state = inner.update(gradients, state, params)
    flat, old = masks.flatten(updates), masks.flatten(params)
    for name in flat:
      if name.endswith(".oft_r"):
        flat[name] = _within(old[name] + flat[name], eps) - old[name]
    return masks.unflatten(flat), state

  return optax.GradientTransformation(inner.init, update)
