"""Making models: from a folder, from a config.json alone, or with fresh values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from peftjax import hub, masks
from peftjax.composite import component, components, compose, in_component, is_composite, part_path
from peftjax.diffusion.folder import ENCODERS, INDEX, has_conditions
from peftjax.errors import UserError, nearest
from peftjax.files import can_be_named, read_json
from peftjax.interop import lora_files, peft
from peftjax.model import Model
from peftjax.models import ctranslate2, dinov2_onnx, gguf, pretrained
from peftjax.models.building import build
from peftjax.models.family import Architecture, Family
from peftjax.models.layers import Runtime
from peftjax.models.registry import NAMES, family_of
from peftjax.quantize_model import Quantization, as_quantization
from peftjax.vocabulary import output_path, table_path, tied_site

_DTYPES = ("float32", "bfloat16", "float16")
_PASSED_OVER = ("StableDiffusionSafetyChecker",)
"""Classes of pipelines' components that are not loaded, though they are models: they look at finished pictures."""


def load(
  path: str | Path | Mapping[str, str | Path],
  adapter: str | Path | None = None,
  dtype: str = "float32",
  *,
  task: str = "",
  num_labels: int = 0,
  label_names: Sequence[str] = (),
  runtime: Runtime | None = None,
  seed: int = 0,
  quantize: Quantization | str | None = None,
  place: Callable[[Model], Callable[[masks.Tree], masks.Tree]] | None = None,
  family: Family | str = "",
  component_dtypes: Mapping[str, str] | None = None,
  other_base: bool = False,
  new_head: bool = False,
) -> Model:
  """A model from a Hugging Face folder of config.json and *.safetensors, or from "packaged:NAME" or a
  hub's "hub:OWNER/NAME".

  Several models as one (`peftjax.composite`) come from a folder with model_index.json and a folder for each component,
  or from {component: path}.

  Args:
    adapter: a Hugging Face PEFT adapter folder to add, or a LoRA file of diffusers or kohya, or its folder.
    dtype: how the base's leaves are stored: float32, bfloat16 or float16.
    task: build the architecture for it ("text_classification", ...); empty: what config.json says. A head that the
      checkpoint lacks is drawn with `seed`, and a base without a head gets the adapter's.
    num_labels: classes of the head; 0: what config.json says.
    runtime: how it runs; `dtype` overrides its dtype.
    quantize: int8, int4 or nf4: the kernels of linear modules are quantised one after the other while they are read.
    place: the model, of shapes -> (a tree of shapes -> its shardings): where leaves are to lie as they are read.
    family: one's own family, or `module:Name` of it; empty: what config.json says. For several models, several divided
      by commas, each for the components that its `model_types` names.
    component_dtypes: component -> dtype, of those that are stored otherwise.
    other_base: take the adapter though it says that it was trained on other weights.
    new_head: draw the task's head with `seed` though the checkpoint has one, such as of other labels.

  Raises:
    UserError: the folder, the architecture, a key or a shape is not what was expected.
  """
  adapter = hub.local(adapter) if adapter else None
  if isinstance(path, Mapping) or is_index_folder(path):
    if task or num_labels or label_names:
      raise UserError("model.path: a head belongs to one component; load it and `compose` the models")
    options: dict[str, Any] = {"runtime": runtime, "seed": seed, "quantize": quantize, "place": place}
    whole = _components(path, dtype, component_dtypes or {}, family, load, options)
    return put_adapter(whole, adapter, other_base) if adapter else whole
  if component_dtypes:
    raise UserError(f"model.component_dtypes: {str(path)!r} is one model; set model.dtype")
  folder = folder_of(path)
  hf_config = pretrained.read_config(folder)
  family = pretrained.as_saved(folder, family_of(hf_config, family))
  lora = lora_files.file_of(adapter) if adapter else None
  if adapter and lora is None and not task and not num_labels and not label_names:
    task, label_names, num_labels = peft.implied_head(adapter, from_config(hf_config, family=family).task)
  settings: dict[str, Any] = {"task": task, "num_labels": num_labels, "label_names": label_names, "family": family}
  hf_config, tie = _tied_as_in_files(folder, hf_config, from_config(hf_config, dtype, runtime=runtime, **settings))
  model = from_config(hf_config, dtype, runtime=runtime, quantize=quantize, **settings)
  shardings = None if place is None else place(model)
  params, drawn, errors = pretrained.load_params(
    folder, model.family, model.params, model.stacks, model.head, seed, shardings, tie, new_head
  )
  model = dataclasses.replace(model, params=params, folder=folder, drawn=tuple(drawn), quantization_errors=errors)
  return put_adapter(model, adapter, other_base) if adapter else model


def put_adapter(model: Model, adapter: str | Path, other_base: bool = False) -> Model:
  """A base, or its shapes, with an adapter as `load` takes it; a base of shapes has no bytes that an adapter may note.

  Raises:
    UserError: there is no such adapter, or it is for another base.
  """
  if (lora := lora_files.file_of(adapter)) is not None:
    return lora_files.load(model, lora)
  if is_composite(model):
    return _with_adapters(model, Path(adapter), other_base)
  return peft.load(model, adapter, other_base=other_base)


