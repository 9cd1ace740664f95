"""Methods whose sites share leaves, or draw them from a seed, as PEFT writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from peftjax.errors import UserError
from peftjax.interop.formats.base import MODULES, TARGETS, Config, Format, Tensor, Tensors, needed, transposed
from peftjax.methods.bound import Bound
from peftjax.methods.fourierft import FourierFT
from peftjax.methods.randlora import RandLoRA
from peftjax.methods.vblora import VBLoRA
from peftjax.methods.vera import VeRA
from peftjax.sites import Site


def _vera(method: VeRA, site: Site) -> Mapping[str, Tensor]:
  del method, site
  return {"vera_lambda_b": Tensor("vera_lambda_b"), "vera_lambda_d": Tensor("vera_lambda_d")}


def _vera_shared(method: VeRA) -> Mapping[str, Tensor]:
  return {"vera_a": transposed("vera_A"), "vera_b": transposed("vera_B")} if method.save_projection else {}


def _fourierft(method: FourierFT, site: Site) -> Mapping[str, Tensor]:
  del method, site
  return {"fourierft_spectrum": Tensor("fourierft_spectrum")}


def _vblora(method: VBLoRA, site: Site) -> Mapping[str, Tensor]:
  del method, site
  return {"vblora_logits_a": Tensor("vblora_logits_A"), "vblora_logits_b": Tensor("vblora_logits_B")}


def _top_weights(bound: Bound, config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
  """Of logits only the top ones' indices and weights, the last of which the others imply."""
  method: Any = bound.method
  if not method.save_only_topk_weights:
    return config, tensors
  found: Tensors = {}
  for key, value in tensors.items():
    if ".vblora_logits_" not in key:
      found[key] = value
      continue
    indices = np.argsort(-value, axis=-1, kind="stable")[..., : method.topk]
    top = np.take_along_axis(value, indices, axis=-1)
    weights = np.exp(top - top[..., :1])
    weights /= weights.sum(axis=-1, keepdims=True)
    found[f"{key}_topk_indices"] = indices.astype(_index_dtype(method.num_vectors))
    found[f"{key}_topk_weights"] = np.ascontiguousarray(weights[..., :-1])
  return config, found


def _logits(bound: Bound, config: Config, tensors: Tensors) -> Tensors:
  """The inverse of `_top_weights`, as far as the function goes: the other vectors' logits are -∞."""
  del config
  method: Any = bound.method
  if not method.save_only_topk_weights:
    return tensors
  found: Tensors = {}
  for key, value in tensors.items():
    if key.endswith("_topk_indices"):
      name = key.removesuffix("_topk_indices")
      weights = needed(tensors, f"{name}_topk_weights")
      weights = np.concatenate([weights, 1 - weights.sum(axis=-1, keepdims=True)], axis=-1)
      found[name] = np.full((*value.shape[:-1], method.num_vectors), -np.inf, np.float32)
      np.put_along_axis(found[name], value.astype(np.int64), np.log(weights), axis=-1)
    elif not key.endswith("_topk_weights"):
      found[key] = value
  return found


def _index_dtype(count: int) -> type[np.integer[Any]]:
  return np.uint8 if count < 2**8 else np.int16 if count < 2**15 else np.int32


def _randlora(method: RandLoRA, site: Site) -> Mapping[str, Tensor]:
  del method, site
  return {"randlora_lambda": Tensor("randlora_lambda"), "randlora_gamma": Tensor("randlora_gamma")}


def _randlora_shared(method: RandLoRA) -> Mapping[str, Tensor]:
  return {"randlora_a": Tensor("randlora_A"), "randlora_b": Tensor("randlora_B")} if method.save_projection else {}


