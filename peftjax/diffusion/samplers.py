"""Samplers by diffusers' scheduler_config.json: DDPM (Ho, Jain, Abbeel 2020), DDIM (Song, Meng, Ermon 2021) and Euler's
method (Karras et al. 2022, algorithm 2 without churn).

With a model's output o for the sample x, each step of all three is

    x_0 = known_x x + known_o o, held within ±clip,   x' = to_x x + to_x_0 x_0 + to_o o + noise e,   e ~ N(0, 1)

so that a sampler is a table of coefficients, computed once in float64, and a whole sampling is one scan over its rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.diffusion.folder import INDEX, index_of, runs_as_stable_diffusion
from peftjax.diffusion.noise import Noise, one_of, read
from peftjax.errors import UserError, nearest
from peftjax.files import read_json
from peftjax.kinds import FLAG, Kind, number, shown, whole

FOLDER, FILE = "scheduler", "scheduler_config.json"
NAMES = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler"}

_SPACING = one_of("leading", "trailing", "linspace")
_OFFSET = whole(0, 2**16)
_CLIP = {"clip_sample": (FLAG, True), "clip_sample_range": (number(above=0.0), 1.0)}
# Class -> its fields beside those of the noise -> (kind, diffusers' default)
_OWN: dict[str, dict[str, tuple[Kind, Any]]] = {
  "DDPMScheduler": {
    "timestep_spacing": (_SPACING, "leading"), "steps_offset": (_OFFSET, 0), **_CLIP,
    "variance_type": (one_of("fixed_small", "fixed_small_log", "fixed_large"), "fixed_small"),
  },
  "DDIMScheduler": {
    "timestep_spacing": (_SPACING, "leading"), "steps_offset": (_OFFSET, 0), **_CLIP, "set_alpha_to_one": (FLAG, True),
  },
  "EulerDiscreteScheduler": {
    "timestep_spacing": (_SPACING, "linspace"), "steps_offset": (_OFFSET, 0),
    "final_sigmas_type": (one_of("zero", "sigma_min"), "zero"),
  },
}  # fmt: skip
# Class -> its fields that would make other steps -> the values with which they do not
_OFF: dict[str, dict[str, tuple[Any, ...]]] = {
  "DDPMScheduler": {"thresholding": (False,)},
  "DDIMScheduler": {"thresholding": (False,)},
  "EulerDiscreteScheduler": {
    "interpolation_type": ("linear",), "use_karras_sigmas": (False, None), "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None), "timestep_type": ("discrete",),
  },
}  # fmt: skip
_SMALLEST = 2.0**-24  # Euler's abar where there is no signal, so that sigma is finite


class Steps(NamedTuple):
  """The steps of one sampling, in their order.

  Attributes:
    timesteps: float32 [n], as the model is told them.
    scale: float32 [n], what the model sees is the sample times it.
    known_x, known_o, to_x, to_x_0, to_o, noise: float32 [n], as the module says.
  """

  timesteps: np.ndarray
  scale: np.ndarray
  known_x: np.ndarray
  known_o: np.ndarray
  to_x: np.ndarray
  to_x_0: np.ndarray
  to_o: np.ndarray
  noise: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sampler:
  """A sampler, as scheduler_config.json describes it.

  Attributes:
    noise: of the timesteps.
    kind: diffusers' name of its class.
    timestep_spacing, steps_offset: which timesteps are taken (Lin et al. 2023, table 2).
    clip: x_0 is held within ±clip; None: it is not.
    set_alpha_to_one: of DDIM: the last step goes to x_0; otherwise to the noise of timestep 0.
    variance_type: of DDPM, which noise is added.
    final_sigmas_type: of Euler, where the last step goes.
  """

  noise: Noise
  kind: str
  timestep_spacing: str = "leading"
  steps_offset: int = 0
  clip: float | None = None
  set_alpha_to_one: bool = True
  variance_type: str = "fixed_small"
  final_sigmas_type: str = "zero"

  @staticmethod
  def of(config: Mapping[str, Any], name: str = "", where: str = FILE) -> Sampler:
    """The sampler that a scheduler_config.json describes, or another one for the same noise.

    Args:
      name: one of `NAMES`, which takes of the file what it has itself, as diffusers' `from_config`; "": the file's own.
      where: the file, for errors.

    Raises:
      UserError: no such sampler; a value of another kind, or one that would make other steps.
    """
    said = str(config.get("_class_name", ""))
    if name and name not in NAMES:
      raise UserError(f"scheduler {name!r}; {nearest(name, NAMES)}")
    kind = NAMES.get(name, said)
    if kind not in _OWN:
      raise UserError(f"{where}: _class_name={shown(said)} is not sampled with here; name one of {', '.join(NAMES)}")
    for field, values in _OFF[kind].items():
      if field in config and config[field] not in values:
        raise UserError(f"{where}: {field}={shown(config[field])} is not computed here; expected {shown(values[0])}")
    found = read(config, _OWN[kind], where)
    bound, clips = found.pop("clip_sample_range", None), found.pop("clip_sample", False)
    return Sampler(Noise.of(config, where), kind, clip=bound if clips else None, **found)

  @property
  def is_random(self) -> bool:
    """Whether its steps draw noise."""
    return self.kind == "DDPMScheduler"

  def timesteps(self, count: int) -> np.ndarray:
    """[n] float64, descending: those of `count` steps.

    Raises:
      UserError: they are more than the noise has, or beyond its last.
    """
    total = self.noise.num_train_timesteps
    if not 1 <= count <= total:
      raise UserError(f"steps={count}: expected 1 to {total}, which the model was trained with")
    if self.timestep_spacing == "linspace":
      found: np.ndarray = np.linspace(0, total - 1, count)[::-1]
      found = found.astype(np.float32).astype(np.float64) if self.kind == NAMES["euler"] else found.round()
    elif self.timestep_spacing == "leading":
      found = np.arange(count)[::-1] * float(total // count) + self.steps_offset
    else:
      found = _trailing(total, count)
      if not _is_whole(found, count):
        near = min((one for one in range(1, total + 1) if _is_whole(_trailing(total, one), one)),
                   key=lambda one: (abs(one - count), one))  # fmt: skip
        raise UserError(f"steps={count}: timestep_spacing=trailing over {total} timesteps has {len(found)} for it, the "
                        f"last of them {found[-1]:g}; the nearest number that it has is {near}")  # fmt: skip
    if found[0] > total - 1:
      raise UserError(f"steps={count} with steps_offset={self.steps_offset} begin after timestep {total - 1}, the last")
    return found

  def start_scale(self, count: int) -> float:
    """The standard deviation of the noise that `count` steps begin from."""
    if self.kind != NAMES["euler"]:
      return 1.0
    sigma = float(self._sigmas(count)[0].max())
    return sigma if self.timestep_spacing in ("linspace", "trailing") else float(np.hypot(sigma, 1.0))

  def steps(self, count: int) -> Steps:
    """The coefficients of `count` steps.

    Raises:
      UserError: as `timesteps`; at a step nothing is left of the sample, and the model does not predict it.
    """
    found = self._euler(count) if self.kind == NAMES["euler"] else self._by_products(count)
    if not all(np.isfinite(one).all() for one in found):
      raise UserError(
        f"rescale_betas_zero_snr leaves no signal at the first step, where prediction_type="
        f"{self.noise.prediction_type!r} says nothing of the sample; expected v_prediction, or timestep_spacing=leading"
      )
    return Steps(*(np.asarray(one, np.float32) for one in found))

  def _by_products(self, count: int) -> Steps:
    """DDPM (equation 7) and DDIM (equation 12 with eta = 0), by abar before and after each step."""
    kept = self.noise.alphas_cumprod.astype(np.float64)
    times = self.timesteps(count).astype(int)
    is_ddim = self.kind == NAMES["ddim"]
    after = times - self.noise.num_train_timesteps // count if is_ddim else np.append(times[1:], -1)
    end = kept[0] if is_ddim and not self.set_alpha_to_one else 1.0
    now, then = kept[times], np.where(after >= 0, kept[after], end)
    with np.errstate(divide="ignore", invalid="ignore"):
      known_x, known_o = _known(self.noise.prediction_type, now)
      zero = np.zeros_like(now)
      if is_ddim:
        noise_x, noise_o = _predicted_noise(self.noise.prediction_type, now)
        left = np.sqrt(1 - then)
        return Steps(times, zero + 1, known_x, known_o, left * noise_x, np.sqrt(then), left * noise_o, zero)
      beta = 1 - now / then
      variance = np.maximum((1 - then) / (1 - now) * beta, 1e-20)
      spread = np.sqrt(beta if self.variance_type == "fixed_large" else variance)
      to_x_0 = np.sqrt(then) * beta / (1 - now)
      to_x = np.sqrt(now / then) * (1 - then) / (1 - now)
      return Steps(times, zero + 1, known_x, known_o, to_x, to_x_0, zero, np.where(times > 0, spread, 0.0))

  def _sigmas(self, count: int) -> tuple[np.ndarray, np.ndarray]:
    """sqrt((1 - abar) / abar) before and after each step, float64 [n]."""
    kept = self.noise.alphas_cumprod.astype(np.float64)
    if self.noise.rescale_betas_zero_snr:
      kept = np.append(kept[:-1], _SMALLEST)
    sigmas = np.sqrt((1 - kept) / kept)
    found = np.interp(self.timesteps(count), np.arange(len(sigmas)), sigmas)
    return found, np.append(found[1:], 0.0 if self.final_sigmas_type == "zero" else sigmas[0])

  def _euler(self, count: int) -> Steps:
    """x' = x + (x - x_0) / sigma · (sigma' - sigma), on samples that are x_t / sqrt(abar)."""
    now, then = self._sigmas(count)
    zero, step = np.zeros_like(now), then / now - 1
    to_x, to_x_0, to_o = zero + 1, zero, then - now
    if self.noise.prediction_type == "v_prediction":
      to_x, to_o = 1 + step * now**2 / (now**2 + 1), step * now / np.sqrt(now**2 + 1)
    elif self.noise.prediction_type == "sample":
      to_x, to_x_0, to_o = 1 + step, zero, -step
    return Steps(self.timesteps(count), 1 / np.sqrt(now**2 + 1), zero, zero, to_x, to_x_0, to_o, zero)

  def step(self, one: Steps, output: jax.Array, sample: jax.Array, noise: jax.Array | None = None) -> jax.Array:
    """The sample after a step, float32 [B, ...]; traceable.

    Args:
      one: a row of `steps`, scalars.
      output: the model's, for `sample` times `scale`.
      noise: e, of a sampler that `is_random`.
    """
    known = one.known_x * sample + one.known_o * output
    if self.clip is not None:
      known = jnp.clip(known, -self.clip, self.clip)
    after = one.to_x * sample + one.to_x_0 * known + one.to_o * output
    return after if noise is None else after + one.noise * noise


def _trailing(total: int, count: int) -> np.ndarray:
  """[n] as diffusers computes them, which may be one more, timestep -1, where a sum of floats ends just above 0."""
  return np.round(np.arange(total, 0, -total / count)) - 1


def _is_whole(timesteps: np.ndarray, count: int) -> bool:
  return len(timesteps) == count and bool(timesteps[-1] >= 0)


def _known(prediction: str, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """x_0 = a x + b o: (a, b)."""
  signal, spread = np.sqrt(kept), np.sqrt(1 - kept)
  if prediction == "epsilon":
    return 1 / signal, -spread / signal
  return (signal, -spread) if prediction == "v_prediction" else (np.zeros_like(kept), np.ones_like(kept))


def _predicted_noise(prediction: str, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """e = a x + b o: (a, b)."""
  signal, spread = np.sqrt(kept), np.sqrt(1 - kept)
  if prediction == "epsilon":
    return np.zeros_like(kept), np.ones_like(kept)
  return (spread, signal) if prediction == "v_prediction" else (1 / spread, -signal / spread)


def of_pipeline(folder: Path, name: str = "") -> Sampler:
  """The sampler of a pipeline's folder as its class in diffusers runs it.

  Args:
    name: as of `Sampler.of`.

  Raises:
    UserError: as `read_config` and `Sampler.of`; model_index.json names another class than the scheduler's file.
  """
  config, where = read_config(folder)
  listed = index_of(folder).get(FOLDER)
  kind = listed[1] if isinstance(listed, list) and len(listed) == 2 else None
  config = {"_class_name": kind, **config} if isinstance(kind, str) else config
  if not name and kind and kind != (said := config.get("_class_name")):
    raise UserError(f"{folder / INDEX} names the scheduler {shown(kind)}, and {FOLDER}/{FILE} {shown(said)}; "
                    f"name one of {', '.join(NAMES)}")  # fmt: skip
  found = Sampler.of(config, name, where)
  return dataclasses.replace(found, steps_offset=1, clip=None) if runs_as_stable_diffusion(folder) else found


def read_config(folder: Path) -> tuple[dict[str, Any], str]:
  """(scheduler_config.json of a pipeline's folder, the file's name).

  Raises:
    UserError: there is none, or it holds something else.
  """
  path = folder / FOLDER / FILE
  if not path.is_file():
    raise UserError(f"{folder} has no {FOLDER}/{FILE}, which says how much noise a timestep has")
  return read_json(path), str(path)
