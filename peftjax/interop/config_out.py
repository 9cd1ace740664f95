"""From a method with settings to adapter_config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from peftjax import masks
from peftjax.buffers import is_buffer, owner
from peftjax.errors import UserError
from peftjax.interop import parameters, tables, targeting
from peftjax.interop.config_in import INIT, TASK_TYPES
from peftjax.interop.formats.base import Config, Format
from peftjax.interop.leaves import base_names, module_names
from peftjax.methods.base import BIAS, Method, ancestors
from peftjax.methods.bound import Bound
from peftjax.methods.linear import ends_with
from peftjax.models.family import checkpoint_axes
from peftjax.vocabulary import table_path, tied_site

if TYPE_CHECKING:
  from peftjax.model import Model

PEFT_VERSION = "0.21.2"


@dataclasses.dataclass(frozen=True)
class Written:
  """An adapter_config.json, and the base leaves that go with it.

  Attributes:
    config: the file.
    saved: names of base leaves of whole modules that train along, the head's among them.
    biases: names of base leaves that train through the `bias` setting.
    own: names of base leaves that the method itself trains.
  """

  config: Config
  saved: tuple[str, ...]
  biases: tuple[str, ...]
  own: tuple[str, ...]


def config_of(model: Model, one: Bound, form: Format) -> Written:
  """What PEFT's config says of the method and of the base's leaves that train with it.

  Raises:
    UserError: PEFT has no way to say it.
  """
  modules = module_names(model)
  method: Any = form.saved_as(one.method) if form.saved_as else one.method
  task_type = TASK_TYPES.get(model.task)
  own = tuple(name for name in base_names(model) if form.infix and name.rpartition(".")[0] in method.modules)
  saved, biases, mode = _trained_base(model, one, form, own)
  config: Config = {
    **form.defaults,
    **{key: _to_json(getattr(method, field)) for key, field in form.fields.items()},
    "auto_mapping": None,
    "base_model_name_or_path": str(model.folder.absolute()) if model.folder else None,
    "inference_mode": True,
    "peft_type": form.peft_type,
    "peft_version": PEFT_VERSION,
    "revision": None,
    "task_type": task_type,
  }
  general: Config = {
    "bias": mode,
    "modules_to_save": _modules_to_save(model, method, saved, task_type, modules) or None,
    "fan_in_fan_out": _is_untransposed(model, one),
  }
  config |= {key: value for key, value in general.items() if key in form.defaults}
  _check_tables(model, one, form, saved)
  if tied_site(model) is not None and table_path(model) in saved:
    config[tables.TYING] = True
  if form.inits is not None:
    config[INIT] = next(key for key, value in form.inits.items() if value == method.init)
  acted_on = [name.rpartition(".")[0] for name in own] or [name for site in one.sites for name in site.names]
  names = {name: modules.get(name, name) for name in acted_on}
  routers = parameters.routers(model, names, modules, method, form)
  if model.family.renamed_modules or model.family.parameters:
    config |= {
      key: _respelled(config[key], parameters.pattern_names(model, names))
      for key, field in form.fields.items()
      if field in getattr(method, "patterns", ())
    }
  bare = _experts(one, form) | routers
  if bare:
    config["target_parameters"] = sorted(f"{names[name]}.weight" for name in bare)
  if form.chooses_modules:
    plain = {key for name, key in names.items() if name not in bare}
    config |= _targets_in(config, method, plain, modules) if plain or not bare else {"target_modules": []}
  return Written({**config, **form.config_of(method, config, names, model.context)}, saved, biases, own)


def _respelled(entries: Mapping[str, Any], names: Mapping[str, str]) -> Config:
  """What is said of modules by the ends of their names in the tree, by PEFT's names for them."""
  found: Config = {}
  for pattern, value in entries.items():
    found |= {theirs: value for name, theirs in names.items() if ends_with(pattern, name) and theirs not in found}
  return found


def _experts(one: Bound, form: Format) -> set[str]:
  """Names of the modules that hold a matrix for each expert, which PEFT targets as parameters."""
  found = {name for site in one.sites if site.experts for name in site.names}
  if found and "target_parameters" not in form.defaults:
    raise UserError(f"PEFT has LoRA alone for experts, not {form.peft_type}; merge it and save the model")
  for field in ("dropout", "lora_bias"):
    if found and getattr(one.method, field, False):
      raise UserError(f"PEFT's LoRA of experts has no {field}; merge it and save the model")
  return found


def _check_tables(model: Model, one: Bound, form: Format, saved: Iterable[str]) -> None:
  """Refuses what PEFT would do to another table than the one that trains here."""
  table = table_path(model)
  acts = any(".".join(site.path) == table.rpartition(".")[0] for site in one.sites)
  covers_ties = "unembedding" in one.method.kinds
  if (table in saved or acts) and not covers_ties:
    tables.check_read(model, tables.table_module(model))
  if table in saved and tied_site(model) is not None and tables.TYING not in form.defaults:
    raise UserError(f"PEFT's {form.peft_type} saves a copy of {table!r}, and here the output layer is tied to it")


