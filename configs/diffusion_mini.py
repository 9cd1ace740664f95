"""A small Stable Diffusion of hands that sign digits, from nothing: its autoencoder, then its denoiser.

python -m experiments.diffusion_mini --anew

makes pictures, both trainings and the model's folder, runs/diffusion_mini/model, and goes on where it stopped; without
--anew the folder is a copy of the one that this gave, experiments/studies/dreambooth/model. Parts:

peftjax train --config=configs/diffusion_mini.py:autoencoder --workdir=runs/diffusion_mini/autoencoder
peftjax train --config=configs/diffusion_mini.py --workdir=runs/diffusion_mini/denoiser

Gave: autoencoder, validation loss .0041, latents of deviation 2.38; denoiser, validation loss .0659 at eight timesteps.
Hands have fingers, though not always as many as a sign has. 27 minutes of processor time, with the 64 pictures that the
model makes at the end.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from peftjax.config import default
from peftjax.errors import UserError, nearest

FOLDER = "runs/diffusion_mini"
STAGES = ("denoiser", "autoencoder")


def get_config(stage: str = "denoiser") -> ConfigDict:
  """`stage`: denoiser or autoencoder."""
  if stage not in STAGES:
    raise UserError(f"--config=...:{stage}; {nearest(stage, STAGES)}")
  config = default()
  config.data.name = f"pictures:{FOLDER}/pictures"
  config.optim.schedule = "cosine"
  config.optim.weight_decay = 0.0
  config.train.update({"save_every": 100, "log_every": 25, "eval_batch_size": 32, "tensorboard": False})
  config.train.final_splits = ("validation",)
  config.input = ConfigDict({"name": "captioned_images"})
  config.model.remat = "none"
  if stage == "autoencoder":
    config.model.path = "configs/diffusion_mini"
    config.model.init = "random"
    config.input.flip = True
    config.task = ConfigDict({**config.task, "name": "autoencoding", "kl_weight": 1e-5})
    config.method = ConfigDict({"name": "patterns", "train": ("vae.*",)})
    config.optim.learning_rate = 2e-3
    config.train.update({"batch_size": 8, "steps": 800})
    return config
  config.model.path = f"{FOLDER}/encoded"
  config.input.update({"caption_dropout": 0.1, "cache": ("latents",)})
  config.task = ConfigDict({**config.task, "name": "denoising", "eval_timesteps": 8})
  config.method = ConfigDict({"name": "patterns", "train": ("unet.*", "text_encoder.*")})
  config.optim.learning_rate = 2e-3
  config.train.update({"batch_size": 16, "steps": 2000})
  return config
