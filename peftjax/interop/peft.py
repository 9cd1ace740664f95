"""Hugging Face PEFT 0.21 adapter folders in and out: adapter_config.json and adapter_model.safetensors.

    model = load(model, "some-adapter")         # an adapter that PEFT or peftjax wrote; it can go on training
    save(model, "my-adapter")                   # peft.PeftModel.from_pretrained(base, "my-adapter")

The set of tensors and every shape must be what adapter_config.json implies on this model, and each key of the config
must be one whose meaning is supported. Beside PEFT's two files stands peftjax.json with what PEFT has no place for: the
base's content hash, the names of the labels, and settings that only training needs; and peftjax.safetensors, if PEFT
stores what a network makes, with that network's leaves. PEFT passes over both.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax import masks, outputs
from peftjax.errors import UserError, nearest
from peftjax.files import read_json
from peftjax.interop import tables, targeting, token_rows
from peftjax.interop.config_in import TASK_TYPES, check_task, checked, format_of, method_of, out_of_reach
from peftjax.interop.config_kinds import check_ours
from peftjax.interop.config_out import Written, config_of
from peftjax.interop.formats import FORMATS
from peftjax.interop.formats.base import Format, Tensors
from peftjax.interop.leaves import (
  base_key,
  base_names,
  base_shapes,
  module_key,
  put_base,
  read_adapter,
  read_base,
  write_adapter,
)
from peftjax.methods.base import Method
from peftjax.methods.bound import Bound
from peftjax.methods.lora import LoRA
from peftjax.models import pretrained
from peftjax.models.family import module_key as module_key_of
from peftjax.models.tensor_files import Checkpoint, write_tensors

if TYPE_CHECKING:
  from peftjax.model import Model

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
OURS = "peftjax.json"
_MERGED = "merged in memory"  # what peftjax.json says in place of a digest of a base that no folder holds
OUR_WEIGHTS = "peftjax.safetensors"
DEFAULT = "default"
_OUT = ("lora_b", "lora_b_init", "lora_b_bias")  # the leaves of LoRA that its change is proportional to
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json")
_EMBEDDINGS = ("embed_tokens", "lm_head")  # PEFT stores their base along with an adapter on them

_CLASHES = {pretrained.CONFIG: "transformers would load that model with this adapter, or its base in its stead"}

log = logging.getLogger(__name__)


# Saving -----------------------------------------------------------------------------------------------------------


def save(model: Model, folder: str | Path, overwrite: bool = False) -> None:
  """Writes the model's adapter, and the task's head, as a PEFT adapter beside what is in a folder.

  Args:
    overwrite: replace files that were not written here.

  Raises:
    UserError: there is no adapter, or PEFT has no way to say what it does; as `outputs.written`.
  """
  model = _unscaled(model)
  one, form, rows = _written_bound(model)
  written = config_of(model, one, form)
  config, tensors = form.pack(one, written.config, write_adapter(model, one, form))
  if rows is not None:
    entries, values = token_rows.written(model, rows)
    config, tensors = {**config, **entries}, {**tensors, **values}
  tensors |= _base_tensors(model, one, form, written)
  tables.check_rows_and_bias(model, config, form, tables.is_tied_on_disk(model))
  tensors = tables.with_bias_copies(model, form, config, tensors)
  if config.get(tables.TYING):
    tensors = tables.with_copies(model, form, tensors)
  has_more = form.has_more(one.method)
  names = (CONFIG, OURS, WEIGHTS, *([OUR_WEIGHTS] if has_more else []))
  clashes = _CLASHES if pretrained.is_model_folder(Path(folder)) else {}
  with outputs.written(folder, names, "adapter", overwrite=overwrite, base=model.folder, clashes=clashes) as temporary:
    (temporary / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (temporary / OURS).write_text(
      json.dumps(_ours(model, one, form), indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    write_tensors(temporary / WEIGHTS, tensors)
    if has_more:
      write_tensors(temporary / OUR_WEIGHTS, _own_leaves(model))


def check_single(model: Model) -> None:
  """Raises a `UserError` if several adapters share the model, which no file of one adapter holds."""
  if any(one.is_stacked for one in model.bound):
    raise UserError("the model holds several adapters; save them one by one, as adapters.split or Bank.use gives them")


def _unscaled(model: Model) -> Model:
  """The model with the factor that its LoRA is scaled by in B, since PEFT's config has no place for one.

  Raises:
    UserError: it holds several adapters, or another method is scaled.
  """
  check_single(model)
  if all(one.scale == 1.0 for one in model.bound):
    return model
  one = next(one for one in model.bound if one.scale != 1.0)
  if type(one.method) is not LoRA or len(model.bound) > 1:
    raise UserError(
      f"{one.method.name} is scaled by {one.scale:g}, which a PEFT adapter has no place for; adapters.to_lora makes a "
      "LoRA of it, or merge it and save the model"
    )
  flat = masks.flatten(model.params)
  for path in model.adapter_paths():
    if path.rpartition(".")[2] in _OUT:
      flat[path] = flat[path] * one.scale
  return dataclasses.replace(model, params=masks.unflatten(flat), bound=(dataclasses.replace(one, scale=1.0),))


def _written_bound(model: Model) -> tuple[Bound, Format, Bound | None]:
  """(what is written, its format, rows of the word embeddings that train beside it)."""
  forms = {form.method: form for form in FORMATS}
  if both := token_rows.beside(model.bound, forms):
    return both[0], forms[type(both[0].method)], both[1]
  adapters = [one for one in model.bound if type(one.method) in forms]
  adapters = [one for one in adapters if one.method.leaf_names] or adapters
  others = [one for one in model.bound if one.method.leaf_names and type(one.method) not in forms]
  if len(adapters) == 1 and not others:
    return adapters[0], forms[type(adapters[0].method)], None
  if not model.bound:
    raise UserError("the model has no adapter to save; add a method first, or save the model itself")
  names = ", ".join(repr(one.method.name) for one in model.bound)
  if adapters:
    raise UserError(f"a PEFT adapter holds one method, and the model has {names}; merge it and save the model")
  known = ", ".join(sorted(form.method.name for form in FORMATS))
  raise UserError(f"PEFT has no format for {names}; merge and save the model, or use one of {known}")


def _base_tensors(model: Model, one: Bound, form: Format, written: Written) -> Tensors:
  wrapped = {name for site in one.sites for name in site.names}
  plain = read_base(model, written.saved)
  tensors = {base_key(model, name, form.prefix): value for name, value in plain.items()}
  tensors |= {base_key(model, name, form.prefix, infix=form.infix): value
              for name, value in read_base(model, written.own).items()}  # fmt: skip
  for name, value in read_base(model, written.biases).items():
    tensors[base_key(model, name, form.prefix, wrapped)] = value
  along = []
  saves_rows = "unembedding" in one.method.kinds
  if not saves_rows and _targets_embeddings(written.config.get("target_modules"), wrapped):
    along = [name for name in base_names(model) if _is_embedding_base(model, name, wrapped)]
  if model.folder and tables.has_other_vocabulary(model, pretrained.read_config(model.folder)):
    along += [name for name in base_names(model) if tables.is_vocabulary(model, name) and name not in plain]
  for name, value in read_base(model, along).items():
    tensors[base_key(model, name, form.prefix, wrapped)] = value
  return tensors


def _targets_embeddings(targets: Any, wrapped: set[str]) -> bool:
  if isinstance(targets, str):
    return any(name.rpartition(".")[2] in _EMBEDDINGS for name in wrapped)
  return bool(set(targets or ()) & set(_EMBEDDINGS))


def _is_embedding_base(model: Model, name: str, wrapped: set[str]) -> bool:
  module = name.rpartition(".")[0]
  return module in wrapped and module_key(model, module).rpartition(".")[2] in _EMBEDDINGS


def _ours(model: Model, one: Bound, form: Format) -> dict[str, Any]:
  """What PEFT's config has no place for."""
  method = one.method
  said = {*form.fields.values(), "targets", "exclude", "layers", "bias", "modules_to_save", "init"}
  training = {
    field.name: getattr(method, field.name)
    for field in dataclasses.fields(method)
    if field.repr and field.name not in said and _is_plain(getattr(method, field.name))
    if getattr(method, field.name) != field.default
  }
  found: dict[str, Any] = {"method": method.name, "settings": training, "architecture": model.architecture}
  if model.head:
    found["id2label"] = model.hf_config.get("id2label")
  if model.folder and (model.folder / pretrained.CONFIG).is_file():
    found["base_sha256"] = _MERGED if model.is_altered else pretrained.content_hash(model.folder)
  return found


