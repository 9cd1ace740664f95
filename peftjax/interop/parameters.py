"""Modules that transformers holds as bare parameters, the routers and experts of its mixtures: what PEFT does on them.

PEFT has LoRA alone there. A router is written as one of `target_parameters`; the experts by the names of the modules
that they were before transformers 5, which PEFT turns into LoRAs of the arrays that hold all of a layer's experts, gate
and up in one. It reads every target of such a name as the experts of all layers, whatever stands before it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from peftjax.errors import UserError
from peftjax.interop.formats.base import Format

if TYPE_CHECKING:
  from peftjax.model import Model

_EXPERT = re.compile(r"(.*\.)?experts\.\d+\.\w+")
_INSTEAD = "merge it and save the model"


def routed(model: Model, names: Mapping[str, str]) -> dict[str, str]:
  """Those of {name in the tree: name in PEFT} that are routers or experts."""
  patterns = [re.compile(pattern) for pattern in model.family.parameters]
  return {name: key for name, key in names.items() if any(one.fullmatch(key) for one in patterns)}


def takes(form: Format) -> bool:
  """Whether PEFT's method acts on parameters."""
  return form.peft_type == "LORA" and not form.defaults["use_dora"]


def pattern_names(model: Model, names: Mapping[str, str]) -> dict[str, str]:
  """{name in the tree: what keys of PEFT's `rank_pattern` and `alpha_pattern` are compared with}."""
  return {**names, **{name: f"{key}.weight" for name, key in routed(model, names).items()}}


def routers(
  model: Model, names: Mapping[str, str], everything: Mapping[str, str], method: Any, form: Format
) -> set[str]:
  """The routers among the modules that a method acts on, once it is known that PEFT can say all of it.

  Args:
    names: {name in the tree: name in PEFT} of the modules it acts on.
    everything: the same of all modules of the model.

  Raises:
    UserError: PEFT cannot say it.
  """
  found = routed(model, names)
  experts = {name: key for name, key in found.items() if _EXPERT.fullmatch(key)}
  if found and not takes(form):
    raise UserError(f"PEFT has LoRA alone for routers and experts, not {method.name}; {_INSTEAD}")
  for field in ("dropout", "lora_bias"):
    if found and getattr(method, field, False):
      raise UserError(f"PEFT's LoRA of routers and experts has no {field}; {_INSTEAD}")
  every = {name: key for name, key in routed(model, everything).items() if _EXPERT.fullmatch(key)}
  if form.peft_type == "LORA":
    _check_apart(set(names.values()) - set(found.values()), every.values())
  _check_experts(experts, every, method)
  return set(found) - set(experts)


def _check_apart(plain: Iterable[str], experts: Iterable[str]) -> None:
  """Raises a `UserError` if a plain module is called as an expert's, which PEFT would take it for."""
  tails = {key.rpartition(".")[2] for key in experts}
  for key in sorted(plain):
    if key.rpartition(".")[2] in tails:
      raise UserError(f"PEFT takes a target {key!r} of this model for its experts'; exclude it, or {_INSTEAD}")


def _check_experts(chosen: Mapping[str, str], every: Mapping[str, str], method: Any) -> None:
  """Raises a `UserError` unless all experts have the same LoRA, on gate and up together if on one of them."""
  if not chosen:
    return
  tails = {key.rpartition(".")[2] for key in chosen.values()}
  both = tails & {"w1", "w3", "gate_proj", "up_proj"}
  if len(both) == 1:
    raise UserError(f"PEFT has gate and up of the experts as one array; target both and not {min(both)!r} alone")
  if both == tails:
    raise UserError(
      f"PEFT loads no LoRA of gate and up of the experts without one of down; target that too, or {_INSTEAD}"
    )
  if set(chosen) != {name for name, key in every.items() if key.rpartition(".")[2] in tails}:
    raise UserError(f"PEFT's LoRA is on the experts of all layers; target them all, or {_INSTEAD}")
  if both and method.rslora:
    raise UserError(f"PEFT's LoRA of gate and up of the experts has no rslora; {_INSTEAD}")
  plain = dataclasses.replace(method, rank_pattern={}, alpha_pattern={})
  if any(method.settings(name) != plain.settings(name) for name in chosen):
    raise UserError(f"PEFT has no rank_pattern and alpha_pattern of experts; {_INSTEAD}")