def _with_copies(bound: Bound, config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
  """PEFT repeats the shared bases at every module."""
  method: Any = bound.method
  found = dict(tensors)
  for key in tensors if method.save_projection else ():
    module, _, leaf = key.rpartition(".")
    if leaf == "randlora_lambda":
      found |= {f"{module}.{name}": tensors[f"base_model.{name}"] for name in _BASES}
  return config, found


def _without_copies(bound: Bound, config: Config, tensors: Tensors) -> Tensors:
  del bound, config
  found: Tensors = {}
  for key, value in tensors.items():
    module, _, leaf = key.rpartition(".")
    if leaf not in _BASES or module == "base_model":
      found[key] = value
    elif not np.array_equal(value, needed(tensors, f"base_model.{leaf}")):
      raise UserError(f"{key!r} is not the base_model.{leaf} that all modules share")
  return found


_BASES = ("randlora_A", "randlora_B")
_MODULES = {key: value for key, value in MODULES.items() if key != "exclude_modules"}

FORMATS = (
  Format(
    peft_type="VERA",
    method=VeRA,
    defaults={
      **_MODULES,
      "r": 256,
      "projection_prng_key": 0,
      "save_projection": True,
      "vera_dropout": 0.0,
      "d_initial": 0.1,
      "fan_in_fan_out": False,
    },
    fields={
      "r": "rank",
      "projection_prng_key": "projection_prng_key",
      "save_projection": "save_projection",
      "vera_dropout": "dropout",
      "d_initial": "d_initial",
    },
    tensors=_vera,
    shared=_vera_shared,
    bias_mode="vera_only",
  ),
  Format(
    peft_type="RANDLORA",
    method=RandLoRA,
    defaults={
      **_MODULES,
      "r": 32,
      "projection_prng_key": 0,
      "save_projection": True,
      "sparse": False,
      "very_sparse": False,
      "randlora_dropout": 0.0,
      "fan_in_fan_out": False,
      "randlora_alpha": 640,
    },
    fields={
      "r": "rank",
      "projection_prng_key": "projection_prng_key",
      "save_projection": "save_projection",
      "sparse": "sparse",
      "very_sparse": "very_sparse",
      "randlora_dropout": "dropout",
      "randlora_alpha": "alpha",
    },
    tensors=_randlora,
    shared=_randlora_shared,
    bias_mode="randlora_only",
    pack=_with_copies,
    unpack=_without_copies,
  ),
  Format(
    peft_type="FOURIERFT",
    method=FourierFT,
    defaults={
      **MODULES,
      "n_frequency": 1000,
      "scaling": 150.0,
      "random_loc_seed": 777,
      "fan_in_fan_out": False,
      "n_frequency_pattern": {},
      "init_weights": False,
    },
    fields={
      "n_frequency": "n_frequency",
      "scaling": "scaling",
      "random_loc_seed": "random_loc_seed",
      "n_frequency_pattern": "n_frequency_pattern",
    },
    inits={False: "normal", True: "zeros"},
    tensors=_fourierft,
    bias_mode="fourier_only",
  ),
  Format(
    peft_type="VBLORA",
    method=VBLoRA,
    defaults={
      **TARGETS,
      "bias": "none",
      "modules_to_save": None,
      "r": 4,
      "num_vectors": 256,
      "vector_length": 256,
      "topk": 2,
      "save_only_topk_weights": False,
      "vblora_dropout": 0.0,
      "fan_in_fan_out": False,
      "init_vector_bank_bound": 0.02,
      "init_logits_std": 0.1,
    },
    fields={
      "r": "rank",
      "num_vectors": "num_vectors",
      "vector_length": "vector_length",
      "topk": "topk",
      "save_only_topk_weights": "save_only_topk_weights",
      "vblora_dropout": "dropout",
      "init_vector_bank_bound": "init_vector_bank_bound",
      "init_logits_std": "init_logits_std",
    },
    tensors=_vblora,
    shared=lambda method: {"vblora_vector_bank": Tensor("vblora_vector_bank")},
    bias_mode="vblora_only",
    pack=_top_weights,
    unpack=_logits,
  ),
)
