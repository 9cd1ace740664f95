"""Whole samplings against diffusers' StableDiffusionPipeline on torch, from the same noise."""

from __future__ import annotations

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import peftjax
from peftjax import image_generation as images
from peftjax.data.inputs.pipeline import Pipeline
from peftjax.diffusion.samplers import NAMES
from tests.oracles import pipelines

PROMPTS = ["a photo of sks dog", "a red cat"]


def sampled(folder, name, steps, guidance, starts, negative):
  plan = images.plan_of(folder, name, steps, guidance)
  model, reads = peftjax.load(folder), Pipeline(folder)
  run = images.make_sampling(model.forward, plan)
  return run(model.params, reads.ids(PROMPTS), reads.ids([negative] * 2), starts, jnp.arange(2))


@pytest.mark.parametrize(
  ("name", "guidance", "prediction"),
  [
    ("ddim", 7.5, "epsilon"),
    ("euler", 4.0, "epsilon"),
    pytest.param("euler", 7.5, "v_prediction", marks=pytest.mark.slow),
    pytest.param("ddim", 1.0, "v_prediction", marks=pytest.mark.slow),
  ],
)
def test_ten_steps_with_guidance(name, guidance, prediction):
  made, folder = pipelines.pipeline(prediction)
  scheduler = getattr(diffusers, NAMES[name]).from_pretrained(folder, subfolder="scheduler")
  theirs = diffusers.StableDiffusionPipeline(
    **{**made.components, "scheduler": scheduler}, requires_safety_checker=False
  )
  theirs.set_progress_bar_config(disable=True)
  starts = np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype("f4")
  with torch.no_grad():
    wanted = theirs(PROMPTS, num_inference_steps=10, guidance_scale=guidance, negative_prompt=["blue"] * 2,
                    latents=torch.tensor(starts), output_type="np").images  # fmt: skip
  found = sampled(folder, name, 10, guidance, starts, "blue")
  assert wanted.std() > 0.02
  np.testing.assert_allclose(np.asarray(found).transpose(0, 2, 3, 1), wanted, atol=1e-4)
