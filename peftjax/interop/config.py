"""adapter_config.json: from it to a method with settings, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from peftjax import masks
from peftjax.errors import UserError, nearest
from peftjax.interop import rules
from peftjax.interop.formats import FORMATS
from peftjax.interop.formats.base import COMMON, Config, Format
from peftjax.interop.leaves import base_names, module_names
from peftjax.methods.base import BIAS, Method, Targeted, layer_index
from peftjax.methods.inject import Bound
from peftjax.methods.linear import ends_with
from peftjax.model import Model
from peftjax.models.family import CAUSAL_LM, ENCODER, SEQ2SEQ_LM, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION

PEFT_VERSION = "0.21.2"
TASK_TYPES = {
  TEXT_CLASSIFICATION: "SEQ_CLS",
  TOKEN_CLASSIFICATION: "TOKEN_CLS",
  CAUSAL_LM: "CAUSAL_LM",
  SEQ2SEQ_LM: "SEQ_2_SEQ_LM",
  ENCODER: "FEATURE_EXTRACTION",
}
# Keys with one meaning for all methods; beside them, of configs that old versions of PEFT wrote, those that only said
# how to run.
_GENERAL = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias",
            "fan_in_fan_out")  # fmt: skip
_OBSOLETE = ("enable_lora", "merge_weights", "runtime_config")


# Reading ----------------------------------------------------------------------------------------------------------


def format_of(config: Mapping[str, Any]) -> Format:
  """The format of an adapter_config.json.

  Raises:
    UserError: its `peft_type` is missing or not supported.
  """
  name = config.get("peft_type")
  known = {form.peft_type for form in FORMATS}
  if not isinstance(name, str):
    raise UserError(f"no peft_type; expected one of {', '.join(sorted(known))}")
  for form in FORMATS:
    if form.peft_type == name and form.applies(dict(config)):
      return form
  raise UserError(f"peft_type {name!r} is not supported; expected one of {', '.join(sorted(known))}")


def checked(config: Mapping[str, Any], form: Format) -> Config:
  """The config with PEFT's defaults for the keys it lacks.

  Raises:
    UserError: a key that is not known, or one with a meaning that is not supported and that is not at its default.
  """
  known = {*form.defaults, *COMMON, *_OBSOLETE}
  for key, value in config.items():
    if key not in known:
      raise UserError(f"unknown key {key!r} for {form.peft_type}; {nearest(key, known)}")
    covered = key in form.fields or key in form.free or key in COMMON or key in _GENERAL or key in _OBSOLETE
    if not covered and value != form.defaults[key] and value not in (None, [], {}):
      raise UserError(f"{key}={value!r} is not supported; only {form.defaults[key]!r} is")
  return {**form.defaults, **config}


def check_task(config: Mapping[str, Any], model: Model) -> None:
  """Raises a `UserError` if the adapter is for another task than the model's."""
  wanted = config.get("task_type")
  if wanted and wanted != TASK_TYPES.get(model.task, wanted):
    task = next((task for task, name in TASK_TYPES.items() if name == wanted), wanted)
    raise UserError(f"task_type is {wanted}, and {model.architecture} is for {model.task}; load the model with {task=}")


def method_of(config: Config, form: Format, model: Model) -> Method:
  """The method that a `checked` config describes, with targets that mean on this model what they mean in PEFT.

  Raises:
    UserError: nothing is targeted, a module to save is not there, a value is not supported.
  """
  modules = module_names(model)
  fields = {field: _of_json(config[key]) for key, field in form.fields.items() if config[key] is not None}
  names: Mapping[str, str] = {}
  if issubclass(form.method, Targeted) and "target_modules" in form.defaults:
    sites = form.method(**fields).candidates(model.context)
    names = {name: modules[name] for site in sites for name in site.names}
    fields |= _targets_of(config, form, model, names)
    names = {name: key for name, key in names.items() if rules.is_targeted(config, key)}
    for field in getattr(form.method, "patterns", ()):
      entries = fields.get(field) or {}
      fields[field] = {key: value for key, value in entries.items() if any(ends_with(key, name) for name in names)}
  fields |= form.fields_of(config, names, model.context)
  fields["modules_to_save"] = _saved_of(config, model, modules)
  return form.method(**fields)


