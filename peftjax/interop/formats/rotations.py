"""Rotations and sparse or structured updates as PEFT writes them: OFT, BOFT, HRA, RoAd, MiSS, C³A, SHiRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from peftjax.interop.formats.base import MODULES, Config, Format, Tensor, column, row, square
from peftjax.methods.base import Context
from peftjax.methods.boft import BOFT
from peftjax.methods.c3a import C3A
from peftjax.methods.hra import HRA
from peftjax.methods.miss import MiSS
from peftjax.methods.oft import OFT
from peftjax.methods.road import RoAd
from peftjax.methods.shira import SHiRA
from peftjax.sites import Site


def _leaves(**table: Tensor) -> Callable[[Any, Site], Mapping[str, Tensor]]:
  return lambda method, site: table


def _without(*keys: str) -> Config:
  return {key: value for key, value in MODULES.items() if key not in keys}


def _oft(method: OFT, site: Site) -> Mapping[str, Tensor]:
  square(site, "OFT")
  return {"oft_r": Tensor("oft_R.weight")}


def _boft(method: BOFT, site: Site) -> Mapping[str, Tensor]:
  square(site, "BOFT")
  return {"boft_r": Tensor("boft_R"), "boft_s": (row if site.kind == "conv" else column)("boft_s")}


def _hra(method: HRA, site: Site) -> Mapping[str, Tensor]:
  square(site, "HRA")
  return {"hra_u": Tensor("hra_u")}


_FEW_KNOBS = _without("exclude_modules", "layers_to_transform", "layers_pattern", "bias")


def _shira_seed_in(config: Config, names: Mapping[str, str], context: Context) -> Config:
  del names, context
  return {"random_seed": -1 if config["random_seed"] is None else config["random_seed"]}


def _shira_seed_out(method: SHiRA, config: Config, names: Mapping[str, str], context: Context) -> Config:
  del config, names, context
  return {"random_seed": None if method.random_seed < 0 else method.random_seed}


FORMATS = (
  Format(
    peft_type="OFT",
    method=OFT,
    defaults={
      **MODULES,
      "r": 0,
      "oft_block_size": 32,
      "module_dropout": 0.0,
      "fan_in_fan_out": False,
      "coft": False,
      "eps": 6e-5,
      "block_share": False,
      "use_cayley_neumann": True,
      "num_cayley_neumann_terms": 5,
    },
    fields={
      "r": "rank",
      "oft_block_size": "oft_block_size",
      "coft": "coft",
      "eps": "eps",
      "block_share": "block_share",
      "use_cayley_neumann": "use_cayley_neumann",
      "num_cayley_neumann_terms": "num_cayley_neumann_terms",
    },
    tensors=_oft,
    bias_mode="oft_only",
  ),
  Format(
    peft_type="BOFT",
    method=BOFT,
    defaults={
      **MODULES,
      "boft_block_size": 4,
      "boft_block_num": 0,
      "boft_n_butterfly_factor": 1,
      "boft_dropout": 0.0,
      "fan_in_fan_out": False,
    },
    fields={
      "boft_block_size": "boft_block_size",
      "boft_block_num": "boft_block_num",
      "boft_n_butterfly_factor": "boft_n_butterfly_factor",
      "boft_dropout": "dropout",
    },
    tensors=_boft,
    bias_mode="boft_only",
  ),
  Format(
    peft_type="HRA",
    method=HRA,
    defaults={**MODULES, "r": 8, "apply_GS": False},
    fields={"r": "rank", "apply_GS": "apply_gs"},
    tensors=_hra,
    bias_mode="hra_only",
  ),
  Format(
    peft_type="ROAD",
    method=RoAd,
    defaults={**_FEW_KNOBS, "variant": "road_1", "group_size": 64},
    fields={"variant": "variant", "group_size": "group_size"},
    tensors=_leaves(road_theta=Tensor("road_theta"), road_alpha=Tensor("road_alpha")),
  ),
  Format(
    peft_type="MISS",
    method=MiSS,
    defaults={**MODULES, "r": 64, "miss_dropout": 0.0, "mini_r": 1},
    fields={"r": "rank", "miss_dropout": "dropout", "mini_r": "mini_r"},
    inits={True: "balance", False: "balance", "bat": "bat", "mini": "mini"},
    tensors=_leaves(miss_block=Tensor("miss_block")),
    bias_mode="MiSS_only",
  ),
  Format(
    peft_type="C3A",
    method=C3A,
    defaults={
      **_without("exclude_modules"),
      "block_size": 256,
      "block_size_pattern": {},
      "init_weights": "xavier_uniform",
    },
    fields={"block_size": "block_size", "block_size_pattern": "block_size_pattern"},
    inits={
      "xavier_uniform": "xavier_uniform",
      False: "xavier_uniform",
      "kaiming_uniform": "kaiming_uniform",
      "gaussian": "gaussian",
      True: "zeros",
    },
    tensors=_leaves(c3a_kernel=Tensor("c3a_kernel")),
    bias_mode="c3a_only",
  ),
  Format(
    peft_type="SHIRA",
    method=SHiRA,
    defaults={**_FEW_KNOBS, "r": 32, "mask_type": "random", "random_seed": None, "fan_in_fan_out": False},
    fields={"r": "rank"},
    free=("random_seed",),
    tensors=_leaves(shira_weight=Tensor("shira_weight"), shira_indices=Tensor("shira_indices")),
    config_of=_shira_seed_out,
    fields_of=_shira_seed_in,
  ),
)