def _own_leaves(model: Model) -> Tensors:
  flat = masks.flatten(model.params)
  return {path: np.asarray(flat[path]) for path in sorted(model.adapter_paths())}


def _is_plain(value: Any) -> bool:
  return isinstance(value, bool | int | float | str)


# Loading ----------------------------------------------------------------------------------------------------------


def load(
  model: Model, folder: str | Path, name: str = DEFAULT, inference: bool = False, other_base: bool = False
) -> Model:
  """The model with the adapter of a PEFT folder added, and its head's values in place of the model's own.

  Args:
    name: the adapter's name; PEFT keeps those that are not "default" in a folder of that name inside.
    inference: leave out what only training needs: all that PEFT has no place for.
    other_base: take it though the adapter says that it was trained on other weights.

  Raises:
    UserError: the folder, the config or a tensor is not what was expected; the adapter is for another base model.
  """
  folder = Path(folder).expanduser() / ("" if name == DEFAULT else name)
  config = read_config(folder)
  try:
    ours = _read_ours(folder)
    if not other_base:
      _check_base(model, config, ours)
    form = format_of(config, str(ours.get("method")))
    full = checked(config, form)
    check_task(full, model)
    rows, tensors = token_rows.taken(full, _read_tensors(folder / WEIGHTS))
    tensors = tables.with_shared(model, form, tensors)
    family = model.family
    if any(module_key_of(family, key) != key for key in tensors):  # as modules were called before transformers 5
      model = dataclasses.replace(model, family=dataclasses.replace(family, renamed_modules=(), parameters=()))
    model, full = tables.prepared(tables.with_vocabulary(model, form, tensors, _tokens_of(folder)), full, form)
    whole = not inference and ours.get("method") == form.method.name
    method = method_of(full, form, model, whole=whole)
    if whole:
      method = _with_settings(method, ours.get("settings") or {})
    added = _with(model, method, form, full, tensors, folder)
    tokens = token_rows.method_of(full, model)
    if tokens is not None:
      added = _with(added, tokens, token_rows.FORM, {}, rows, folder)
    added = _with_own_leaves(added, form, folder) if form.has_more(method) else added
    return dataclasses.replace(added, family=family) if added.family is not family else added
  except UserError as error:
    base = config.get("base_model_name_or_path")
    raise UserError(f"{folder}: {error}" + (f" (made for {base!r})" if base else "")) from None