def _of_json(value: Any) -> Any:
  return tuple(value) if isinstance(value, list) else value


def _targets_of(config: Config, form: Format, model: Model, names: Mapping[str, str]) -> Config:
  if config["target_modules"] is None:
    found = form.method().default_targets(model.context.model_type)  # type: ignore[attr-defined]
    config["target_modules"] = found if isinstance(found, str) else list(found)
  chosen = {name for name, key in names.items() if rules.is_targeted(config, key)}
  if not chosen:
    raise UserError(_no_target(config, names.values()))
  targets, exclude = (
    entries if isinstance(entries, str) else tuple(one for one in entries or () if _any(one, names))
    for entries in (config["target_modules"], config.get("exclude_modules"))
  )
  layers = config.get("layers_to_transform")
  layers = () if layers is None else (layers,) if isinstance(layers, int) else tuple(layers)
  ours = {
    name
    for name in names
    if targets and masks.matches(targets, name) and not (exclude and masks.matches(exclude, name))
    if not layers or layer_index(name) in layers
  }
  fields: Config
  if ours == chosen:
    fields = {"targets": targets, "exclude": exclude, "layers": layers}
  else:
    fields = {"targets": rules.exact_patterns(chosen, names), "exclude": (), "layers": ()}
  mode = config.get("bias", "none")
  return {**fields, "bias": f"{form.method.name}_only" if str(mode).endswith("_only") else mode}


def _any(entry: str, names: Iterable[str]) -> bool:
  return any(masks.matches((entry,), name) for name in names)


def _no_target(config: Config, names: Iterable[str]) -> str:
  targets = config["target_modules"]
  first = targets if isinstance(targets, str) else (list(targets) or [""])[0]
  tails = {name.rpartition(".")[2] for name in names}
  return f"target_modules {targets!r} names no module of this model; {nearest(first, tails)}"


def _saved_of(config: Config, model: Model, modules: Mapping[str, str]) -> tuple[str, ...]:
  """`modules_to_save` without the task's head, which trains anyway, as names of the modules that own the leaves."""
  owners = {name.rpartition(".")[0] for name in base_names(model)}
  entries = config.get("modules_to_save") or []
  automatic = {name for names in rules.TASK_HEADS.values() for name in names}
  for entry in entries:
    if entry not in automatic and not any(rules.is_saved([entry], modules[name]) for name in owners):
      tails = {name.rpartition(".")[2] for name in modules.values()}
      raise UserError(f"modules_to_save: no module {entry!r}; {nearest(entry, tails)}")
  saved = {name for name in owners if rules.is_saved(entries, modules[name]) and not model.context.in_head(name)}
  named = tuple(entry for entry in dict.fromkeys(entries) if _any(entry, saved))
  return named if {name for name in owners if named and masks.matches(named, name)} == saved else tuple(sorted(saved))


# Writing ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Written:
  """An adapter_config.json, and the base leaves that go with it.

  Attributes:
    config: the file.
    saved: names of base leaves under modules_to_save, the head's among them.
    biases: names of base leaves that train through the `bias` setting.
  """

  config: Config
  saved: tuple[str, ...]
  biases: tuple[str, ...]


def config_of(model: Model, one: Bound, form: Format) -> Written:
  """What PEFT's config says of the method and of the base's leaves that train with it.

  Raises:
    UserError: PEFT has no way to say it.
  """
  modules = module_names(model)
  method = form.saved_as(one.method) if form.saved_as else one.method
  task_type = TASK_TYPES.get(model.task)
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
  saved, biases, mode = _trained_base(model, one, form)
  if "bias" in form.defaults:
    config["bias"] = mode
  if "modules_to_save" in form.defaults:
    config["modules_to_save"] = _modules_to_save(model, method, saved, task_type, modules) or None
  if "fan_in_fan_out" in form.defaults:
    config["fan_in_fan_out"] = _is_untransposed(model, one)
  if not isinstance(method, Targeted):
    pass
  elif "target_modules" not in form.defaults:
    _check_all(model, method, one, form)
  else:
    config |= _targets_in(config, method, one, modules)
  names = {name: modules.get(name, name) for site in one.sites for name in site.names}
  return Written({**config, **form.config_of(method, config, names, model.context)}, saved, biases)


