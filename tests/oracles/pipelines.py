"""Tiny pipelines of Stable Diffusion, made and saved by diffusers, with wide random weights."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

WORDS = ["a", "photo", "of", "sks", "dog", "cat", "red", "blue", "picture"]
LENGTH, HIDDEN, SIDE = 9, 20, 16
SCHEDULER: dict[str, Any] = {
  "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1, "clip_sample": False,
  "set_alpha_to_one": False,
}  # fmt: skip
UNET: dict[str, Any] = {
  "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (6, 12), "layers_per_block": 1,
  "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
  "norm_num_groups": 3, "attention_head_dim": 2, "cross_attention_dim": HIDDEN,
}  # fmt: skip
VAE: dict[str, Any] = {
  "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": (6, 9), "layers_per_block": 1,
  "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 3,
  "scaling_factor": 0.4, "sample_size": SIDE,
}  # fmt: skip


# One block each, for runs that compile many programs.
SMALL_UNET = {**UNET, "block_out_channels": (6,), "down_block_types": ("CrossAttnDownBlock2D",),
              "up_block_types": ("CrossAttnUpBlock2D",), "mid_block_type": None}  # fmt: skip
SMALL_VAE = {**VAE, "block_out_channels": (6,), "down_block_types": ("DownEncoderBlock2D",),
             "up_block_types": ("UpDecoderBlock2D",), "sample_size": 8, "mid_block_add_attention": False}  # fmt: skip


def widened(made: Any, std: float = 0.15) -> Any:
  """The model in evaluation mode with weights that make every part count."""
  torch.manual_seed(0)
  for name, parameter in made.named_parameters():
    is_norm = "norm" in name and name.endswith("weight")
    torch.nn.init.normal_(parameter, mean=1.0 if is_norm else 0.0, std=std)
  return made.eval()


def write_tokenizer(folder: Path, pad_token: str = "<|endoftext|>") -> Any:
  """CLIP's tokenizer with a few words, whole; all other texts fall into characters."""
  folder.mkdir(parents=True, exist_ok=True)
  letters = "abcdefghijklmnopqrstuvwxyz0123456789'<>"
  merges, vocabulary = [], [*letters, *(f"{one}</w>" for one in letters)]
  for word in WORDS:
    parts = [*word[:-1], f"{word[-1]}</w>"]
    while len(parts) > 1:
      merged = parts[0] + parts[1]
      if f"{parts[0]} {parts[1]}" not in merges:
        merges.append(f"{parts[0]} {parts[1]}")
        vocabulary.append(merged)
      parts = [merged, *parts[2:]]
  vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
  (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
  (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
  tokenizer = transformers.CLIPTokenizer(
    str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH, pad_token=pad_token
  )
  tokenizer.save_pretrained(folder)
  return tokenizer


@functools.cache
def pipeline(prediction_type: str = "epsilon", small: bool = False) -> tuple[Any, Path]:
  """(diffusers' StableDiffusionPipeline, its folder); the scheduler is DDIM."""
  folder = Path(tempfile.mkdtemp(prefix="pipeline-"))
  tokenizer = write_tokenizer(folder / "tokenizer")
  end = tokenizer.eos_token_id
  text = transformers.CLIPTextConfig(
    vocab_size=end + 1, hidden_size=HIDDEN, intermediate_size=28, num_hidden_layers=1 if small else 2,
    num_attention_heads=2, max_position_embeddings=LENGTH, eos_token_id=end, bos_token_id=end - 1, pad_token_id=end,
  )  # fmt: skip
  made = diffusers.StableDiffusionPipeline(
    vae=widened(diffusers.AutoencoderKL(**(SMALL_VAE if small else VAE))),
    text_encoder=widened(transformers.CLIPTextModel(text)),
    tokenizer=tokenizer,
    unet=widened(diffusers.UNet2DConditionModel(**(SMALL_UNET if small else UNET))),
    scheduler=diffusers.DDIMScheduler(prediction_type=prediction_type, **SCHEDULER),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )
  made.save_pretrained(folder)
  made.set_progress_bar_config(disable=True)
  return made, folder


XL_HIDDEN, XL_POOLED = (20, 14), 10
XL_UNET = {**SMALL_UNET, "cross_attention_dim": sum(XL_HIDDEN), "addition_embed_type": "text_time",
           "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": XL_POOLED + 6 * 4}  # fmt: skip


@functools.cache
def xl_pipeline() -> tuple[Any, Path]:
  """(diffusers' StableDiffusionXLPipeline, its folder): two text encoders of other widths and depths, the second one's
  tokenizer fills up with another token."""
  folder = Path(tempfile.mkdtemp(prefix="pipeline-xl-"))
  tokenizers = [
    write_tokenizer(folder / name, pad) for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "a"))
  ]
  end = tokenizers[0].eos_token_id
  texts = [
    transformers.CLIPTextConfig(
      vocab_size=end + 1, hidden_size=hidden, intermediate_size=28, num_hidden_layers=layers, num_attention_heads=2,
      max_position_embeddings=LENGTH, eos_token_id=end, bos_token_id=end - 1, pad_token_id=end, hidden_act=act,
      projection_dim=XL_POOLED,
    )
    for hidden, layers, act in zip(XL_HIDDEN, (2, 3), ("quick_gelu", "gelu"), strict=True)
  ]  # fmt: skip
  made = diffusers.StableDiffusionXLPipeline(
    vae=widened(diffusers.AutoencoderKL(**{**SMALL_VAE, "scaling_factor": 0.13})),
    text_encoder=widened(transformers.CLIPTextModel(texts[0])),
    text_encoder_2=widened(transformers.CLIPTextModelWithProjection(texts[1])),
    tokenizer=tokenizers[0],
    tokenizer_2=tokenizers[1],
    unet=widened(diffusers.UNet2DConditionModel(**XL_UNET)),
    scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing="leading", **{
      name: value for name, value in SCHEDULER.items() if name not in ("clip_sample", "set_alpha_to_one")}),
  )  # fmt: skip
  made.save_pretrained(folder)
  made.set_progress_bar_config(disable=True)
  return made, folder