def _check_base(model: Model, config: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
  """Raises a `UserError` if the adapter's base has other values than the model's; PEFT's own adapters do not say."""
  if model.folder is None or not (model.folder / pretrained.CONFIG).is_file():
    return
  wanted, base = ours.get("base_sha256"), config.get("base_model_name_or_path")
  if wanted is None:
    if base and Path(str(base)).name != model.folder.name:
      log.info("the adapter names the base %r, and is put on %s", base, model.folder)
  elif wanted == _MERGED:
    raise UserError(
      "the adapter was trained on a base into which another was merged: save that base, load it, and give other_base "
      "(model.other_base=True, --other_base)"
    )
  elif wanted != pretrained.content_hash(model.folder) and wanted != pretrained.file_hash(model.folder):
    raise UserError(
      f"the adapter was trained on another base: config.json or weights of {model.folder} have another digest than "
      f"{OURS} notes; give the base that it was trained on, or other_base (model.other_base=True, --other_base)"
    )


def read_config(folder: str | Path) -> dict[str, Any]:
  """The adapter_config.json of an adapter folder.

  Raises:
    UserError: no such folder or file, or the file is no JSON object.
  """
  folder = Path(folder).expanduser()
  if not folder.is_dir():
    siblings = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    raise UserError(f"no adapter folder {str(folder)!r}; {nearest(folder.name, siblings)}")
  if not (folder / CONFIG).is_file():
    inside = [path.parent.name for path in folder.glob(f"*/{CONFIG}")]
    hint = f"; it has adapters named {', '.join(sorted(inside))}" if inside else ""
    raise UserError(f"{folder} has no {CONFIG}; expected a PEFT adapter folder{hint}")
  return read_json(folder / CONFIG)


def _read_ours(folder: Path) -> dict[str, Any]:
  """What peftjax.json says; PEFT's own adapters have none."""
  path = folder / OURS
  ours = read_json(path) if path.is_file() else {}
  check_ours(ours, OURS)
  return ours


def labels_of(folder: str | Path) -> dict[str, str]:
  """Number -> name of an adapter's labels, as far as peftjax.json says them; {} where there is no such adapter."""
  ours = Path(folder).expanduser()
  return (_read_ours(ours).get("id2label") or {}) if (ours / CONFIG).is_file() else {}


def implied_head(folder: str | Path, task: str) -> tuple[str, list[str], int]:
  """(task, names of the labels, their number) of an adapter's head, for a base without one.

  Args:
    task: what the base computes by itself; if that is the adapter's task too, the answer is ("", [], 0).
  """
  folder = Path(folder).expanduser()
  wanted = read_config(folder).get("task_type")
  heads = {one for one, name in TASK_TYPES.items() if name == wanted and name in targeting.TASK_HEADS}
  if not heads or task in heads:
    return "", [], 0
  for key, value in _read_tensors(folder / WEIGHTS).items():
    if key.endswith(("classifier.weight", "classifier.out_proj.weight", "score.weight", "qa_outputs.weight")):
      labels = _read_ours(folder).get("id2label") or {}
      names = [labels.get(str(index), "") for index in range(len(labels))]
      return heads.pop(), names if len(names) == len(value) else [], len(value)
  return "", [], 0


def _with_settings(method: Method, settings: Mapping[str, Any]) -> Method:
  known = {field.name for field in dataclasses.fields(method)}
  for key in settings:
    if key not in known:
      raise UserError(f"{OURS}: method {method.name!r} has no setting {key!r}; {nearest(key, known)}")
  return dataclasses.replace(method, **settings)


def has_tokenizer(folder: str | Path) -> bool:
  """Whether an adapter's folder holds a tokenizer of its own, such as trainers save beside it."""
  folder = Path(folder).expanduser()
  return (folder / "tokenizer_config.json").is_file() and any((folder / name).is_file() for name in _TOKENIZERS)


def notes_on(folder: str | Path) -> list[str]:
  """Lines for the log about what an adapter's folder holds that training does not read."""
  return [f"{folder} has a tokenizer; text is read by that of model.path"] if has_tokenizer(folder) else []


def _tokens_of(folder: Path) -> int:
  if not has_tokenizer(folder):
    return 0
  from peftjax.data.inputs.tokenizer_folder import read_tokenizer  # few adapters have one

  return int(read_tokenizer(folder).fast.get_vocab_size(with_added_tokens=True))


def _read_tensors(path: Path) -> Tensors:
  if not path.is_file():
    pickled = path.name == WEIGHTS and (path.parent / PICKLE).is_file()
    hint = f"; {PICKLE} is a pickle, which is never read: save it with safe_serialization=True" if pickled else ""
    raise UserError(f"no {path.name}{hint}")
  checkpoint = Checkpoint([path])
  return {key: checkpoint.read(key) for key in checkpoint.keys()}


def _with_own_leaves(added: Model, form: Format, folder: Path) -> Model:
  """With the leaves of the network that made PEFT's tensors, if it is still the one that made them."""
  own = _read_tensors(folder / OUR_WEIGHTS)
  _check_keys(own, {path: value.shape for path, value in _own_leaves(added).items()})
  leaves = {path: jnp.asarray(value) for path, value in own.items()}
  trained = added.with_params(masks.unflatten({**masks.flatten(added.params), **leaves}))
  saved = _read_tensors(folder / WEIGHTS)  # of formats that pack nothing
  for key, value in write_adapter(trained, trained.bound[-1], form).items():
    if not np.allclose(value, saved[key], rtol=1e-4, atol=1e-5):
      raise UserError(
        f"{OUR_WEIGHTS} does not make the {key!r} of {WEIGHTS}; without {OUR_WEIGHTS} and {OURS} the adapter loads"
      )
  return trained


def _with(
  model: Model, method: Method, form: Format, config: Mapping[str, Any], tensors: Tensors, folder: Path
) -> Model:
  """The model with a method of the tensors' values; what the config implies is compared before any leaf is made."""
  shaped = model.with_params(jax.eval_shape(lambda tree: tree, model.params)).add(method)
  _check_size(shaped, form, folder)
  fitting, places = _fitting(shaped, form, config, tensors)
  return _filled(model.add(method), form, fitting, places)


def _check_size(shaped: Model, form: Format, folder: Path) -> None:
  """Raises a `UserError` if leaves that are converted to be compared are far larger than the files."""
  if form.write is None:
    return
  flat = masks.flatten(shaped.params)
  needed = sum(4 * math.prod(flat[path].shape) for path in shaped.adapter_paths())
  held = sum((folder / name).stat().st_size for name in (WEIGHTS, OUR_WEIGHTS) if (folder / name).is_file())
  if needed > 16 * held + 2**26:
    raise UserError(f"{CONFIG} implies {needed:,} bytes of leaves, and the files hold {held:,}")


def _fitting(added: Model, form: Format, config: Mapping[str, Any], tensors: Tensors) -> tuple[Tensors, dict[str, str]]:
  """(the tensors, one for each leaf; {key: name} of the base's among them) if all are what the config implies.

  Args:
    added: the model with the method, or its shapes.

  Raises:
    UserError: a tensor is missing, is not implied, or has another shape.
  """
  one = added.bound[-1]
  tensors = tables.without_copies(added, form, form.unpack(one, dict(config), tensors))
  places = _base_places(added, one, form, config, set(tensors))
  shapes = {key: tuple(leaf.shape) for key, leaf in write_adapter(added, one, form, shapes=True).items()}
  base = base_shapes(added, places.values())
  shapes |= {key: base[name] for key, name in places.items()}
  if set(tensors) - set(shapes) and (reason := out_of_reach({**form.defaults, **config}, form, added)):
    raise UserError(reason)
  _check_keys(tensors, shapes)
  return tensors, places


def _filled(added: Model, form: Format, tensors: Tensors, places: Mapping[str, str]) -> Model:
  leaves = read_adapter(added, added.bound[-1], form, tensors)
  leaves |= put_base(added, {name: tensors[key] for key, name in places.items()})
  return added.with_params(masks.unflatten({**masks.flatten(added.params), **leaves}))


def _base_places(added: Model, one: Bound, form: Format, config: Mapping[str, Any], found: set[str]) -> dict[str, str]:
  """{PEFT's key: name} of the base leaves that the config says are in the file, and of embeddings that may be."""
  wrapped = {name for site in one.sites for name in site.names}
  entries, mode = config.get("modules_to_save") or (), str(config.get("bias") or "none")
  places = {}
  for name in base_names(added):
    module, _, leaf = name.rpartition(".")
    key = base_key(added, name, form.prefix, wrapped)
    if form.infix and module in one.method.modules:  # type: ignore[attr-defined]
      places[base_key(added, name, form.prefix, infix=form.infix)] = name
    elif targeting.is_saved(entries, module_key(added, module)):
      places[base_key(added, name, form.prefix)] = name
    elif (
      ((leaf == "embedding" or tables.is_vocabulary(added, name)) and key in found)
      or (added.context.in_head(name) and "modules_to_save" not in form.defaults and key in found)
      or (leaf == "bias" and mode == "all")
      or (leaf == "bias" and mode.endswith("_only") and module in wrapped)
    ):
      places[key] = name
  return places


def _check_keys(tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> None:
  missing = [key for key in shapes if key not in tensors]
  extra = [key for key in tensors if key not in shapes]
  if missing:
    raise UserError(f"{len(missing)} tensors are missing, such as {missing[0]!r}; {nearest(missing[0], extra, 1)}")
  if extra:
    raise UserError(f"{len(extra)} tensors are not implied by {CONFIG}, such as {extra[0]!r}")
  for key, shape in shapes.items():
    found = tuple(np.shape(tensors[key]))
    if found != tuple(shape):
      hint = "it is transposed" if found == tuple(reversed(shape)) else "the adapter is for another base model"
      raise UserError(f"{key!r} has shape {found}, and this model needs {tuple(shape)}; {hint}")
