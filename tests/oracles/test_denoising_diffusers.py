"""The loss of denoising against the formulas of diffusers' train_dreambooth.py, computed by its models on torch from
the same noise and timesteps."""

from __future__ import annotations

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_snr

import peftjax
from peftjax import tasks
from peftjax.data.inputs.pipeline import Pipeline
from tests.oracles import pipelines


def batch_of(folder, rows=3, priors=True):
  """Pictures with captions, and others beside them; the last row only fills the batch."""
  random, reads = np.random.default_rng(0), Pipeline(folder)
  pixels = random.uniform(-1, 1, size=(2, rows, 3, pipelines.SIDE, pipelines.SIDE)).astype("f4")
  weight = np.ones(rows, "f4")
  weight[-1] = 0
  batch = {"pixel_values": pixels[0], "input_ids": reads.ids(["a photo of sks dog", "a red cat", ""][:rows]),
           "weight": weight, "index": np.arange(rows, dtype="i4")}  # fmt: skip
  if priors:
    batch |= {"prior_pixel_values": pixels[1], "prior_input_ids": reads.ids(["a photo of dog"] * rows)}
  return batch


def theirs(made, task, batch, key, gamma):
  """Instance and class examples are one batch, halved after the denoiser; each half's loss is a mean."""
  first, second = jax.random.split(key)
  rows = int(batch["weight"].sum())
  pixels, ids = (
    np.stack([batch[name], batch[f"prior_{name}"]], axis=1).reshape(-1, *batch[name].shape[1:])
    for name in ("pixel_values", "input_ids")
  )
  scheduler = diffusers.DDPMScheduler.from_config(made.scheduler.config)
  shape = (len(pixels), 4, 8, 8)
  drawn = torch.tensor(np.asarray(jax.random.normal(first, shape)))
  timesteps, noise = (torch.tensor(np.asarray(one)) for one in task.draw(second, jnp.zeros(shape)))
  with torch.no_grad():
    latent = made.vae.encode(torch.tensor(pixels)).latent_dist
    latents = (latent.mean + latent.std * drawn) * made.vae.config.scaling_factor
    noisy = scheduler.add_noise(latents, noise, timesteps)
    states = made.text_encoder(torch.tensor(ids).long())[0]
    predicted = made.unet(noisy, timesteps, states).sample
  target = noise
  if scheduler.config.prediction_type == "v_prediction":
    target = scheduler.get_velocity(latents, noise, timesteps)
  losses = torch.nn.functional.mse_loss(predicted, target, reduction="none").mean(dim=(1, 2, 3))
  if gamma:
    snr = compute_snr(scheduler, timesteps)
    weights = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    losses = losses * weights / (snr + (scheduler.config.prediction_type == "v_prediction"))
  return losses[0 : 2 * rows : 2].mean(), losses[1 : 2 * rows : 2].mean()


@pytest.mark.parametrize(("prediction", "gamma"), [("epsilon", 0.0), ("v_prediction", 5.0)])
def test_the_loss_with_pictures_that_should_stay(prediction, gamma):
  made, folder = pipelines.pipeline(prediction)
  task = tasks.make("denoising", prior_weight=0.7, min_snr_gamma=gamma).of_model(folder)
  model, batch, key = peftjax.load(folder), batch_of(folder), jax.random.key(3)
  total, count, extra = jax.jit(lambda params: task.loss(lambda inputs: model.forward(params, inputs), batch, key))(
    model.params
  )
  own, prior = theirs(made, task, batch, key, gamma)
  np.testing.assert_allclose(total / count, own + 0.7 * prior, rtol=1e-5)
  np.testing.assert_allclose(extra["prior_loss"] / count, prior, rtol=1e-5)


def test_evaluations_draw_by_the_example_alone():
  """In each equal range of timesteps one, and the loss is that of diffusers' models at these."""
  made, folder = pipelines.pipeline()
  task = tasks.make("denoising", eval_timesteps=2).of_model(folder)
  model, batch = peftjax.load(folder), batch_of(folder, priors=False)
  predict = jax.jit(lambda batch: task.predict(lambda inputs: model.forward(model.params, inputs), batch))
  found = predict(batch)
  assert found["losses"].shape == (3, 2)
  order = np.array([2, 0, 1])
  moved = predict({name: array[order] for name, array in batch.items()})
  np.testing.assert_allclose(moved["losses"], found["losses"][order], rtol=1e-5)
  np.testing.assert_allclose(found["loss"], found["losses"].mean(axis=1), rtol=1e-6)
  timesteps, noise = task.draw_fixed(jnp.asarray(batch["index"]), jnp.asarray(1), (4, 8, 8))
  assert ((timesteps >= 500) & (timesteps < 1000)).all()
  with torch.no_grad():
    latents = made.vae.encode(torch.tensor(batch["pixel_values"])).latent_dist.mean * 0.4
    drawn, when = torch.tensor(np.asarray(noise)), torch.tensor(np.asarray(timesteps))
    states = made.text_encoder(torch.tensor(batch["input_ids"]).long())[0]
    predicted = made.unet(made.scheduler.add_noise(latents, drawn, when), when, states).sample
  wanted = ((predicted - drawn) ** 2).mean(dim=(1, 2, 3))
  np.testing.assert_allclose(found["losses"][:, 1], wanted, rtol=1e-5)