def _to_json(value: Any) -> Any:
  if isinstance(value, float) and value.is_integer():
    return int(value) if abs(value) >= 1 else value
  if isinstance(value, Mapping):
    return {key: _to_json(one) for key, one in value.items()}
  return list(value) if isinstance(value, tuple) else value


def _trained_base(
  model: Model, one: Bound, form: Format, own: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...], str]:
  """(leaves of whole modules that train, biases that train alone, PEFT's bias mode).

  A whole module has its buffers with it, which do not train here and may have in the file that they come from.
  """
  groups = masks.flatten(model.labels())
  places = base_names(model)
  trained = {name for name, (path, _) in places.items() if groups[path] != masks.FROZEN} - set(own)
  mode, biases = getattr(one.method, "bias", "none"), set()
  every_bias = {name for name in places if name.endswith(".bias") and not model.context.in_head(name)}
  if "bias" not in form.defaults:
    mode = "none"
  elif mode == "none" and every_bias and every_bias <= trained:
    mode, biases = "all", every_bias
  elif mode != "none":
    biases = {name for name in trained if groups[places[name][0]] == BIAS}
  leaves_of: dict[str, set[str]] = {}
  for name in places:
    leaves_of.setdefault(name.rpartition(".")[0], set()).add(name)
  saved = trained - biases
  for name in sorted(saved):
    has_place = "modules_to_save" in form.defaults or model.context.in_head(name)
    if not has_place or not leaves_of[name.rpartition(".")[0]] <= trained:
      raise UserError(
        f"PEFT's {form.peft_type} cannot hold {name!r}, which trains: it saves whole modules, by modules_to_save"
      )
  kept = () if "modules_to_save" not in form.defaults else one.method.modules_to_save
  buffers = [name for name in places if is_buffer(name)] if kept else []
  saved |= {name for name in buffers if any(masks.matches(kept, one) for one in ancestors(owner(name)))}
  return tuple(sorted(saved)), tuple(sorted(biases)), form.bias_mode if mode.endswith("_only") else mode


def _modules_to_save(
  model: Model, method: Method, saved: Iterable[str], task_type: str | None, modules: Mapping[str, str]
) -> list[str]:
  owners = {name.rpartition(".")[0] for name in saved}
  heads = list(targeting.TASK_HEADS.get(task_type or "", ()))
  heads += [modules[name] for name in model.head if name in modules and not targeting.is_saved(heads, modules[name])]
  others = {modules[name] for name in owners if not model.context.in_head(name)}
  entries = [*method.modules_to_save, *heads]
  everything = {key for name, key in modules.items() if name in {leaf.rpartition(".")[0] for leaf in base_names(model)}}
  covered = {key for key in everything if targeting.is_saved(method.modules_to_save, key)} - {
    key for key in everything if targeting.is_saved(heads, key)
  }
  return entries if covered == others else [*sorted(others), *heads]


def _targets_in(config: Config, method: Any, chosen: set[str], modules: Mapping[str, str]) -> Config:
  for name in sorted(chosen):
    if targeting.is_saved(config.get("modules_to_save") or (), name):
      raise UserError(f"{method.name} acts on {name!r}, which PEFT saves whole in modules_to_save; exclude it")
  found: Config = {"target_modules": sorted(chosen)}
  exclude, layers = getattr(method, "exclude", ()), getattr(method, "layers", ())
  knobs = {"exclude_modules": exclude, "layers_to_transform": layers}
  simple = not isinstance(method.targets, str) and not isinstance(exclude, str)
  if simple and all(key in config for key, value in knobs.items() if value):
    given = list(method.targets)
    if config.get("target_parameters"):  # which are no modules
      given = [entry for entry in given if any(masks.matches((entry,), key) for key in chosen)]
    tried = {"target_modules": given, **{key: list(value) or None for key, value in knobs.items()}}
    tried = {key: value for key, value in tried.items() if key in config}
    tails = {**tried, "target_modules": sorted({name.rpartition(".")[2] for name in chosen})}
    for one in (tried, tails):
      whole = {**config, **one, "target_parameters": None}
      if {key for key in modules.values() if targeting.is_targeted(whole, key)} == chosen:
        return one
  return found


def _is_untransposed(model: Model, one: Bound) -> bool:
  """Whether torch stores the targeted kernels as [in, out], as GPT-2 does."""
  names = [name for site in one.sites if site.kind == "linear" for name in site.names]
  return any(checkpoint_axes(model.family, f"{name}.kernel", 2) is None for name in names)
