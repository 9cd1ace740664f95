"""Noise and samplers against diffusers' schedulers on torch."""

from __future__ import annotations

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_snr

from peftjax.diffusion.noise import Noise
from peftjax.diffusion.samplers import NAMES, Sampler
from peftjax.errors import UserError

BETAS = {
  "linear": {},
  "stable diffusion": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
  "cosine": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 280},
  "no signal left": {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
  "trained": {"trained_betas": np.linspace(0.001, 0.3, 50).tolist(), "num_train_timesteps": 50},
}
CASES = [
  ("ddpm", {}, "epsilon"),
  ("ddpm", {**BETAS["cosine"], "timestep_spacing": "trailing", "variance_type": "fixed_large"}, "sample"),
  ("ddpm", {**BETAS["no signal left"], "clip_sample": False, "timestep_spacing": "linspace"}, "v_prediction"),
  ("ddpm", {**BETAS["trained"], "variance_type": "fixed_small_log", "clip_sample_range": 2.0}, "epsilon"),
  ("ddim", {**BETAS["stable diffusion"], "set_alpha_to_one": False, "steps_offset": 1}, "epsilon"),
  ("ddim", {**BETAS["no signal left"], "timestep_spacing": "trailing", "clip_sample": False}, "v_prediction"),
  ("ddim", {**BETAS["cosine"], "timestep_spacing": "linspace"}, "sample"),
  ("euler", {**BETAS["stable diffusion"], "steps_offset": 1, "timestep_spacing": "leading"}, "epsilon"),
  ("euler", {**BETAS["no signal left"], "timestep_spacing": "trailing"}, "v_prediction"),
  ("euler", {**BETAS["cosine"], "final_sigmas_type": "sigma_min"}, "sample"),
  ("euler", {}, "epsilon"),
]  # fmt: skip


def both(name, settings, prediction):
  """(ours, diffusers'), ours read from diffusers' own scheduler_config.json."""
  theirs = getattr(diffusers, NAMES[name])(prediction_type=prediction, **settings)
  return Sampler.of(dict(theirs.config) | {"_class_name": NAMES[name]}), theirs


def assert_near(found, wanted, scale=1.0, most=1e-6):
  """Within `most` of the largest value; of `scale` where that is larger, such as the noise that a difference is of."""
  found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
  assert np.abs(found - wanted).max() <= most * max(np.abs(wanted).max(), scale)


