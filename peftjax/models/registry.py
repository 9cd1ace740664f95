"""The families by config.json's model_type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftjax.errors import UserError, nearest
from peftjax.models import bert, bloom, gpt2, gpt_neox, llama, opt, t5
from peftjax.models.config_fields import shown
from peftjax.models.family import Family

FAMILIES: dict[str, Family] = {
  model_type: family
  for family in (
    bert.BERT,
    bert.ROBERTA,
    bloom.BLOOM,
    gpt2.GPT2,
    gpt_neox.GPTJ,
    gpt_neox.NEOX,
    opt.OPT,
    t5.MT5,
    t5.T5,
    *llama.LLAMA.values(),
  )
  for model_type in family.model_types
}


def family_of(hf_config: Mapping[str, Any]) -> Family:
  """The family of a config.json.

  Raises:
    UserError: no `model_type`, or one that is not supported.
  """
  model_type = hf_config.get("model_type")
  if not model_type:
    raise UserError("config.json has no model_type; expected one of " + ", ".join(FAMILIES))
  if not isinstance(model_type, str):
    raise UserError(f"config.json: model_type={shown(model_type)}: expected a text")
  if model_type not in FAMILIES:
    raise UserError(f"config.json: model_type {model_type!r} is not supported; {nearest(model_type, FAMILIES)}")
  return FAMILIES[model_type]
