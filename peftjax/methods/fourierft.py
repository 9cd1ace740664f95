"""FourierFT (Gao et al. 2024, arXiv 2405.03003): a few learned coefficients of the update's 2-D Fourier spectrum.

    ΔW[o, i] = s · Re ifft2(F)[o, i],  F zero but for F[p_k, q_k] = c_k        (torch's [out, in])

The frozen locations (p_k, q_k) are the same for all sites of one shape. The update is never formed: with u the inverse
transform of x along features, the output's spectrum at p_k gains c_k · u[q_k], and a second transform gives
x ΔWᵀ = s · Re ifft(spectrum), O(d log d + n) a token instead of O(d²).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from peftjax import masks
from peftjax.errors import UserError, nearest
from peftjax.methods import targets as default_targets
from peftjax.methods import torch_random
from peftjax.methods.base import Call, Leaves
from peftjax.methods.linear import LinearMethod, by_pattern
from peftjax.sites import Site

INITS = ("normal", "zeros")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FourierFT(LinearMethod):
  """Sparse spectra at frozen locations.

  Attributes:
    n_frequency: coefficients a site.
    scaling: s.
    random_loc_seed: torch's seed for the locations; the same ones as PEFT's.
    n_frequency_pattern: name pattern -> n_frequency for modules that differ.
    init: normal (N(0, 1), as published) or zeros, which starts as the base, bitwise.
  """

  name: ClassVar[str] = "fourierft"
  leaf_names: ClassVar[tuple[str, ...]] = ("fourierft_spectrum",)
  buffer_names: ClassVar[tuple[str, ...]] = ("fourierft_indices",)
  patterns: ClassVar[tuple[str, ...]] = ("n_frequency_pattern",)
  learning_rate: ClassVar[float] = 3e-2

  n_frequency: int = 1000
  scaling: float = 150.0
  random_loc_seed: int = 777
  n_frequency_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
  init: str = "normal"

  def __post_init__(self) -> None:
    if self.init not in INITS:
      raise UserError(f"fourierft.init: unknown {self.init!r}; {nearest(self.init, INITS)}")

  def default_targets(self, model_type: str) -> masks.Patterns:
    return default_targets.SQUARE.get(model_type, ()) or super().default_targets(model_type)

  def settings(self, name: str) -> int:
    """n_frequency at a module."""
    return int(by_pattern(self.n_frequency_pattern, name, self.n_frequency))

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del base
    count, (features_in, features_out) = self.settings(site.names[0]), site.shape
    if count > features_in * features_out:
      raise UserError(f"fourierft.n_frequency: {count} exceeds the {features_in * features_out} weights of {site.name}")
    bits = torch_random.generator(self.random_loc_seed)
    flat = torch_random.permutation(bits, features_in * features_out, count)
    indices = np.stack([flat // features_in, flat % features_in])
    spectrum = jnp.zeros(count) if self.init == "zeros" else jax.random.normal(key, (count,))
    return {"fourierft_spectrum": spectrum, "fourierft_indices": jnp.asarray(indices, jnp.int32)}

  def after(self, leaves: Leaves, x: jax.Array, y: jax.Array, site: Site, call: Call) -> jax.Array:
    features_in, features_out = site.shape
    (rows, rows_sign), (columns, columns_sign) = (
      _half(indices, size) for indices, size in zip(leaves["fourierft_indices"], (features_out, features_in))
    )
    # What lies beyond the middle is the conjugate of what lies before it, so that half of each spectrum is enough; an
    # entry away from the middle and from zero stands for itself and for its conjugate.
    share = jnp.where((rows == 0) | (2 * rows == features_out), 1.0, 0.5) * (self.scaling / features_in)
    weights_N2 = (leaves["fourierft_spectrum"] * share)[:, None] * jnp.stack(
      [jnp.ones_like(share), -rows_sign * columns_sign], axis=1
    )
    # Features first: a frequency's row of all tokens is contiguous, and is gathered and added as one.
    spectrum_FxT = jnp.fft.rfft(x.astype(jnp.float32).reshape(-1, features_in).T, axis=0)
    parts_Fx2xT = jnp.stack([spectrum_FxT.real, spectrum_FxT.imag], axis=1)
    chosen_Nx2xT = parts_Fx2xT[columns] * weights_N2[:, :, None]
    sums_Fx2xT = jax.ops.segment_sum(chosen_Nx2xT, rows, num_segments=features_out // 2 + 1)
    update_FxT = jnp.fft.irfft(jax.lax.complex(sums_Fx2xT[:, 0], sums_Fx2xT[:, 1]), features_out, axis=0)
    return y + update_FxT.T.reshape(y.shape).astype(y.dtype)

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del base, shared
    rows, columns = leaves["fourierft_indices"]
    spectrum = jnp.zeros(site.shape).at[columns, rows].set(leaves["fourierft_spectrum"])
    return {"kernel": self.scaling * jnp.fft.ifft2(spectrum).real}


def _half(indices: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
  """Places in the first half of a spectrum, and -1 for those that are the conjugate of what is asked for."""
  is_before = 2 * indices <= size
  return jnp.where(is_before, indices, size - indices), jnp.where(is_before, 1.0, -1.0)
