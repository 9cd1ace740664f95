"""Writing a model as a Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp

from peftjax.composite import component, components, is_composite
from peftjax.diffusion.folder import INDEX
from peftjax.errors import UserError
from peftjax.files import write_text
from peftjax.interop import peft
from peftjax.models import writing
from peftjax.models.components import COMPOSITE, CompositeFamily
from peftjax.outputs import written
from peftjax.quantize_model import dequantize_leaves
from peftjax.wrap import files as wrapped_files
from peftjax.wrap.family import is_wrapped

if TYPE_CHECKING:
  from peftjax.model import Model


def save(model: Model, folder: str | Path, overwrite: bool = False) -> None:
  """See `Model.save`."""
  if model.adapter_paths():
    raise UserError("the model has separate adapter leaves; use model.merge().save() or model.save_adapter()")
  if is_wrapped(model):
    raise UserError(
      "a model of your own has no format here; write what unwrap() gives as you do, or what trained: save_adapter(), "
      "which is peftjax export --format=peft"
    )
  if is_composite(model):
    _save_components(model, Path(folder), overwrite)
    return
  hf_config = {**model.hf_config, "architectures": [model.architecture]}
  tensors = writing.to_checkpoint(model.family, dequantize_leaves(model.params, jnp.float32), model.stacks)
  written_config, written_tensors = model.family.saved(model.config, hf_config, tensors)
  stated = writing.with_dtype(written_config, written_tensors)
  writing.save(folder, stated, written_tensors, model.folder, overwrite, model.family.weights)


def _save_components(model: Model, folder: Path, overwrite: bool) -> None:
  """A folder for each component, and then the list of them: without it there is no model to be read."""
  folder.mkdir(parents=True, exist_ok=True)
  if (folder / INDEX).is_file() and not overwrite:
    raise UserError(f"{folder} holds a model already; give overwrite=True, or another folder")
  for name in components(model):
    save(component(model, name), folder / name, overwrite)
  assert isinstance(model.family, CompositeFamily)
  if model.family.folder is not None and not _is_same(model.family.folder, folder):
    _copy_beside(model, model.family.folder, folder, overwrite)
  write_text(folder / INDEX, json.dumps(model.hf_config[COMPOSITE], indent=2, sort_keys=True) + "\n")


def _is_same(one: Path, other: Path) -> bool:
  return one.exists() and other.exists() and one.samefile(other)


def _copy_beside(model: Model, source: Path, folder: Path, overwrite: bool) -> None:
  """Copies the listed components that are no models: tokenizers, schedulers, processors; but no weights."""
  for name, what in model.hf_config[COMPOSITE].items():
    if name in components(model) or not isinstance(what, list) or not (source / name).is_dir():
      continue
    files = [path.name for path in sorted((source / name).iterdir()) if path.is_file() and path.suffix in _TEXTS]
    with written(folder / name, files, "component", overwrite=overwrite, base=source / name) as temporary:
      for file in files:
        shutil.copyfile(source / name / file, temporary / file)


_TEXTS = (".json", ".txt", ".model", ".spm", ".jinja")  # of vocabularies and settings


def save_adapter(model: Model, folder: str | Path, overwrite: bool = False) -> None:
  """See `Model.save_adapter`."""
  if is_wrapped(model):
    wrapped_files.save(model, folder, overwrite)
    return
  if not is_composite(model):
    peft.save(model, folder, overwrite)
    return
  acted_on = [name for name in components(model) if component(model, name).bound]
  if not acted_on:
    raise UserError("the model has no adapter to save")
  for name in acted_on:
    peft.save(component(model, name), Path(folder) / name, overwrite)


def load_adapter(model: Model, folder: str | Path, other_base: bool = False) -> Model:
  """See `Model.load_adapter`."""
  if is_wrapped(model):
    return wrapped_files.load(model, folder, other_base)
  return peft.load(model, folder, other_base=other_base)
