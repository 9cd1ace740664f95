"""From a config to the model that is trained: base, head and method, with weights or as shapes alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from peftjax import config as config_lib
from peftjax import masks, memory, methods
from peftjax.errors import UserError, nearest
from peftjax.loading import folder_of, from_config, initialise, load
from peftjax.model import Model
from peftjax.models import pretrained
from peftjax.models.family import CAUSAL_LM, ENCODER, SEQ2SEQ_LM
from peftjax.models.layers import Runtime
from peftjax.models.registry import family_of
from peftjax.parallel.sharding import layout_of
from peftjax.quantize_model import Quantization

INITS = ("pretrained", "random")
ADAPTER_KEY = 1  # folded into the seed's key, so that no other draw shares the adapter's


def runtime(config: ConfigDict) -> Runtime:
  """How the model runs, from `config.model`."""
  section = config.model
  return Runtime(
    compute_dtype=section.compute_dtype or None,
    attention=section.attention,
    remat=section.remat,
    scan_layers=section.scan_layers,
    dropout=None if section.dropout < 0 else section.dropout,
  )


def quantization(config: ConfigDict) -> Quantization | None:
  """How the base is quantised, from `config.model`; None if it is not."""
  section = config.model
  if not section.quantize:
    return None
  return Quantization(section.quantize, section.quantize_block, section.quantize_exclude)


def make_model(
  config: ConfigDict,
  task: str = "",
  label_names: Sequence[str] = (),
  num_labels: int = 0,
  abstract: bool = False,
  mesh: Mesh | None = None,
) -> Model:
  """The base with the task's head and the configured method.

  Args:
    task: the architecture to build, such as "text_classification"; empty: what config.json says.
    label_names: names of the head's classes, or
    num_labels: their number.
    abstract: shapes alone: no weights are read or made.
    mesh: of several devices: the base is read straight onto it.

  Raises:
    UserError: as `peftjax.load` and `Model.add` do.
  """
  method = methods.build(config.method)
  section = config.model
  options: dict[str, Any] = {
    "task": task,
    "label_names": label_names,
    "num_labels": num_labels,
    "runtime": runtime(config),
    "quantize": quantization(config),
  }
  if section.init not in INITS:
    raise UserError(f"model.init={section.init!r}; {nearest(section.init, INITS)}")
  if abstract or section.init == "random":
    folder = folder_of(section.path)
    model = from_config(pretrained.read_config(folder), section.dtype, **options)
    if section.init == "random" and not abstract:
      if section.adapter:
        raise UserError("model.adapter: an adapter needs the base that it was trained on, not model.init=random")
      if options["quantize"]:
        raise UserError("model.quantize: a model with model.init=random trains its base, which cannot be quantised")
      memory.check(masks.count(model.params).bytes, f"model.init=random: the weights of {section.path}")
      model = dataclasses.replace(initialise(model, jax.random.key(config.seed)), folder=folder)
  else:
    if mesh is not None and mesh.size > 1:
      options["place"] = lambda base: layout_of(base, mesh).shardings
    model = load(section.path, section.adapter or None, section.dtype, seed=config.seed, **options)
    if section.adapter:
      return model  # its method is the adapter's
  key = jax.random.fold_in(jax.random.key(config.seed), ADAPTER_KEY)
  return model.add(method, key)


def shape_task(config: ConfigDict) -> tuple[str, int]:
  """(task, classes) where no data is read: what the config says, else the model folder.

  A bare encoder gets a head only if the config asks for one, or if it is the default model, which is trained on the
  default data.
  """
  if config.task.name != "auto":
    return "" if config.task.name == "none" else config.task.name, config.task.num_labels
  defaults = config_lib.default()
  if config.model.path == defaults.model.path and config.data.name == defaults.data.name:
    return "text_classification", config.task.num_labels or 2
  return "", config.task.num_labels


def trained_task(config: ConfigDict, data_task: str) -> str:
  """The task of a run: the config's, else the data's, else what the model's architecture computes.

  Raises:
    UserError: none of them says.
  """
  if config.task.name != "auto":
    return config.task.name
  if data_task not in ("", CAUSAL_LM, SEQ2SEQ_LM):
    return data_task
  hf_config = pretrained.read_config(folder_of(config.model.path))
  task = from_config(hf_config).task
  offered = {one.task for one in family_of(hf_config).architectures.values()}
  if data_task == SEQ2SEQ_LM:
    for kind in (SEQ2SEQ_LM, CAUSAL_LM):
      if kind in offered:
        return kind
    raise UserError(f"{config.data.name!r} has a source and a target, and {config.model.path!r} writes no text")
  if data_task == CAUSAL_LM and CAUSAL_LM in offered and not config.data.label_column:
    return CAUSAL_LM
  if task == ENCODER:
    raise UserError(f"task.name: neither {config.data.name!r} nor {config.model.path!r} names a task; set it")
  if task not in (CAUSAL_LM, SEQ2SEQ_LM) and not config.data.label_column:
    raise UserError(f"data.label_column: task {task!r} needs labels, and {config.data.name!r} has none that is known")
  return task
