"""LoRA as PEFT writes it.

PiSSA and OLoRA act here on the unchanged base as A B - A₀ B₀. PEFT's word for that is a LoRA of twice the rank with
factors [A | A₀] and [B ; -B₀], which is what is written, so that it loads on the base as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.errors import UserError, nearest
from peftjax.interop.formats.base import TARGETS, Config, Format, Tensor, transposed
from peftjax.methods.base import Context, Leaves
from peftjax.methods.dora import DoRA
from peftjax.methods.lora import LoRA
from peftjax.sites import Site

# PEFT's `init_lora_weights` -> ours. The values come from the file, so all that matters is what they act on.
_INITS = {
  True: "kaiming", False: "kaiming", "gaussian": "gaussian", "orthogonal": "orthogonal", "eva": "kaiming",
  "pissa": "pissa", "olora": "olora",
}  # fmt: skip
_CHANGES_BASE = ("loftq", "corda", "lora_ga")

DEFAULTS: Config = {
  **TARGETS,
  "r": 8,
  "lora_alpha": 8,
  "lora_dropout": 0.0,
  "fan_in_fan_out": False,
  "bias": "none",
  "use_rslora": False,
  "modules_to_save": None,
  "init_lora_weights": True,
  "rank_pattern": {},
  "alpha_pattern": {},
  "megatron_config": None,
  "megatron_core": "megatron.core",
  "trainable_token_indices": None,
  "loftq_config": {},
  "eva_config": None,
  "corda_config": None,
  "lora_ga_config": None,
  "use_dora": False,
  "velora_config": None,
  "alora_invocation_tokens": None,
  "use_qalora": False,
  "qalora_group_size": 16,
  "monteclora_config": None,
  "layer_replication": None,
  "lora_bias": False,
  "target_parameters": None,
  "use_bdlora": None,
  "arrow_config": None,
  "kasa_config": None,
  "ensure_weight_tying": False,
}
FIELDS = {
  "r": "rank",
  "lora_alpha": "alpha",
  "lora_dropout": "dropout",
  "use_rslora": "rslora",
  "rank_pattern": "rank_pattern",
  "alpha_pattern": "alpha_pattern",
  "lora_bias": "lora_bias",
  "ensure_weight_tying": "ensure_weight_tying",
}
FREE = ("target_parameters", "init_lora_weights", "megatron_core", "loftq_config", "eva_config", "corda_config",
        "lora_ga_config", "qalora_group_size", "trainable_token_indices")  # fmt: skip


def tensors(method: Any, site: Site) -> Mapping[str, Tensor]:
  """A and B, transposed; an embedding's have names of their own, and a convolution's a window."""
  del method
  if site.kind == "embedding":
    return {"lora_a": transposed("lora_embedding_A"), "lora_b": transposed("lora_embedding_B")}
  if site.experts:  # as of `target_parameters`: A [E r, in], B [out, r E]
    count = site.experts
    return {
      "lora_a": Tensor(
        "lora_A.weight",
        lambda leaf: leaf.transpose(0, 2, 1).reshape(-1, leaf.shape[1]),
        lambda value: value.reshape(count, -1, value.shape[1]).transpose(0, 2, 1),
      ),
      "lora_b": Tensor(
        "lora_B.weight",
        lambda leaf: leaf.transpose(2, 1, 0).reshape(leaf.shape[2], -1),
        lambda value: value.reshape(value.shape[0], -1, count).transpose(2, 1, 0),
      ),
    }
  if site.kind == "conv":
    points = (1,) * len(site.window)
    return {
      "lora_a": _window_first("lora_A.weight", len(site.window)),
      "lora_b": Tensor(
        "lora_B.weight",
        lambda leaf: leaf.T.reshape(*leaf.shape[::-1], *points),
        lambda value: value.reshape(value.shape[:2]).T,
      ),
      "lora_b_bias": Tensor("lora_B.bias"),
      "lora_magnitude": Tensor("lora_magnitude_vector", lambda leaf: leaf.reshape(1, -1, *points), np.ravel),
    }
  return {
    "lora_a": transposed("lora_A.weight"),
    "lora_b": transposed("lora_B.weight"),
    "lora_b_bias": Tensor("lora_B.bias"),
    "lora_magnitude": Tensor("lora_magnitude_vector"),
  }


def _window_first(key: str, axes: int) -> Tensor:
  """[*window, in, r] that PEFT stores as [r, in, *window]."""
  order = (axes + 1, axes, *range(axes))
  return Tensor(key, lambda leaf: leaf.transpose(order), lambda value: value.transpose(np.argsort(order)))


def fields_of(config: Config, names: Mapping[str, str], context: Context) -> Config:
  """{"init": ...} for PEFT's `init_lora_weights`; raises `UserError` for what is not known or changes the base."""
  del names, context
  init = config["init_lora_weights"]
  if str(init).startswith("pissa_niter") or init in _CHANGES_BASE:
    raise UserError(
      f"init_lora_weights {init!r} changes the base in a way that its name does not fix; convert the adapter in PEFT, "
      "save_pretrained(path_initial_model_for_weight_conversion=...)"
    )
  if init not in _INITS:
    raise UserError(f"init_lora_weights {init!r} is not supported; {nearest(str(init), map(str, _INITS))}")
  return {"init": _INITS[init]}


def saved_as(method: LoRA) -> LoRA:
  """The method of twice the rank and the same scale where the update is a difference of two products."""
  if method.init not in ("pissa", "olora"):
    return method
  factor = 2**0.5 if method.rslora else 2
  return dataclasses.replace(
    method,
    init="kaiming",
    rank=2 * method.rank,
    alpha=factor * method.alpha,
    rank_pattern={key: 2 * rank for key, rank in method.rank_pattern.items()},
    alpha_pattern={key: factor * alpha for key, alpha in method.alpha_pattern.items()},
  )


def leaves_as(method: LoRA, site: Site, leaves: Leaves) -> Leaves:
  """The leaves of `saved_as(method)`."""
  if method.init not in ("pissa", "olora"):
    return leaves
  if site.experts:
    raise UserError(f"PEFT's LoRA of experts has no init={method.init!r}; merge it and save the model")
  if "lora_a_init" in leaves:
    other_a, other_b = leaves["lora_a_init"], -leaves["lora_b_init"]
  else:
    other_a, other_b = np.zeros_like(leaves["lora_a"]), np.zeros_like(leaves["lora_b"])
  return {
    **leaves,
    "lora_a": np.concatenate([leaves["lora_a"], other_a], axis=-1),
    "lora_b": np.concatenate([leaves["lora_b"], other_b], axis=0),
  }


def config_of(method: LoRA, config: Config, names: Mapping[str, str], context: Context) -> Config:
  """How PEFT would have initialised it."""
  del config, names, context
  return {"init_lora_weights": {"kaiming": True, "loftq": True}.get(method.init, method.init)}


_LORA = Format(
  peft_type="LORA",
  method=LoRA,
  defaults=DEFAULTS,
  fields=FIELDS,
  free=FREE,
  tensors=tensors,
  applies=lambda config: not config.get("use_dora"),
  bias_mode="lora_only",
  config_of=config_of,
  fields_of=fields_of,
  saved_as=saved_as,
  leaves_as=leaves_as,
)

FORMATS = (
  _LORA,
  dataclasses.replace(
    _LORA,
    method=DoRA,
    defaults={**DEFAULTS, "use_dora": True},
    applies=lambda config: bool(config.get("use_dora")),
  ),
)
