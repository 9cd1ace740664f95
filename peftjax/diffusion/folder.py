"""What a pipeline's folder in diffusers' layout says of all its components together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftjax.files import read_json
from peftjax.kinds import list_of, value_of, whole

INDEX = "model_index.json"
"""diffusers' list of a pipeline's components; its folder holds one folder for each."""
ENCODERS = ("text_encoder", "text_encoder_2")
"""The components that read texts."""
# Pipelines whose class settles what older files say: steps_offset, clip_sample, a small sample_size.
SETTLING = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
_WIDTHS = list_of(whole(1, 2**20), 16, "numbers of channels")


def index_of(folder: Path) -> dict[str, Any]:
  """model_index.json, or {} of a folder without one."""
  path = folder / INDEX
  return read_json(path) if path.is_file() else {}


def has_component(folder: Path, name: str) -> bool:
  """Whether a model is loaded as one: model_index.json, where there is one, lists it, and its config.json is there."""
  listed = index_of(folder).get(name) if (folder / INDEX).is_file() else [name]
  return isinstance(listed, list) and any(listed) and (folder / name / "config.json").is_file()


def has_conditions(folder: Path) -> bool:
  """Whether the denoiser has conditions beside the text's states, as SDXL's has."""
  path = folder / "unet" / "config.json"
  return path.is_file() and bool(read_json(path).get("addition_embed_type"))


def encoders_of(folder: Path) -> tuple[str, ...]:
  """The components whose states the denoiser reads: both of `ENCODERS`, or the first."""
  return ENCODERS if has_conditions(folder) else ENCODERS[:1]


def zeroes_empty(folder: Path) -> bool:
  """Whether an empty negative prompt is no text at all, as SDXL's pipelines have it, and not an empty one."""
  return has_conditions(folder) and bool(index_of(folder).get("force_zeros_for_empty_prompt", True))


def runs_as_stable_diffusion(folder: Path) -> bool:
  """Whether diffusers' class of the pipeline is one of `SETTLING`."""
  return index_of(folder).get("_class_name") in SETTLING


def factor_of(path: Path) -> int:
  """Pixels along a side of one latent, by an autoencoder's config.json; 1 where there is none.

  Raises:
    UserError: block_out_channels is no list of numbers.
  """
  if not path.is_file():
    return 1
  widths = value_of(str(path), "block_out_channels", read_json(path).get("block_out_channels", [64]), _WIDTHS)
  return int(2 ** (len(widths) - 1))
