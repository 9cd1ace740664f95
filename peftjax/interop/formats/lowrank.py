"""Low-rank updates of other shapes than LoRA's as PEFT writes them: LoHa, LoKr, HiRA, GraLoRA, DeLoRA."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from peftjax.interop.formats.base import MODULES, TARGETS, Config, Format, Tensor, kernel, transposed
from peftjax.methods.delora import DeLoRA
from peftjax.methods.gralora import GraLoRA
from peftjax.methods.hira import HiRA
from peftjax.methods.loha import LoHa, is_tucker
from peftjax.methods.lokr import LoKr, factor_pair
from peftjax.sites import Site


def _matrices(*names: str, **others: Tensor) -> Callable[[Any, Site], Mapping[str, Tensor]]:
  """Leaves that PEFT stores transposed, under names of which ours are the lower-case spelling."""
  table = {name.lower().removesuffix(".weight"): transposed(name) for name in names} | others
  return lambda method, site: table


def _core(key: str, site: Site) -> Tensor:
  """A Tucker product's core, to which PEFT gives a window of two axes where the convolution's has one."""
  tail = (1,) if len(site.window) == 1 else ()
  return Tensor(
    key, lambda leaf: leaf.reshape(*leaf.shape, *tail), lambda value: value.reshape(value.shape[:2] + site.window)
  )


_LOHA = _matrices("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_LOKR = _matrices("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
_HIRA = _matrices("hira_A", "hira_B")


def _loha(method: LoHa, site: Site) -> Mapping[str, Tensor]:
  if not is_tucker(method, site):
    return _LOHA(method, site)
  cores = {f"hada_t{index}": _core(f"hada_t{index}", site) for index in (1, 2)}
  return {**_LOHA(method, site), **cores, "hada_w1_a": Tensor("hada_w1_a"), "hada_w2_a": Tensor("hada_w2_a")}


def _lokr(method: LoKr, site: Site) -> Mapping[str, Tensor]:
  found = dict(_LOKR(method, site))
  if site.kind == "conv":
    found["lokr_w2"] = kernel("lokr_w2", -1, *site.window)
  if is_tucker(method, site):
    rank, (source, target) = method.settings(site.names[0])[0], site.shape
    sizes = (source // math.prod(site.window), target)
    if rank < max(factor_pair(size, method.decompose_factor)[1] for size in sizes) / 2:
      found |= {"lokr_t2": _core("lokr_t2", site), "lokr_w2_a": Tensor("lokr_w2_a")}
  return found


def _hira(method: HiRA, site: Site) -> Mapping[str, Tensor]:
  if site.kind != "conv":
    return _HIRA(method, site)
  points = (1,) * len(site.window)
  return {"hira_a": kernel("hira_A", -1, *site.window), "hira_b": kernel("hira_B", -1, *points)}


# LoHa and LoKr, which PEFT has from LyCORIS, have no biases.
_LYCORIS: Config = {
  **TARGETS,
  "modules_to_save": None,
  "init_weights": True,
  "r": 8,
  "alpha": 8,
  "rank_pattern": {},
  "alpha_pattern": {},
  "rank_dropout": 0.0,
  "module_dropout": 0.0,
  "use_effective_conv2d": False,
}
_LYCORIS_FIELDS = {
  "r": "rank",
  "alpha": "alpha",
  "rank_pattern": "rank_pattern",
  "alpha_pattern": "alpha_pattern",
  "rank_dropout": "rank_dropout",
  "module_dropout": "module_dropout",
  "use_effective_conv2d": "use_effective_conv2d",
}

FORMATS = (
  Format(
    peft_type="LOHA",
    method=LoHa,
    defaults=_LYCORIS,
    fields=_LYCORIS_FIELDS,
    tensors=_loha,
  ),
  Format(
    peft_type="LOKR",
    method=LoKr,
    defaults={**_LYCORIS, "decompose_both": False, "decompose_factor": -1, "rank_dropout_scale": False},
    fields={
      **_LYCORIS_FIELDS,
      "decompose_both": "decompose_both",
      "decompose_factor": "decompose_factor",
      "rank_dropout_scale": "rank_dropout_scale",
    },
    inits={True: "default", False: "default", "lycoris": "lycoris"},
    tensors=_lokr,
  ),
  Format(
    peft_type="HIRA",
    method=HiRA,
    defaults={
      **TARGETS,
      "modules_to_save": None,
      "init_weights": True,
      "r": 32,
      "hira_dropout": 0.0,
      "fan_in_fan_out": False,
      "rank_pattern": {},
    },
    fields={"r": "rank", "hira_dropout": "dropout", "rank_pattern": "rank_pattern"},
    inits={True: "kaiming", False: "kaiming", "gaussian": "gaussian"},
    tensors=_hira,
  ),
  Format(
    peft_type="GRALORA",
    method=GraLoRA,
    defaults={
      **{key: value for key, value in MODULES.items() if key != "exclude_modules"},
      "r": 32,
      "hybrid_r": 0,
      "alpha": 64,
      "gralora_dropout": 0.0,
      "gralora_k": 2,
      "fan_in_fan_out": False,
    },
    fields={
      "r": "rank",
      "hybrid_r": "hybrid_r",
      "alpha": "alpha",
      "gralora_dropout": "dropout",
      "gralora_k": "gralora_k",
    },
    tensors=_matrices(
      "gralora_A_general.weight",
      "gralora_B_general.weight",
      gralora_a=Tensor("gralora_A"),
      gralora_b=Tensor("gralora_B"),
    ),
    bias_mode="gralora_only",
  ),
  Format(
    peft_type="DELORA",
    method=DeLoRA,
    defaults={
      **MODULES,
      "r": 8,
      "delora_lambda": 15,
      "module_dropout": 0.0,
      "rank_pattern": {},
      "lambda_pattern": {},
    },
    fields={
      "r": "rank",
      "delora_lambda": "delora_lambda",
      "module_dropout": "module_dropout",
      "rank_pattern": "rank_pattern",
      "lambda_pattern": "lambda_pattern",
    },
    tensors=_matrices(
      "delora_A",
      "delora_B",
      delora_lambda=Tensor("delora_lambda"),
      delora_w_norm=Tensor("delora_w_norm"),
    ),
    bias_mode="delora_only",
  ),
)
