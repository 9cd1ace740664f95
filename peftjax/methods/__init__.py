"""The methods, and how `config.method` becomes one.

A new method is a file here with a frozen dataclass that extends `Method` or `Targeted`, and a line in `METHODS`;
outside the package, `config.method.name = "my_module:MyMethod"` takes a class, or a mask function
`(name, leaf) -> group`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from peftjax.errors import UserError
from peftjax.methods.adalora import AdaLoRA
from peftjax.methods.adapter_plus import AdapterPlus
from peftjax.methods.base import Call, Context, Leaves, Method, Targeted, field_error
from peftjax.methods.beft import BEFT
from peftjax.methods.boft import BOFT
from peftjax.methods.bottleneck import Bottleneck
from peftjax.methods.c3a import C3A
from peftjax.methods.compacter import Compacter
from peftjax.methods.delora import DeLoRA
from peftjax.methods.dora import DoRA
from peftjax.methods.fourierft import FourierFT
from peftjax.methods.gralora import GraLoRA
from peftjax.methods.hira import HiRA
from peftjax.methods.houlsby import Houlsby, Pfeiffer
from peftjax.methods.hra import HRA
from peftjax.methods.hybrid import Hybrid, expand
from peftjax.methods.ia3 import IA3
from peftjax.methods.llama_adapter import LlamaAdapter
from peftjax.methods.loha import LoHa
from peftjax.methods.lokr import LoKr
from peftjax.methods.lora import LoRA
from peftjax.methods.mam import MAM
from peftjax.methods.miss import MiSS
from peftjax.methods.oft import OFT
from peftjax.methods.p_tuning import PTuning
from peftjax.methods.p_tuning_v2 import PTuningV2
from peftjax.methods.parallel_adapter import ParallelAdapter
from peftjax.methods.prefix import Prefix
from peftjax.methods.prompt import Prompt
from peftjax.methods.randlora import RandLoRA
from peftjax.methods.reft import ReFT
from peftjax.methods.road import RoAd
from peftjax.methods.selective import BitFit, Full, Head, LastK, LayerNormTuning, MaskMethod, Patterns
from peftjax.methods.settings import check_field
from peftjax.methods.shira import SHiRA
from peftjax.methods.trainable_tokens import TrainableTokens
from peftjax.methods.unipelt import UniPELT
from peftjax.methods.vblora import VBLoRA
from peftjax.methods.vera import VeRA
from peftjax.registry import resolve
from peftjax.sites import Site

METHODS: dict[str, type[Method]] = {
  method.name: method
  for method in (
    Full,
    Head,
    BitFit,
    LayerNormTuning,
    BEFT,
    LastK,
    Patterns,
    LoRA,
    DoRA,
    AdaLoRA,
    VeRA,
    FourierFT,
    VBLoRA,
    LoHa,
    LoKr,
    OFT,
    BOFT,
    MiSS,
    HRA,
    RandLoRA,
    SHiRA,
    C3A,
    HiRA,
    GraLoRA,
    RoAd,
    DeLoRA,
    IA3,
    Houlsby,
    Pfeiffer,
    ParallelAdapter,
    Compacter,
    AdapterPlus,
    ReFT,
    Prompt,
    PTuning,
    Prefix,
    PTuningV2,
    LlamaAdapter,
    TrainableTokens,
    MAM,
    UniPELT,
    Hybrid,
  )
}

__all__ = [
  "BEFT",
  "AdaLoRA",
  "AdapterPlus",
  "BOFT",
  "BitFit",
  "Bottleneck",
  "C3A",
  "Call",
  "Compacter",
  "Context",
  "DeLoRA",
  "DoRA",
  "FourierFT",
  "Full",
  "GraLoRA",
  "HRA",
  "Head",
  "HiRA",
  "Houlsby",
  "Hybrid",
  "IA3",
  "LastK",
  "LayerNormTuning",
  "Leaves",
  "LlamaAdapter",
  "LoHa",
  "LoKr",
  "LoRA",
  "MAM",
  "METHODS",
  "MaskMethod",
  "Method",
  "MiSS",
  "OFT",
  "PTuning",
  "PTuningV2",
  "ParallelAdapter",
  "Patterns",
  "Pfeiffer",
  "Prefix",
  "Prompt",
  "RandLoRA",
  "ReFT",
  "RoAd",
  "SHiRA",
  "Site",
  "Targeted",
  "TrainableTokens",
  "UniPELT",
  "VBLoRA",
  "VeRA",
  "build",
  "expand",
]


def build(settings: Mapping[str, Any]) -> Method:
  """The method that a `config.method` section describes: its `name`, and fields of that method.

  Raises:
    UserError: an unknown name or field, a value of the wrong type.
  """
  fields = {key: _plain(value) for key, value in settings.items() if key != "name"}
  name = settings.get("name")
  if not isinstance(name, str) or not name:
    raise UserError(f"method.name={name!r}: expected the name of a method, such as 'lora'")
  method = resolve("method.name", name, METHODS)
  if isinstance(method, Method):
    return method
  if isinstance(method, type) and issubclass(method, Method):
    return _construct(method, fields)
  if isinstance(method, type) or not callable(method):
    raise UserError(
      f"method.name={name!r} is no method and no mask: expected a class that extends Method, or a function"
    )
  return _construct(MaskMethod, {"function": method, **fields})


def _construct(method: type[Method], fields: dict[str, Any]) -> Method:
  hints = typing.get_type_hints(method)
  known = {field.name: field for field in dataclasses.fields(method)}
  for name, value in fields.items():
    if name not in known:
      raise field_error(method, name)
    fields[name] = _parts(value) if name == "methods" else _checked(f"method.{name}", value, hints[name], known[name])
  empty = dataclasses.MISSING
  lacking = [name for name, one in known.items() if one.default is empty is one.default_factory and name not in fields]
  if lacking:
    raise UserError(f"method.name={method.name!r} needs {', '.join(lacking)}, which has no default")
  return method(**fields)


def _parts(value: Any) -> tuple[Method, ...]:
  """The methods of a combination: each a name, or the fields of `config.method`."""
  parts = [{"name": part} if isinstance(part, str) else part for part in value] if isinstance(value, tuple) else [value]
  if not all(isinstance(part, Mapping) for part in parts):
    raise UserError(
      f"method.methods={value!r}: expected a tuple of names or dicts, such as ({{'name': 'lora'}}, 'bitfit')"
    )
  return tuple(build(part) for part in parts)


def _checked(what: str, value: Any, hint: Any, field: dataclasses.Field[Any]) -> Any:
  if typing.get_origin(hint) is Mapping:
    try:
      value = dict(value)
    except (TypeError, ValueError):
      raise UserError(f"{what}={value!r}: expected a dict, or pairs, from pattern to value") from None
  check_field(what, value, hint, field)
  return float(value) if hint is float else value


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping) or hasattr(value, "to_dict"):
    return {key: _plain(one) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return tuple(_plain(one) for one in value)
  return value
