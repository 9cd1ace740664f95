"""Tiny vision transformers in torch, with odd sizes, saved as Hugging Face folders; pictures of odd sizes."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

SIZES: dict[str, Any] = {
  "hidden_size": 24,
  "num_hidden_layers": 3,
  "num_attention_heads": 3,
  "image_size": 15,
  "patch_size": 3,
  "num_labels": 5,
}
FAMILIES: dict[str, dict[str, Any]] = {
  "ViT": {"intermediate_size": 40},
  "DeiT": {"intermediate_size": 40},
  "Dinov2WithRegisters": {"mlp_ratio": 3, "num_register_tokens": 2},
  "Dinov2": {"mlp_ratio": 2},
  "CLIPVision": {"intermediate_size": 40, "projection_dim": 7},
  "CLIP": {"projection_dim": 7},
  "Yolos": {"intermediate_size": 40, "image_size": (15, 12), "num_detection_tokens": 4},
}


@functools.cache
def model(class_name: str, **sizes: Any) -> tuple[torch.nn.Module, Path]:
  """(torch model in evaluation mode with wide random weights, its folder)."""
  family = next(name for name in FAMILIES if class_name.startswith(name))
  given = {**SIZES, **FAMILIES[family], **sizes}
  if family == "CLIP":  # both towers in one config
    labels = given.pop("num_labels")
    own = {"projection_dim": given.pop("projection_dim"), "num_labels": labels}
    given = {"vision_config": {**given, "intermediate_size": 40}, "text_config": {"num_hidden_layers": 1}, **own}
  config = getattr(transformers, f"{family}Config")(**given)
  torch.manual_seed(0)
  made = getattr(transformers, class_name)(config).eval()
  for name, parameter in made.named_parameters():
    centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
    torch.nn.init.normal_(parameter, mean=centre, std=0.2)
  folder = Path(tempfile.mkdtemp(prefix="tiny-"))
  made.save_pretrained(folder)
  return made, folder


def pixels(height: int = 15, width: int = 15, batch: int = 2, seed: int = 0, channels: int = 3) -> np.ndarray:
  """Normalised pictures, float32 [B, C, H, W]."""
  return np.random.default_rng(seed).normal(size=(batch, channels, height, width)).astype(np.float32)


def outputs(made: torch.nn.Module, pixel_values: np.ndarray, **extra: Any) -> Any:
  """The torch model's outputs; positions are resampled where sizes differ."""
  if not made.config.model_type.startswith(("dinov2", "yolos")):
    extra["interpolate_pos_encoding"] = True
  return made(torch.tensor(pixel_values), **extra)
