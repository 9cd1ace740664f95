"""From adapter_config.json to a method with settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from peftjax import masks, methods
from peftjax.errors import UserError, nearest
from peftjax.interop import parameters, targeting
from peftjax.interop.config_kinds import check_config
from peftjax.interop.formats import FORMATS
from peftjax.interop.formats.base import COMMON, Config, Format
from peftjax.interop.leaves import base_names, module_names
from peftjax.methods.base import Method, Targeted, layer_index
from peftjax.methods.linear import ends_with
from peftjax.models.family import (
  CAUSAL_LM,
  ENCODER,
  QUESTION_ANSWERING,
  SEQ2SEQ_LM,
  TEXT_CLASSIFICATION,
  TOKEN_CLASSIFICATION,
)
from peftjax.patterns import full_match

if TYPE_CHECKING:
  from peftjax.model import Model

TASK_TYPES = {
  TEXT_CLASSIFICATION: "SEQ_CLS",
  TOKEN_CLASSIFICATION: "TOKEN_CLS",
  QUESTION_ANSWERING: "QUESTION_ANS",
  CAUSAL_LM: "CAUSAL_LM",
  SEQ2SEQ_LM: "SEQ_2_SEQ_LM",
  ENCODER: "FEATURE_EXTRACTION",
}
# Keys with one meaning for all methods; beside them, of configs that old versions of PEFT wrote, those that only said
# how to run.
_GENERAL = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias",
            "fan_in_fan_out", "init_weights")  # fmt: skip
_OBSOLETE = ("enable_lora", "merge_weights", "runtime_config")
INIT = "init_weights"
_KINDS = {
  "linear": ("a linear module", "linear modules"),
  "conv": ("a convolution", "convolutions"),
  "embedding": ("an embedding", "embeddings"),
  "norm": ("a normalization", "normalizations"),
}


def format_of(config: Mapping[str, Any], name: str = "") -> Format:
  """The format of an adapter_config.json.

  Args:
    name: of the method, where several share a format and this one is preferred.

  Raises:
    UserError: its `peft_type` is missing or not supported.
  """
  peft_type = config.get("peft_type")
  known = ", ".join(sorted({form.peft_type for form in FORMATS}))
  if not isinstance(peft_type, str):
    raise UserError(f"no peft_type; expected one of {known}")
  forms = [form for form in FORMATS if form.peft_type == peft_type and form.applies(dict(config))]
  if not forms:
    raise UserError(f"peft_type {peft_type!r} is not supported; expected one of {known}")
  return next((form for form in forms if form.method.name == name), forms[0])


def checked(config: Mapping[str, Any], form: Format) -> Config:
  """The config with PEFT's defaults for the keys it lacks.

  Raises:
    UserError: a key that is not known, a value of another type, or a key with a meaning that is not supported and that
      is not at its default.
  """
  check_config(config, form.defaults, "adapter_config.json")
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


def method_of(config: Config, form: Format, model: Model, *, whole: bool = False) -> Method:
  """The method that a `checked` config describes, with targets that mean on this model what they mean in PEFT.

  Args:
    whole: all leaves are there, and not only what they make for inference.

  Raises:
    UserError: nothing is targeted, a module to save is not there, a value is not supported.
  """
  method = form.method if whole or form.reads_as is None else form.reads_as
  known = {field.name for field in dataclasses.fields(method)}
  modules = module_names(model)
  fields = {field: _of_json(config[key]) for key, field in form.fields.items() if config[key] is not None}
  names: Mapping[str, str] = {}
  if form.chooses_modules:
    kinds = form.kinds or method.kinds
    every = {name: modules[name] for site in model.sites if site.kind in kinds for name in site.names}
    bare = {} if parameters.takes(form) else parameters.routed(model, every)  # of which PEFT finds no module
    names = {name: key for name, key in every.items() if name not in bare}
    fields |= _targets_of(config, form, model, names, every, known)
    names = {name: key for name, key in names.items() if targeting.is_targeted(config, key)}
    for field in getattr(method, "patterns", ()):
      entries = fields.get(field) or {}
      fields[field] = _respelled(entries, names, parameters.pattern_names(model, names))
  if form.inits is not None:
    fields["init"] = _init_of(config[INIT], form.inits)
  fields |= form.fields_of(config, names, model.context)
  fields["modules_to_save"] = _saved_of(config, model, modules)
  return methods.build({"name": method.name, **{name: value for name, value in fields.items() if name in known}})


def _respelled(entries: Mapping[str, Any], names: Iterable[str], compared: Mapping[str, str]) -> Config:
  """What is said of modules by the ends of their names, for those there are and by the tree's names for them.

  Args:
    compared: {name in the tree: what PEFT compares the keys with}.
  """
  found: Config = {}
  for key, value in entries.items():
    hits = {name for name, theirs in compared.items() if full_match(rf"(.*\.)?({key})$", theirs)}
    ours = {name for name in names if ends_with(key, name)}
    for spelled in [key] if ours and ours == hits else [name for name in names if name in hits]:
      found.setdefault(spelled, value)  # of two that match, the first holds
  return found


def _init_of(value: Any, inits: Mapping[Any, str]) -> str:
  if not isinstance(value, bool | str) or value not in inits:
    raise UserError(f"{INIT} {value!r} is not supported; {nearest(str(value), map(str, inits))}")
  return inits[value]


def _of_json(value: Any) -> Any:
  return tuple(value) if isinstance(value, list) else value


def _targets_of(
  config: Config, form: Format, model: Model, names: Mapping[str, str], every: Iterable[str], known: Collection[str]
) -> Config:
  """Fields of a method that acts on those of `names` that the config targets, and on no other of `every`."""
  if config["target_modules"] is None:
    found = form.method().default_targets(model.context.model_type) if issubclass(form.method, Targeted) else ()
    config["target_modules"] = found if isinstance(found, str) else list(found)
  chosen = {name for name, key in names.items() if targeting.is_targeted(config, key)}
  if not chosen:
    raise UserError(out_of_reach(config, form, model) or _no_target(config, names.values()))
  if all(model.context.in_head(name) for name in chosen):
    raise UserError(out_of_reach(config, form, model))
  targets, exclude = (
    entries if isinstance(entries, str) else tuple(one for one in entries or () if _any(one, names))
    for entries in (config["target_modules"], config.get("exclude_modules"))
  )
  layers = config.get("layers_to_transform")
  layers = () if layers is None else (layers,) if isinstance(layers, int) else tuple(layers)
  ours = {
    name
    for name in every
    if targets and masks.matches(targets, name) and not (exclude and masks.matches(exclude, name))
    if not layers or layer_index(name) in layers
  }
  fields: Config = {"targets": targets, "exclude": exclude, "layers": layers}
  if ours != chosen or any(value and field not in known for field, value in fields.items()):
    fields = {"targets": targeting.exact_patterns(chosen, every), "exclude": (), "layers": ()}
  mode = config.get("bias", "none")
  return {**fields, "bias": f"{form.method.name}_only" if str(mode).endswith("_only") else mode}


def _any(entry: str, names: Iterable[str]) -> bool:
  return any(masks.matches((entry,), name) for name in names)


def _no_target(config: Config, names: Iterable[str]) -> str:
  targets = config["target_modules"]
  first = targets if isinstance(targets, str) else (list(targets) or [""])[0]
  tails = {name.rpartition(".")[2] for name in names}
  return f"target_modules {targets!r} names no module of this model; {nearest(first, tails)}"


def out_of_reach(config: Config, form: Format, model: Model) -> str:
  """Of the first module that the config targets, and at which the method does not act here, a line; "" if none."""
  owners = {name.rpartition(".")[0] for name in base_names(model)}
  kind_of = {name: site.kind for site in model.sites for name in site.names if site.kind in _KINDS}
  kinds = form.kinds or form.method.kinds
  for name, key in module_names(model).items():
    if name not in owners or not targeting.is_targeted(config, key):
      continue
    if model.context.in_head(name):
      return (
        f"{form.method.name} acts on no module of the task's head, which trains whole, and target_modules names "
        f"{key!r} of it; expected it in modules_to_save"
      )
    if kind_of.get(name) not in kinds:
      what, _ = _KINDS.get(kind_of.get(name, ""), ("a module of another kind", ""))
      where = " and ".join(_KINDS[one][1] for one in kinds if one in _KINDS)
      return f"{form.method.name} acts on {where}, and target_modules names {key!r}, {what}; expected it left out"
  return ""


def _saved_of(config: Config, model: Model, modules: Mapping[str, str]) -> tuple[str, ...]:
  """`modules_to_save` without the task's head, which trains anyway, as names of the modules that own the leaves."""
  owners = {name.rpartition(".")[0] for name in base_names(model)} - {""}  # a leaf at the root is of no module
  entries = config.get("modules_to_save") or []
  automatic = {name for names in targeting.TASK_HEADS.values() for name in names}
  for entry in entries:
    if entry not in automatic and not any(targeting.is_saved([entry], modules[name]) for name in owners):
      tails = {name.rpartition(".")[2] for name in modules.values()}
      raise UserError(f"modules_to_save: no module {entry!r}; {nearest(entry, tails)}")
  saved = {name for name in owners if targeting.is_saved(entries, modules[name]) and not model.context.in_head(name)}
  named = tuple(entry for entry in dict.fromkeys(entries) if _any(entry, saved))
  return named if {name for name in owners if named and masks.matches(named, name)} == saved else tuple(sorted(saved))
