"""HRA: Householder Reflection Adaptation (Yuan et al. 2024, arXiv 2405.17484).

    y = (x H) W + b,  H = (I - 2 u_r u_rᵀ) ... (I - 2 u_1 u_1ᵀ),  ‖u_i‖ = 1        U: [in, r]

In compact WY form H = I - U Tᵀ Uᵀ with T⁻¹ = ½ I + triu(Uᵀ U, 1) (Schreiber and Van Loan 1989): two thin products and
an r×r triangular solve, and H is never formed. With r even the u come in equal pairs at first, whose reflections
cancel, so the model starts as the base up to rounding; with r odd it does not, as in PEFT. At a convolution the kernel
is reflected, [in · window, out].
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from peftjax.methods.base import Call, Leaves
from peftjax.methods.linear import LinearMethod, uniform_by_fan
from peftjax.placement import matmul
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class HRA(LinearMethod):
  """A chain of reflections of the input.

  Attributes:
    rank: r, reflections.
    apply_gs: make the u orthogonal by Gram-Schmidt; H = I - 2 U Uᵀ, which is never the identity.
  """

  name: ClassVar[str] = "hra"
  kinds: ClassVar[tuple[str, ...]] = ("linear", "conv")
  windows: ClassVar[tuple[int, ...]] = (2,)
  leaf_names: ClassVar[tuple[str, ...]] = ("hra_u",)
  learning_rate: ClassVar[float] = 1e-3

  rank: int = 8
  apply_gs: bool = False

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del base
    features_in = site.shape[0]
    if self.rank % 2 or self.apply_gs:
      # Gram-Schmidt on equal pairs would divide zero by zero.
      return {"hra_u": uniform_by_fan(key, (features_in, self.rank), self.rank)}
    half = uniform_by_fan(key, (features_in, self.rank // 2), self.rank // 2)
    return {"hra_u": jnp.repeat(half, 2, axis=1)}

  def acts_by_delta(self, site: Site) -> bool:
    return site.kind == "conv"

  def before(self, leaves: Leaves, x: jax.Array, site: Site, call: Call) -> jax.Array:
    u, t = self._factors(leaves)
    return x - matmul(matmul(matmul(x, u.astype(x.dtype)), t.astype(x.dtype)), u.T.astype(x.dtype))

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    u, t = self._factors(leaves)
    return {"kernel": -u @ (t @ (u.T @ base["kernel"]))}

  def _factors(self, leaves: Leaves) -> tuple[jax.Array, jax.Array]:
    """U: [in, r] with unit columns and Tᵀ: [r, r], of H = I - U Tᵀ Uᵀ."""
    u, identity = leaves["hra_u"], jnp.eye(self.rank)
    if self.apply_gs:
      return _orthonormal(u), 2.0 * identity
    u = u / jnp.linalg.norm(u, axis=0)
    inverse = 0.5 * identity + jnp.triu(u.T @ u, 1)
    return u, jax.scipy.linalg.solve_triangular(inverse.T, identity, lower=True)


def _orthonormal(u: jax.Array) -> jax.Array:
  """The columns made orthonormal one after the other, by modified Gram-Schmidt."""
  done: list[jax.Array] = []
  for column in u.T:
    for other in done:
      column = column - (other @ column) * other
    done.append(column / jnp.linalg.norm(column))
  return jnp.stack(done, axis=1)
