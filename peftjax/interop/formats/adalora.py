"""AdaLoRA as PEFT writes it: of pruned modules only the triplets that are left, and which they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.errors import UserError
from peftjax.interop.formats import lora
from peftjax.interop.formats.base import Config, Format, Tensor, Tensors, column, needed, transposed
from peftjax.methods.adalora import AdaLoRA
from peftjax.methods.base import Context
from peftjax.methods.bound import Bound
from peftjax.sites import Site

_PREFIX = "base_model.model."
_RANK_AXIS = {"lora_A": 0, "lora_B": 1, "lora_E": 0}


def _tensors(method: AdaLoRA, site: Site) -> Mapping[str, Tensor]:
  del method, site
  return {"lora_a": transposed("lora_A"), "lora_b": transposed("lora_B"), "lora_e": column("lora_E")}


def _config(method: AdaLoRA, config: Config, names: Mapping[str, str], context: Context) -> Config:
  # PEFT refuses a config without the number of steps, which only training needs.
  del config, names, context
  return {"total_step": method.tinit + method.tfinal + 1, "rank_pattern": None}


def _pack(bound: Bound, config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
  del bound
  kept = {key.removesuffix(".lora_E"): value[:, 0] != 0 for key, value in tensors.items() if key.endswith(".lora_E")}
  if all(mask.all() for mask in kept.values()) or not all(mask.any() for mask in kept.values()):
    return config, tensors  # PEFT has no module of rank zero
  pattern = {f"{module.removeprefix(_PREFIX)}.lora_E": mask.tolist() for module, mask in kept.items()}
  found = dict(tensors)
  for module, mask in kept.items():
    for leaf, axis in _RANK_AXIS.items():
      found[f"{module}.{leaf}"] = np.ascontiguousarray(np.compress(mask, tensors[f"{module}.{leaf}"], axis))
  return {**config, "rank_pattern": pattern}, found


def _unpack(bound: Bound, config: Config, tensors: Tensors) -> Tensors:
  method: Any = bound.method
  found = dict(tensors)
  for name, entries in (config["rank_pattern"] or {}).items():
    mask, module = np.asarray(entries, bool), _PREFIX + name.removesuffix(".lora_E")
    if mask.shape != (method.init_r,):
      raise UserError(f"rank_pattern: {name!r} has {mask.size} entries, and init_r is {method.init_r}")
    for leaf, axis in _RANK_AXIS.items():
      value = needed(tensors, f"{module}.{leaf}")
      if value.ndim != 2 or value.shape[axis] != mask.sum():
        raise UserError(f"{module}.{leaf!r} has shape {value.shape}; rank_pattern leaves {mask.sum()} triplets")
      shape = tuple(method.init_r if index == axis else size for index, size in enumerate(value.shape))
      found[f"{module}.{leaf}"] = np.zeros(shape, value.dtype)
      np.moveaxis(found[f"{module}.{leaf}"], axis, 0)[mask] = np.moveaxis(value, axis, 0)
  return found


FORMATS = (
  Format(
    peft_type="ADALORA",
    method=AdaLoRA,
    defaults={
      **lora.DEFAULTS,
      "rank_pattern": None,
      "target_r": 8,
      "init_r": 12,
      "tinit": 0,
      "tfinal": 0,
      "deltaT": 1,
      "beta1": 0.85,
      "beta2": 0.85,
      "orth_reg_weight": 0.5,
      "total_step": None,
    },
    fields={
      "lora_alpha": "alpha",
      "lora_dropout": "dropout",
      "target_r": "target_r",
      "init_r": "init_r",
      "tinit": "tinit",
      "tfinal": "tfinal",
      "deltaT": "delta_t",
      "beta1": "beta1",
      "beta2": "beta2",
      "orth_reg_weight": "orth_reg_weight",
    },
    free=(*lora.FREE, "r", "rank_pattern", "total_step"),
    tensors=_tensors,
    bias_mode="lora_only",
    config_of=_config,
    pack=_pack,
    unpack=_unpack,
  ),
)
