"""Tiny parts of Stable Diffusion in torch, with odd sizes and wide random weights, saved as diffusers saves them."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import jax
import numpy as np
import torch
import transformers

from peftjax import masks
from peftjax.model import Model

TEXT: dict[str, Any] = {
  "vocab_size": 53,
  "hidden_size": 24,
  "intermediate_size": 40,
  "projection_dim": 7,
  "num_hidden_layers": 3,
  "num_attention_heads": 3,
  "max_position_embeddings": 13,
  "eos_token_id": 51,
  "bos_token_id": 50,
}


UNET: dict[str, Any] = {
  "sample_size": 8,
  "in_channels": 4,
  "out_channels": 3,
  "block_out_channels": (6, 12),
  "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
  "layers_per_block": 1,
  "norm_num_groups": 3,
  "attention_head_dim": 2,
  "cross_attention_dim": 24,
}


VAE: dict[str, Any] = {
  "block_out_channels": (6, 9),
  "down_block_types": ("DownEncoderBlock2D",) * 2,
  "up_block_types": ("UpDecoderBlock2D",) * 2,
  "layers_per_block": 1,
  "norm_num_groups": 3,
  "latent_channels": 2,
  "sample_size": 16,
  "out_channels": 4,
}


def widened(made: torch.nn.Module, std: float = 0.2) -> torch.nn.Module:
  """The model in evaluation mode with weights that make every part count."""
  torch.manual_seed(0)
  for name, parameter in made.named_parameters():
    is_norm = "norm" in name and name.endswith("weight")
    torch.nn.init.normal_(parameter, mean=1.0 if is_norm else 0.0, std=std)
  return made.eval()


def saved(made: Any) -> Path:
  """Its folder."""
  folder = Path(tempfile.mkdtemp(prefix="tiny-"))
  made.save_pretrained(folder)
  return folder


@functools.cache
def text(class_name: str = "CLIPTextModel", **changes: Any) -> tuple[Any, Path]:
  """(torch text encoder, its folder)."""
  made = widened(getattr(transformers, class_name)(transformers.CLIPTextConfig(**{**TEXT, **changes})))
  return made, saved(made)


@functools.cache
def unet(**changes: Any) -> tuple[Any, Path]:
  """(torch denoiser, its folder)."""
  made = widened(diffusers.UNet2DConditionModel(**{**UNET, **changes}))
  return made, saved(made)


@functools.cache
def vae(**changes: Any) -> tuple[Any, Path]:
  """(torch autoencoder, its folder)."""
  made = widened(diffusers.AutoencoderKL(**{**VAE, **changes}))
  return made, saved(made)


def noisy(height: int = 8, width: int = 8, batch: int = 2, channels: int = 4, length: int = 5) -> dict[str, np.ndarray]:
  """Inputs of a denoiser."""
  rng = np.random.default_rng(1)
  return {
    "sample": rng.normal(size=(batch, channels, height, width)).astype(np.float32),
    "timestep": rng.integers(0, 1000, batch),
    "encoder_hidden_states": rng.normal(size=(batch, length, 24)).astype(np.float32),
  }


def run(made: Any, inputs: dict[str, Any]) -> torch.Tensor:
  """The torch denoiser's output."""

  def tensor(value: Any) -> Any:
    return {name: tensor(one) for name, one in value.items()} if isinstance(value, dict) else torch.as_tensor(value)

  found: torch.Tensor = made(**{name: tensor(value) for name, value in inputs.items()}).sample
  return found


def tokens(batch: int = 3, length: int = 11, end: int = 51) -> np.ndarray:
  """int[B, L]: texts of several lengths, each with its end, padded with the end's id."""
  rng = np.random.default_rng(0)
  ids = rng.integers(3, 50, (batch, length))
  for row in range(batch):
    ids[row, length - 1 - 3 * row :] = end
  return ids


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
  """Equal within a tolerance relative to each value and to the largest."""
  theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
  np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


def acting(model: Model) -> Model:
  """The model with adapters that change what it computes: random numbers in each of their leaves."""
  flat = masks.flatten(model.params)
  for number, path in enumerate(sorted(model.adapter_paths())):
    flat[path] = 0.3 * jax.random.normal(jax.random.key(number), flat[path].shape)
  return model.with_params(masks.unflatten(flat))
