"""C3A: Circular Convolution Adaptation (Chen et al. 2024, arXiv 2407.19342).

    y_m = (x W)_m + (1 / in) Σ_n x_n ⋆ w_mn        blocks of b inputs and outputs, w: [out / b, in / b, b]

⋆ is the circular correlation, (x ⋆ w)[j] = Σ_k x[k] w[(k - j) mod b], taken as a product of real Fourier transforms,
irfft(rfft(x) · conj(rfft(w))), in float32. The update is a matrix of circulant blocks, of full rank.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from peftjax import masks
from peftjax.errors import UserError, nearest
from peftjax.methods import targets as default_targets
from peftjax.methods.base import Call, Context, Leaves
from peftjax.methods.linear import LinearMethod, by_pattern
from peftjax.methods.oft import nearest_divisor
from peftjax.sites import Site

INITS = ("xavier_uniform", "kaiming_uniform", "gaussian", "zeros")


@dataclasses.dataclass(frozen=True, kw_only=True)
class C3A(LinearMethod):
  """Circular convolutions of blocks.

  Attributes:
    block_size: b; it divides every site's input and output size.
    block_size_pattern: name pattern -> b for modules that differ.
    init: xavier_uniform (as PEFT), kaiming_uniform, gaussian, or zeros, which starts as the base, bitwise.
  """

  name: ClassVar[str] = "c3a"
  leaf_names: ClassVar[tuple[str, ...]] = ("c3a_kernel",)
  patterns: ClassVar[tuple[str, ...]] = ("block_size_pattern",)
  learning_rate: ClassVar[float] = 1e-1

  block_size: int = 256
  block_size_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
  init: str = "xavier_uniform"

  def __post_init__(self) -> None:
    if self.init not in INITS:
      raise UserError(f"c3a.init: unknown {self.init!r}; {nearest(self.init, INITS)}")

  def bind(self, context: Context) -> Self:
    bound = super().bind(context)
    for site in bound.select(context):
      size = bound.settings(site.names[0])
      if any(features % size for features in site.shape):
        known = nearest_divisor(math.gcd(*site.shape), size)
        raise UserError(f"c3a.block_size: {size} does not divide {site.name}'s sizes {site.shape}; {known} does")
    return bound

  def default_targets(self, model_type: str) -> masks.Patterns:
    return default_targets.SQUARE.get(model_type, ()) or super().default_targets(model_type)

  def settings(self, name: str) -> int:
    """b at a module."""
    return int(by_pattern(self.block_size_pattern, name, self.block_size))

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del base
    size, (features_in, features_out) = self.settings(site.names[0]), site.shape
    shape = (features_out // size, features_in // size, size)
    if self.init == "zeros":
      return {"c3a_kernel": jnp.zeros(shape)}
    if self.init == "gaussian":
      return {"c3a_kernel": jax.random.normal(key, shape)}
    bound = (6.0 / (features_in + features_out)) ** 0.5 if self.init == "xavier_uniform" else features_in**-0.5
    return {"c3a_kernel": jax.random.uniform(key, shape, minval=-bound, maxval=bound)}

  def after(self, leaves: Leaves, x: jax.Array, y: jax.Array, site: Site, call: Call) -> jax.Array:
    size = self.settings(site.names[0])
    spectrum = jnp.fft.rfft(x.astype(jnp.float32).reshape(*x.shape[:-1], -1, size))
    product = jnp.einsum("...nf,mnf->...mf", spectrum, jnp.fft.rfft(leaves["c3a_kernel"]).conj())
    return y + (jnp.fft.irfft(product, size).reshape(y.shape) / site.shape[0]).astype(y.dtype)

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del base, shared
    kernel, size = leaves["c3a_kernel"], self.settings(site.names[0])
    shifts = (np.arange(size)[:, None] - np.arange(size)) % size  # [k, j]
    blocks = kernel[:, :, shifts]  # [m, n, k, j]
    return {"kernel": blocks.transpose(1, 2, 0, 3).reshape(site.shape) / site.shape[0]}