def is_index_folder(path: str | Path) -> bool:
  """Whether it is a folder of components."""
  folder = Path(path).expanduser()
  return (folder / INDEX).is_file() and not (folder / pretrained.CONFIG).is_file()


def inputs_folder(folder: Path) -> Path:
  """Where what reads a model's inputs stands: beside the model, or of several models in diffusers' folder for it."""
  beside = folder / "tokenizer"
  return beside if is_index_folder(folder) and beside.is_dir() else folder


def described(
  path: str | Path,
  dtype: str = "float32",
  *,
  component_dtypes: Mapping[str, str] | None = None,
  family: Family | str = "",
  **options: Any,
) -> Model:
  """The model of a folder, or of several as one, in shapes alone; of its files names alone are looked at.

  Args:
    options: as of `from_config`; the head's are for one model.
  """
  if not is_index_folder(path):
    if component_dtypes:
      raise UserError(f"model.component_dtypes: {str(path)!r} is one model; set model.dtype")
    return _described(path, dtype, family=family, **options)
  own = {name: value for name, value in options.items() if name in ("runtime", "quantize")}
  return _components(path, dtype, component_dtypes or {}, family, _described, own)


def _described(path: str | Path, dtype: str, *, family: Family | str, **options: Any) -> Model:
  folder = folder_of(path)
  hf_config = pretrained.read_config(folder)
  return from_config(hf_config, dtype, family=pretrained.as_saved(folder, family_of(hf_config, family)), **options)


def _components(
  path: str | Path | Mapping[str, str | Path],
  dtype: str,
  dtypes: Mapping[str, str],
  families: Family | str,
  make: Callable[..., Model],
  options: Mapping[str, Any],
) -> Model:
  """The components that a folder lists, or that are given, each by `make`, put together."""
  folder, index, of_texts = None, None, options
  if not isinstance(path, Mapping):
    folder = Path(path).expanduser()
    index = _without_passed_over(read_json(folder / INDEX))
    path = {name: folder / name for name in _listed(folder, index)}
    if has_conditions(folder):  # whose denoiser reads states from before the text encoders' last layers
      runtime = dataclasses.replace(options.get("runtime") or Runtime(), output_hidden_states=True)
      of_texts = {**options, "runtime": runtime}
  for name in dtypes:
    if name not in path:
      raise UserError(f"model.component_dtypes: no component {name!r}; {nearest(name, path)}")
  named = [families] if isinstance(families, Family) else [family_of({}, one) for one in families.split(",") if one]
  made = {}
  for name, one in path.items():
    try:
      hf_config = pretrained.read_config(folder_of(one))
      family = _family_among(named, hf_config)
      _check_class(name, index, family)
      own = of_texts if name in ENCODERS else options
      made[name] = make(one, dtype=dtypes.get(name, dtype), family=family, **own)
    except UserError as error:
      raise UserError(f"component {name!r}: {error}") from None
  return compose(made, index, folder)


def _without_passed_over(index: Mapping[str, Any]) -> dict[str, Any]:
  """model_index.json, where what takes no part in training is as diffusers says that there is none."""
  return {
    name: [None, None] if isinstance(what, list) and what[1:] and what[1] in _PASSED_OVER else what
    for name, what in index.items()
  }


def _listed(folder: Path, index: Mapping[str, Any]) -> list[str]:
  """The components of model_index.json that are models; others are tokenizers and such.

  Raises:
    UserError: a component is not there, or there is no model.
  """
  listed = [name for name, what in index.items() if isinstance(what, list) and any(what)]
  odd = [name for name in listed if Path(name).name != name or name == ".." or not can_be_named(name)]
  if odd:
    raise UserError(f"{folder / INDEX} lists {odd[0]!r}; expected the name of a folder in it")
  missing = [name for name in listed if not (folder / name).is_dir()]
  if missing:
    raise UserError(f"{folder / INDEX} lists {missing[0]!r}, and there is no such folder; the download is incomplete")
  models = [name for name in listed if (folder / name / pretrained.CONFIG).is_file()]
  if not models:
    raise UserError(f"{folder / INDEX} lists no component with a {pretrained.CONFIG}")
  return models


def _family_among(families: Sequence[Family], hf_config: Mapping[str, Any]) -> Family:
  """The one that covers a config.json, of the user's own first."""
  kinds = {kind for name in NAMES if isinstance(kind := hf_config.get(name), str)}
  return next((one for one in families if kinds & set(one.model_types)), None) or family_of(hf_config)


def _check_class(name: str, index: Mapping[str, Any] | None, family: Family) -> None:
  """Raises a `UserError` if model_index.json gives a component a class that its family has not."""
  entry = (index or {}).get(name)
  found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
  known = {*family.architectures, *family.model_types}
  if found is not None and not (isinstance(found, str) and found in known):
    raise UserError(f"{INDEX} says that it is a {found}, and its config.json is {family.model_types[0]!r}'s; "
                    f"{nearest(str(found), known)}")  # fmt: skip


