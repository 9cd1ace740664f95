"""BOFT: Orthogonal Finetuning by Butterfly Factorization (Liu et al. 2023, arXiv 2311.06243).

    y = ((x B_m ... B_1) W) ⊙ s + b,  B_i = P_i diag(R_i1 ... R_id) P_iᵀ,  R = (I - S)(I + S)⁻¹,  S = (Z - Zᵀ) / 2

x meets each butterfly factor as a permutation and small blocks. Z starts at zero and s at one, so the model starts as
the base, bitwise. At a convolution the kernel is rotated, [in · window, out].
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.errors import UserError
from peftjax.methods.base import MAY_BE_ZERO, Call, Context, Leaves
from peftjax.methods.linear import LinearMethod, dropout_mask
from peftjax.methods.oft import cayley, nearest_divisor
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class BOFT(LinearMethod):
  """A product of sparse rotations of the input, and a scale of each output.

  Attributes:
    boft_block_size: size of a block where `boft_block_num` is 0; it divides the input size.
    boft_block_num: blocks a factor; 0: by `boft_block_size`.
    boft_n_butterfly_factor: m. PEFT has one on machines without its CUDA kernel, whatever is asked for.
    dropout: rate at which a block is the identity while training.
  """

  name: ClassVar[str] = "boft"
  kinds: ClassVar[tuple[str, ...]] = ("linear", "conv")
  windows: ClassVar[tuple[int, ...]] = (2,)
  leaf_names: ClassVar[tuple[str, ...]] = ("boft_r", "boft_s")
  learning_rate: ClassVar[float] = 1e-3

  boft_block_size: int = dataclasses.field(default=4, metadata=MAY_BE_ZERO)
  boft_block_num: int = 0
  boft_n_butterfly_factor: int = 1
  dropout: float = 0.0

  def bind(self, context: Context) -> Self:
    bound = super().bind(context)
    if self.boft_block_num:
      bound = dataclasses.replace(bound, boft_block_size=0)
    for site in bound.select(context):
      bound._check(site)
    return bound

  def _check(self, site: Site) -> None:
    features_in = site.shape[0]
    for field in ("boft_block_size", "boft_block_num"):
      wanted = getattr(self, field)
      if wanted and features_in % wanted:
        known = nearest_divisor(features_in, wanted)
        raise UserError(f"boft.{field}: {wanted} does not divide {site.name}'s input size {features_in}; {known} does")
    blocks, size = self._blocks(site)
    halvings = self.boft_n_butterfly_factor - 1
    if halvings and (size % 2 or blocks % 2**halvings):
      raise UserError(
        f"boft.boft_n_butterfly_factor: {halvings + 1} factors need an even block size and blocks that are a multiple "
        f"of {2**halvings}, and {site.name} has {blocks} blocks of {size}"
      )

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del key, base
    blocks, size = self._blocks(site)
    return {
      "boft_r": jnp.zeros((self.boft_n_butterfly_factor, blocks, size, size)),
      "boft_s": jnp.ones(site.shape[1]),
    }

  def acts_by_delta(self, site: Site) -> bool:
    return site.kind == "conv" and self.dropout == 0.0

  def before(self, leaves: Leaves, x: jax.Array, site: Site, call: Call) -> jax.Array:
    return x if site.kind == "conv" else self._rotate(x, self._kept(leaves, call).astype(x.dtype), site)

  def after(self, leaves: Leaves, x: jax.Array, y: jax.Array, site: Site, call: Call) -> jax.Array:
    if site.kind == "conv":
      kernel = call.base("kernel")
      change = self._changed(kernel, self._kept(leaves, call), leaves["boft_s"], site) - kernel
      return y + call.product(x.astype(y.dtype), change.astype(y.dtype))
    bias = call.base("bias")
    product = y if bias is None else y - bias.astype(y.dtype)
    return y + product * (leaves["boft_s"] - 1.0).astype(y.dtype)

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del shared
    return {
      "kernel": self._changed(base["kernel"], _rotations(leaves["boft_r"]), leaves["boft_s"], site) - base["kernel"]
    }

  def _kept(self, leaves: Leaves, call: Call) -> jax.Array:
    """The rotations, while training some of them the identity."""
    rotations = _rotations(leaves["boft_r"])
    if not self.dropout:
      return rotations
    kept = dropout_mask(call, (*rotations.shape[:2], 1, 1), self.dropout)
    return kept * rotations + (1.0 - kept) * jnp.eye(rotations.shape[-1])

  def _changed(self, kernel: jax.Array, rotations: jax.Array, scale: jax.Array, site: Site) -> jax.Array:
    return self._rotate(jnp.eye(site.shape[0]), rotations, site) @ kernel * scale

  def _blocks(self, site: Site) -> tuple[int, int]:
    """(number, size)."""
    size = self.boft_block_size or site.shape[0] // self.boft_block_num
    return site.shape[0] // size, size

  def _rotate(self, x: jax.Array, rotations: jax.Array, site: Site) -> jax.Array:
    """x B_m ... B_1."""
    blocks, size = self._blocks(site)
    for index in reversed(range(self.boft_n_butterfly_factor)):
      order = butterfly(site.shape[0], blocks, size, index)
      permuted = x[..., np.argsort(order)].reshape(*x.shape[:-1], blocks, size)
      x = jnp.einsum("...nk,nkc->...nc", permuted, rotations[index]).reshape(x.shape)[..., order]
    return x


def butterfly(features: int, blocks: int, size: int, index: int) -> np.ndarray:
  """The permutation P_i: in each of blocks / 2ⁱ groups, half-blocks at even places come before those at odd ones.

  >>> butterfly(8, 4, 2, 1).tolist()
  [0, 2, 1, 3, 4, 6, 5, 7]
  """
  order = np.arange(features)
  if index == 0:
    return order
  halves = order.reshape(blocks // 2**index, -1, size // 2)
  return np.concatenate([halves[:, 0::2], halves[:, 1::2]], axis=1).reshape(-1)


def _rotations(boft_r: jax.Array) -> jax.Array:
  return cayley(0.5 * (boft_r - jnp.swapaxes(boft_r, -1, -2)))
