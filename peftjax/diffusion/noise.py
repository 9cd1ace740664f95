"""Noise by timestep, as scheduler_config.json describes it: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e, where
abar_t is the product of 1 - beta_s over s <= t (Ho, Jain, Abbeel 2020, equation 4).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.errors import UserError
from peftjax.kinds import FLAG, Kind, Unfit, list_of, number, shown, value_of, whole

MOST_TIMESTEPS = 2**16
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def one_of(*names: str) -> Kind:
  """One of some names."""

  def check(value: Any) -> str:
    if value not in names:
      raise Unfit("one of " + ", ".join(names))
    return str(value)

  return Kind(check)


_BETA = number(above=0.0, below=1.0)
FIELDS: dict[str, tuple[Kind, Any]] = {
  "num_train_timesteps": (whole(1, MOST_TIMESTEPS), 1000),
  "beta_start": (_BETA, 0.0001),
  "beta_end": (_BETA, 0.02),
  "beta_schedule": (one_of("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"), "linear"),
  "trained_betas": (list_of(_BETA, MOST_TIMESTEPS).or_null, None),
  "prediction_type": (one_of(*PREDICTIONS), "epsilon"),
  "rescale_betas_zero_snr": (FLAG, False),
}
"""What scheduler_config.json says of the noise, for training and for every sampler -> (kind, diffusers' default)."""

# Classes whose files may leave out what they say of betas, and what says something of them.
_WITH_BETAS = frozenset(
  {
    "DDPM",
    "DDPMParallel",
    "DDIM",
    "DDIMParallel",
    "DDIMInverse",
    "PNDM",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "HeunDiscrete",
    "LMSDiscrete",
    "KDPM2Discrete",
    "KDPM2AncestralDiscrete",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "UniPCMultistep",
    "DEISMultistep",
  }
)
_SAYING = ("beta_start", "beta_end", "beta_schedule", "trained_betas")
# Fields with which a class computes other noise from its betas, or none of them -> the value with which it does not.
_OTHER = {"use_flow_sigmas": False, "snr_shift_scale": 1.0}


@dataclasses.dataclass(frozen=True)
class Noise:
  """The noise of each timestep, and what the model predicts of it.

  Attributes: those of diffusers' scheduler_config.json.
  """

  num_train_timesteps: int = 1000
  beta_start: float = 0.0001
  beta_end: float = 0.02
  beta_schedule: str = "linear"
  trained_betas: tuple[float, ...] | None = None
  prediction_type: str = "epsilon"
  rescale_betas_zero_snr: bool = False

  @staticmethod
  def of(config: Mapping[str, Any], where: str = "scheduler_config.json") -> Noise:
    """The noise that a scheduler_config.json describes, whatever sampler it is for.

    Args:
      where: the file, for errors.

    Raises:
      UserError: a value of another kind, or noise that follows from no betas.
    """
    _check_betas(config, where)
    found = Noise(**read(config, FIELDS, where))
    if found.trained_betas is not None and len(found.trained_betas) != found.num_train_timesteps:
      raise UserError(f"{where}: trained_betas has {len(found.trained_betas)} values; expected num_train_timesteps="
                      f"{found.num_train_timesteps}")  # fmt: skip
    return found

  @functools.cached_property
  def alphas_cumprod(self) -> np.ndarray:
    """abar, float32 [T], as diffusers computes it: products are added up in float64 from alphas in float32."""
    alphas = np.float32(1) - _betas(self)
    if self.rescale_betas_zero_snr:
      alphas = _to_zero_signal(alphas)
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32)

  def add(self, samples: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
    """x_t [B, ...] of the samples x_0 [B, ...] with the noise [B, ...] of the timesteps, integers [B]."""
    signal, spread = self._shares(timesteps, samples)
    return signal * samples + spread * noise

  def target(self, samples: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
    """What a right prediction is: the noise, the samples, or the velocity sqrt(abar) e - sqrt(1 - abar) x_0 (Salimans
    and Ho 2022, appendix D)."""
    if self.prediction_type == "epsilon":
      return noise
    if self.prediction_type == "sample":
      return samples
    signal, spread = self._shares(timesteps, samples)
    return signal * noise - spread * samples

  def snr(self, timesteps: jax.Array) -> jax.Array:
    """abar / (1 - abar) [B] float32 at the timesteps."""
    kept = jnp.asarray(self.alphas_cumprod)[timesteps]
    return kept / (1 - kept)

  def min_snr_weights(self, timesteps: jax.Array, gamma: float) -> jax.Array:
    """[B] float32: the loss's weights min(SNR, gamma) / SNR of predicted noise, over SNR + 1 of predicted velocity, and
    min(SNR, gamma) of predicted samples (Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy",
    2023, section 3.4)."""
    snr = self.snr(timesteps)
    capped = jnp.minimum(snr, gamma)
    if self.prediction_type == "sample":
      return capped
    if self.prediction_type == "epsilon":
      return jnp.minimum(1.0, gamma / snr)  # of no signal, SNR 0, the limit 1
    return capped / (snr + 1)

  def _shares(self, timesteps: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """sqrt(abar) and sqrt(1 - abar), shaped to multiply `like`."""
    kept = jnp.asarray(self.alphas_cumprod)[timesteps].reshape(-1, *[1] * (like.ndim - 1))
    return jnp.sqrt(kept), jnp.sqrt(1 - kept)


def read(config: Mapping[str, Any], fields: Mapping[str, tuple[Kind, Any]], where: str) -> dict[str, Any]:
  """The fields of a file, checked, with the defaults of those that it does not hold.

  Raises:
    UserError: a value of another kind.
  """
  return {name: value_of(where, name, config[name], kind) if name in config else default
          for name, (kind, default) in fields.items()}  # fmt: skip


def _check_betas(config: Mapping[str, Any], where: str) -> None:
  said, stem = config.get("_class_name"), str(config.get("_class_name")).removesuffix("Scheduler")
  if said is not None and stem not in _WITH_BETAS and all(config.get(name) is None for name in _SAYING):
    raise UserError(f"{where}: _class_name={shown(said)}, and nothing is said of betas; noise by betas was expected, "
                    "as DDPMScheduler's")  # fmt: skip
  for name, plain in _OTHER.items():
    if config.get(name, plain) not in (plain, None):
      raise UserError(f"{where}: {name}={shown(config[name])}: noise that does not follow from betas alone; "
                      f"expected {shown(plain)}")  # fmt: skip


def _betas(noise: Noise) -> np.ndarray:
  """[T] float32."""
  count, first, last = noise.num_train_timesteps, noise.beta_start, noise.beta_end
  if noise.trained_betas is not None:
    return np.array(noise.trained_betas, np.float32)
  kinds: dict[str, Callable[[], np.ndarray]] = {
    "linear": lambda: np.linspace(first, last, count),
    "scaled_linear": lambda: np.linspace(first**0.5, last**0.5, count).astype(np.float32) ** 2,
    "sigmoid": lambda: 1 / (1 + np.exp(-np.linspace(-6, 6, count))) * (last - first) + first,
    "squaredcos_cap_v2": lambda: _cosine(count),
  }
  return kinds[noise.beta_schedule]().astype(np.float32)


def _cosine(count: int, most: float = 0.999) -> np.ndarray:
  """Betas for abar(t) = cos²((t / T + 0.008) / 1.008 · π / 2) (Nichol and Dhariwal 2021, equation 17)."""
  kept = [math.cos((step / count + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(count + 1)]
  return np.array([min(1 - after / before, most) for before, after in itertools.pairwise(kept)])


def _to_zero_signal(alphas: np.ndarray) -> np.ndarray:
  """Alphas whose last product is 0 and whose first is as it was (Lin et al., "Common Diffusion Noise Schedules and
  Sample Steps are Flawed", 2023, algorithm 1)."""
  root = np.sqrt(np.cumprod(alphas, dtype=np.float64).astype(np.float32))
  root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
  kept = root**2
  return np.concatenate([kept[:1], kept[1:] / kept[:-1]])