def _with_adapters(model: Model, folder: Path, other_base: bool) -> Model:
  """The composite with the adapters that stand in the folder under its components' names."""
  found = [name for name in components(model) if (folder / name / peft.CONFIG).is_file()]
  if not found:
    raise UserError(f"{folder} has no folder of an adapter for any of {', '.join(components(model))}")
  for name in found:
    part = peft.load(component(model, name), folder / name, other_base=other_base)
    for one in part.bound:
      model = model.add(in_component(one, name))
    shared = frozenset(one.shared_path for one in part.bound)
    values = {part_path(path, name, shared): leaf for path, leaf in masks.flatten(part.params).items()}
    model = model.with_params(masks.unflatten({**masks.flatten(model.params), **values}))
  return model


def _tied_as_in_files(
  folder: Path, hf_config: dict[str, Any], model: Model
) -> tuple[dict[str, Any], pretrained.Tie | None]:
  """config.json with what the files say of an output layer of its own, and the table that both are if there is none."""
  module: Any = model.module
  if not hasattr(module, "tied_entries"):
    return hf_config, None
  tie = pretrained.Tie(table_path(model), output_path(model))
  says_tied = tied_site(model) is not None
  if not says_tied and not model.family.always_tied:
    return hf_config, None
  is_tied = pretrained.is_tied(folder, model.family, model.params, model.stacks, tie)
  if is_tied != says_tied:  # what else depends on the entry stays as it was
    kept = {name: getattr(model.config, name) for name in module.tied_entries}
    hf_config = {**hf_config, **kept, "tie_word_embeddings": is_tied}
  return hf_config, tie if is_tied else None


def from_config(
  hf_config: Mapping[str, Any],
  dtype: str = "float32",
  *,
  task: str = "",
  num_labels: int = 0,
  label_names: Sequence[str] = (),
  runtime: Runtime | None = None,
  quantize: Quantization | str | None = None,
  family: Family | str = "",
) -> Model:
  """A model of shapes alone from a config.json; nothing is read or allocated. For the arguments see `load`."""
  if dtype not in _DTYPES:
    raise UserError(f"model.dtype: unknown {dtype!r}; {nearest(dtype, _DTYPES)}")
  runtime = dataclasses.replace(runtime or Runtime(), dtype=jnp.dtype(dtype))
  if dtype != "float32" and runtime.compute_dtype is None:  # what trains is float32 all the same
    runtime = dataclasses.replace(runtime, compute_dtype=jnp.dtype(dtype))
  family = family_of(hf_config, family)
  architecture = family.architecture(hf_config, task)
  hf_config = _with_labels(hf_config, family.architectures[architecture], num_labels, label_names)
  config = family.parse(hf_config)
  module, shapes, sites, stacks = build(family, architecture, config, runtime)
  model = Model(module, shapes, config, hf_config, family, architecture, runtime, sites, stacks)
  how = as_quantization(quantize)
  return model if how is None else model.quantized(how)


def _with_labels(
  hf_config: Mapping[str, Any], architecture: Architecture, num_labels: int, label_names: Sequence[str]
) -> dict[str, Any]:
  labelled = dict(hf_config)
  if architecture.head and (num_labels or label_names):
    names = list(label_names) or [f"LABEL_{index}" for index in range(num_labels)]
    labelled["id2label"] = {str(index): name for index, name in enumerate(names)}
    labelled["label2id"] = {name: index for index, name in enumerate(names)}
    labelled["num_labels"] = len(names)
  return labelled


def initialise(model: Model, key: jax.Array) -> Model:
  """The model with freshly drawn parameters instead of shapes."""
  std = float(model.hf_config.get("initializer_range", 0.02))
  return model.with_params(pretrained.draw_params(model.params, model.stacks, key, std))


def folder_of(path: str | Path) -> Path:
  """The folder that `model.path` names: a snapshot of a hub's, and of a GGUF file one that is made in the cache."""
  text = hub.local(path)
  is_packaged = text.startswith("packaged:")
  if not is_packaged and not _is_gguf(Path(text).expanduser()):
    return Path(text).expanduser()
  from peftjax.data import packages  # only these need the data package

  folder = packages.model_folder(text.removeprefix("packaged:")) if is_packaged else Path(text).expanduser()
  if ctranslate2.is_ctranslate2(folder):
    return ctranslate2.whisper_folder(folder, packages.cache_folder("ctranslate2"))
  if dinov2_onnx.is_onnx(folder):
    return dinov2_onnx.encoder_folder(folder, packages.cache_folder("onnx"))
  return gguf.prepared_folder(folder, packages.cache_folder("gguf")) if _is_gguf(folder) else folder


def _is_gguf(path: Path) -> bool:
  if path.suffix == ".gguf" and path.is_file():
    return True
  return path.is_dir() and not (path / pretrained.CONFIG).is_file() and any(path.glob("*.gguf"))