def _to_json(value: Any) -> Any:
  if isinstance(value, float) and value.is_integer():
    return int(value) if abs(value) >= 1 else value
  if isinstance(value, Mapping):
    return {key: _to_json(one) for key, one in value.items()}
  return list(value) if isinstance(value, tuple) else value


def _trained_base(model: Model, one: Bound, form: Format) -> tuple[tuple[str, ...], tuple[str, ...], str]:
  """(leaves of whole modules that train, biases that train alone, PEFT's bias mode)."""
  groups = masks.flatten(model.labels())
  places = base_names(model)
  trained = {name for name, (path, _) in places.items() if groups[path] != masks.FROZEN}
  mode = getattr(one.method, "bias", "none")
  biases: set[str] = set()
  if mode != "none" and "bias" in form.defaults:
    biases = {name for name in trained if groups[places[name][0]] == BIAS}
  leaves_of: dict[str, set[str]] = {}
  for name in places:
    leaves_of.setdefault(name.rpartition(".")[0], set()).add(name)
  saved = trained - biases
  for name in sorted(saved):
    if not leaves_of[name.rpartition(".")[0]] <= trained or "modules_to_save" not in form.defaults:
      raise UserError(
        f"PEFT's {form.peft_type} cannot hold {name!r}, which trains: it saves whole modules, by modules_to_save"
      )
  return tuple(sorted(saved)), tuple(sorted(biases)), form.bias_mode if mode.endswith("_only") else mode


def _modules_to_save(
  model: Model, method: Method, saved: Iterable[str], task_type: str | None, modules: Mapping[str, str]
) -> list[str]:
  owners = {name.rpartition(".")[0] for name in saved}
  heads = list(rules.TASK_HEADS.get(task_type or "", ()))
  heads += [modules[name] for name in model.head if not rules.is_saved(heads, modules[name])]
  others = {modules[name] for name in owners if not model.context.in_head(name)}
  entries = [*method.modules_to_save, *heads]
  everything = {key for name, key in modules.items() if name in {leaf.rpartition(".")[0] for leaf in base_names(model)}}
  covered = {key for key in everything if rules.is_saved(method.modules_to_save, key)} - {
    key for key in everything if rules.is_saved(heads, key)
  }
  return entries if covered == others else [*sorted(others), *heads]


def _targets_in(config: Config, method: Targeted, one: Bound, modules: Mapping[str, str]) -> Config:
  chosen = {modules[name] for site in one.sites for name in site.names}
  for name in sorted(chosen):
    if rules.is_saved(config.get("modules_to_save") or (), name):
      raise UserError(f"{method.name} acts on {name!r}, which PEFT saves whole in modules_to_save; exclude it")
  found: Config = {"target_modules": sorted(chosen)}
  knobs = {"exclude_modules": method.exclude, "layers_to_transform": method.layers}
  simple = not isinstance(method.targets, str) and not isinstance(method.exclude, str)
  if simple and all(key in config for key, value in knobs.items() if value):
    tried = {"target_modules": list(method.targets), **{key: list(value) or None for key, value in knobs.items()}}
    tried = {key: value for key, value in tried.items() if key in config}
    if {key for key in modules.values() if rules.is_targeted({**config, **tried}, key)} == chosen:
      found = tried
  return found


def _check_all(model: Model, method: Targeted, one: Bound, form: Format) -> None:
  chosen = {name for site in one.sites for name in site.names}
  for site in method.candidates(model.context):
    for name in site.names:
      if name not in chosen:
        raise UserError(f"PEFT's {form.peft_type} has no word for which layers, and {method.name} leaves out {name!r}")


def _is_untransposed(model: Model, one: Bound) -> bool:
  """Whether torch stores the targeted kernels as [in, out], as GPT-2 does."""
  from peftjax.models.family import checkpoint_axes

  names = [name for site in one.sites if site.kind == "linear" for name in site.names]
  return any(checkpoint_axes(model.family, f"{name}.kernel", 2) is None for name in names)
