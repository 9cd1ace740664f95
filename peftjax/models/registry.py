"""The families by the name that config.json gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftjax.errors import UserError, nearest
from peftjax.kinds import shown
from peftjax.models import (
  autoencoder,
  bert_heads,
  bloom,
  clip,
  clip_text,
  clip_vision,
  detr,
  gpt2,
  gpt_neox,
  llama,
  opt,
  t5,
  unet,
  vit_heads,
  wav2vec2,
  whisper,
  yolos,
)
from peftjax.models.family import Family
from peftjax.registry import resolve

NAMES = ("model_type", "_class_name")
"""The fields of config.json that name a family; the second is diffusers'."""

FAMILIES: dict[str, Family] = {
  model_type: family
  for family in (
    bert_heads.BERT,
    bert_heads.ROBERTA,
    bloom.BLOOM,
    gpt2.GPT2,
    gpt_neox.GPTJ,
    gpt_neox.NEOX,
    opt.OPT,
    t5.MT5,
    t5.T5,
    *llama.LLAMA.values(),
    clip_text.CLIP_TEXT,
    clip.CLIP,
    clip_vision.CLIP_VISION,
    *vit_heads.FAMILIES,
    unet.UNET,
    autoencoder.VAE,
    wav2vec2.WAV2VEC2,
    whisper.WHISPER,
    detr.DETR,
    yolos.YOLOS,
  )
  for model_type in family.model_types
}


def family_of(hf_config: Mapping[str, Any], family: Family | str = "") -> Family:
  """The family of a config.json.

  Args:
    family: the family itself, its name in `FAMILIES`, or `module:Name` of one's own; empty: what config.json says by
      its `model_type` or, as diffusers' components do, its `_class_name`.

  Raises:
    UserError: config.json names none, or one that is not supported.
  """
  if isinstance(family, Family):
    return family
  if family:
    found = resolve("model.family", family, FAMILIES)
    if not isinstance(found, Family):
      raise UserError(f"model.family: {family!r} is {type(found).__name__}; expected a peftjax.models.family.Family")
    return found
  field = next((name for name in NAMES if hf_config.get(name)), None)
  if field is None:
    raise UserError("config.json has no model_type; expected one of " + ", ".join(FAMILIES))
  name = hf_config[field]
  if not isinstance(name, str):
    raise UserError(f"config.json: {field}={shown(name)}: expected a text")
  if name not in FAMILIES:  # config.json is data: it never names code to import
    raise UserError(f"config.json: {field} {name!r} is not supported; {nearest(name, FAMILIES)}")
  return FAMILIES[name]
