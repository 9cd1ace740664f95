"""Tiny random Whispers in torch, with odd sizes, saved as Hugging Face folders; features of odd lengths."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

SIZES: dict[str, Any] = {
  "vocab_size": 61,
  "num_mel_bins": 11,
  "encoder_layers": 3,
  "encoder_attention_heads": 5,
  "decoder_layers": 2,
  "decoder_attention_heads": 4,
  "encoder_ffn_dim": 28,
  "decoder_ffn_dim": 36,
  "d_model": 20,
  "max_source_positions": 17,
  "max_target_positions": 40,
  "classifier_proj_size": 9,
  "num_labels": 5,
  "pad_token_id": 0,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "decoder_start_token_id": 3,
  "suppress_tokens": None,
  "begin_suppress_tokens": None,
}
GENERATION = "WhisperForConditionalGeneration"
CLASSIFICATION = "WhisperForAudioClassification"


@functools.cache
def model(class_name: str = GENERATION, **sizes: Any) -> tuple[torch.nn.Module, Path]:
  """(torch model in evaluation mode with wide random weights, its folder)."""
  config = transformers.WhisperConfig(**{**SIZES, **sizes})
  config._attn_implementation = "eager"
  torch.manual_seed(0)
  made = getattr(transformers, class_name)(config).eval()
  with torch.no_grad():
    for parameter in made.parameters():
      parameter.add_(torch.randn_like(parameter) * 0.15)
  folder = Path(tempfile.mkdtemp(prefix="tiny-"))
  made.save_pretrained(folder)
  return made, folder


def features(batch: int = 3, frames: int = 34, seed: int = 0) -> np.ndarray:
  """float32 [batch, bins, frames]."""
  return np.random.default_rng(seed).normal(size=(batch, SIZES["num_mel_bins"], frames)).astype(np.float32)


def tokens(batch: int = 3, length: int = 7, seed: int = 1) -> np.ndarray:
  """int [batch, length] behind the start token."""
  found = np.random.default_rng(seed).integers(4, SIZES["vocab_size"], (batch, length))
  found[:, 0] = SIZES["decoder_start_token_id"]
  return found


def inputs(class_name: str = GENERATION, **given: Any) -> dict[str, np.ndarray]:
  """What the class reads."""
  ids = {} if class_name == CLASSIFICATION else {"decoder_input_ids": tokens(given.get("batch", 3))}
  return {"input_features": features(**given), **ids}


def outputs(made: torch.nn.Module, batch: dict[str, np.ndarray], **extra: Any) -> Any:
  """The torch model's outputs without gradients."""
  with torch.no_grad():
    return made(**{name: torch.tensor(value) for name, value in batch.items()}, **extra)
