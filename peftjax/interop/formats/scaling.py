"""(IA)³, new biases and tuned normalisations as PEFT writes them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from peftjax import masks
from peftjax.interop.formats.base import Config, Format, Tensor, column, row
from peftjax.interop.targeting import exact_patterns, is_targeted
from peftjax.methods import targets
from peftjax.methods.base import Context
from peftjax.methods.beft import BEFT
from peftjax.methods.ia3 import IA3
from peftjax.methods.selective import LayerNormTuning
from peftjax.sites import Site


def _tensors(method: IA3, site: Site) -> Mapping[str, Tensor]:
  if site.kind == "conv":
    points = (1,) * len(site.window)
    return {"ia3_l": Tensor("ia3_l", lambda leaf: leaf.reshape(1, -1, *points), np.ravel)}
  return {"ia3_l": (row if method.settings(site.names[0]) else column)("ia3_l")}


def _config(method: IA3, config: Config, names: Mapping[str, str], context: Context) -> Config:
  del context
  scaled = {names[name] for name in names if method.settings(name)}
  entries = method.feedforward or ()
  # PEFT wants the one list to be a part of the other, and asks only how a name ends.
  is_part = not isinstance(entries, str) and set(entries) <= set(config["target_modules"])
  if is_part and {name for name in names.values() if name.endswith(tuple(entries))} == scaled:
    return {"feedforward_modules": list(entries)}
  return {"target_modules": sorted(names.values()), "feedforward_modules": sorted(scaled)}


def _fields(config: Config, names: Mapping[str, str], context: Context) -> Config:
  entries = config["feedforward_modules"]
  if entries is None:
    entries = targets.IA3_FEEDFORWARD.get(context.model_type, ())
  if isinstance(entries, str):
    scaled = {name for name, key in names.items() if is_targeted({"target_modules": entries}, key)}
  else:
    # PEFT asks only how the name ends here, not whether a component starts there.
    scaled = {name for name, key in names.items() if key.endswith(tuple(entries))}
    entries = tuple(entry for entry in entries if any(masks.matches((entry,), name) for name in names))
  simple = {name for name in names if entries and masks.matches(entries, name)} == scaled
  return {"feedforward": entries if simple else exact_patterns(scaled, names)}


FORMATS = (
  Format(
    peft_type="IA3",
    method=IA3,
    defaults={
      "target_modules": None,
      "exclude_modules": None,
      "feedforward_modules": None,
      "fan_in_fan_out": False,
      "modules_to_save": None,
      "init_ia3_weights": True,
    },
    free=("init_ia3_weights", "feedforward_modules"),
    tensors=_tensors,
    config_of=_config,
    fields_of=_fields,
  ),
  Format(
    peft_type="BEFT",
    method=BEFT,
    defaults={"target_modules": None, "modules_to_save": None, "init_weights": True},
    free=("init_weights",),
    tensors=lambda method, site: {"beft_bias": row("beft_bias")},
  ),
  Format(
    peft_type="LN_TUNING",
    method=LayerNormTuning,
    defaults={"target_modules": None, "exclude_modules": None, "modules_to_save": None},
    kinds=("norm",),
    infix="ln_tuning_layers",
  ),
)