@pytest.mark.parametrize("betas", BETAS)
def test_the_noise_of_every_timestep(betas):
  theirs = diffusers.DDPMScheduler(**BETAS[betas])
  assert_near(Noise.of(theirs.config).alphas_cumprod, theirs.alphas_cumprod)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noise_is_added_and_velocity_and_weights_are_theirs(prediction):
  theirs = diffusers.DDPMScheduler(prediction_type=prediction, **BETAS["stable diffusion"])
  ours = Noise.of(theirs.config)
  random = np.random.default_rng(0)
  samples, noise = random.normal(size=(2, 3, 2, 5, 4)).astype("f4")
  times = np.array([0, 431, 999])
  three = [torch.tensor(one) for one in (samples, noise, times)]
  assert_near(ours.add(samples, noise, times), theirs.add_noise(*three))
  wanted = {"epsilon": three[1], "sample": three[0], "v_prediction": theirs.get_velocity(*three)}[prediction]
  assert_near(ours.target(samples, noise, times), wanted)
  snr = compute_snr(theirs, three[2])
  assert np.allclose(ours.snr(times), snr, rtol=1e-5)
  if prediction != "sample":  # the weights of diffusers' train_dreambooth.py, which knows no other kinds
    weights = torch.stack([snr, 5.0 * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    weights = weights / (snr if prediction == "epsilon" else snr + 1)
    assert np.allclose(ours.min_snr_weights(jnp.asarray(times), 5.0), weights, rtol=1e-5)


@pytest.mark.parametrize(("name", "settings", "prediction"), CASES)
@pytest.mark.parametrize("count", [7, 10])
def test_every_step(name, settings, prediction, count):
  ours, theirs = both(name, settings, prediction)
  theirs.set_timesteps(count)
  steps = ours.steps(count)
  assert_near(steps.timesteps, theirs.timesteps)
  assert_near(ours.start_scale(count), theirs.init_noise_sigma)
  random = np.random.default_rng(count)
  for row, timestep in enumerate(theirs.timesteps):
    one = type(steps)(*(column[row] for column in steps))
    sample = (random.normal(size=(2, 3, 5, 4)) * ours.start_scale(count)).astype("f4")
    output, noise = random.normal(size=(2, 2, 3, 5, 4)).astype("f4")
    assert_near(one.scale * sample, theirs.scale_model_input(torch.tensor(sample), timestep))
    drawn = torch.tensor(noise)
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(diffusers.schedulers.scheduling_ddpm, "randn_tensor", lambda *args, drawn=drawn, **kwargs: drawn)
      wanted = theirs.step(torch.tensor(output), timestep, torch.tensor(sample)).prev_sample
    assert_near(ours.step(one, output, sample, noise if ours.is_random else None), wanted, np.abs(sample).max())


def test_another_sampler_takes_what_it_has_itself():
  """Of a folder of Stable Diffusion 1.5, whose file names PNDM."""
  pndm = diffusers.PNDMScheduler(
    skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False, **BETAS["stable diffusion"]
  )
  config = dict(pndm.config) | {"_class_name": "PNDMScheduler", "clip_sample": False}
  theirs = diffusers.DDIMScheduler.from_config(config)
  ours = Sampler.of(config, "ddim")
  assert ours == Sampler.of(dict(theirs.config) | {"_class_name": "DDIMScheduler"})
  with pytest.raises(UserError, match=r'_class_name="PNDMScheduler" is not sampled with here; name one of ddpm, ddim'):
    Sampler.of(config)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"use_karras_sigmas": True}, r"use_karras_sigmas=true is not computed here; expected false"),
    ({"beta_schedule": "laplace"}, r'beta_schedule="laplace": expected one of linear, scaled_linear'),
    ({"prediction_type": "flow"}, r'prediction_type="flow": expected one of epsilon'),
    ({"beta_end": 3}, r"beta_end=3: expected a number above 0 and below 1"),
    ({"timestep_spacing": "tailing"}, r'timestep_spacing="tailing": expected one of leading, trailing, linspace'),
    ({"trained_betas": [0.1]}, r"trained_betas has 1 values; expected num_train_timesteps=1000"),
  ],
)
def test_what_is_not_obeyed_is_refused(settings, message):
  with pytest.raises(UserError, match=message):
    Sampler.of({"_class_name": "EulerDiscreteScheduler", **settings})


@pytest.mark.parametrize("name", NAMES)
def test_trailing_steps_that_end_before_the_first(name):
  """diffusers takes one more step there, at timestep -1."""
  ours, theirs = both(name, {"timestep_spacing": "trailing"}, "epsilon")
  theirs.set_timesteps(61)
  assert len(theirs.timesteps) == 62 and theirs.timesteps[-1] == -1
  with pytest.raises(UserError, match="steps=61: .*has 62 for it, the last of them -1; .*number that it has is 60"):
    ours.steps(61)
  theirs.set_timesteps(60)
  assert_near(ours.timesteps(60), theirs.timesteps)


def test_weights_where_no_signal_is_left():
  """SNR 0 at the last timestep: min(SNR, gamma) / SNR has the limit 1."""
  weights = Noise(rescale_betas_zero_snr=True).min_snr_weights(jnp.array([0, 999]), 5.0)
  assert 0 < weights[0] < 1e-3 and weights[1] == 1


def test_steps_that_there_are_not():
  ours = Sampler.of({"_class_name": "DDIMScheduler", "steps_offset": 1})
  with pytest.raises(UserError, match="steps=1001: expected 1 to 1000"):
    ours.steps(1001)
  with pytest.raises(UserError, match="steps=1000 with steps_offset=1 begin after timestep 999"):
    ours.steps(1000)
  flawed = Sampler.of({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})
  with pytest.raises(UserError, match="leaves no signal at the first step"):
    flawed.steps(10)
