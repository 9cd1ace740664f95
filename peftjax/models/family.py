"""What an architecture family declares so that its checkpoints load, its layers stack and its heads are known."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from peftjax import buffers, masks
from peftjax.errors import UserError, nearest
from peftjax.models.config_fields import COMMON, Table
from peftjax.models.layers import Runtime

# What an architecture computes, and so which tasks it can be trained for.
ENCODER = "encoder"
TEXT_CLASSIFICATION = "text_classification"
IMAGE_CLASSIFICATION = "image_classification"
AUDIO_CLASSIFICATION = "audio_classification"
SPEECH_RECOGNITION = "speech_recognition"
CTC = "ctc"
OBJECT_DETECTION = "object_detection"
TOKEN_CLASSIFICATION = "token_classification"
QUESTION_ANSWERING = "question_answering"
MASKED_LM = "masked_lm"
CAUSAL_LM = "causal_lm"
SEQ2SEQ_LM = "seq2seq_lm"


# What files of tensors are called in folders of transformers and of diffusers.
MODEL, DIFFUSERS = "model", "diffusion_pytorch_model"

Json = Mapping[str, Any]
Weights = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One class name of config.json's `architectures`.

  Attributes:
    build: (config, runtime) -> module.
    task: what it computes.
    prefix: where the bare model stands in the tree; "" if it is the bare model.
    head: dotted prefixes of the leaves that a new task needs.
    reads: which of the family's inputs; () for all of them.
    stacks: config -> {dotted path: layers}, where the class has others than its family says.
    may_lack: dotted prefixes of leaves that other classes of the family save none of: part of the head, then.
  """

  build: Callable[[Any, Runtime], nn.Module]
  task: str
  prefix: str = ""
  head: tuple[str, ...] = ()
  reads: tuple[str, ...] = ()
  stacks: Callable[[Any], dict[str, int]] | None = None
  may_lack: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
  """An architecture family.

  Attributes:
    model_types: config.json's `model_type`s, or diffusers' `_class_name`s, that it covers.
    parse: config.json as a dict -> the family's config dataclass.
    architectures: Hugging Face class name -> architecture; the first of a task is the one built for it.
    stacks: config -> {dotted path below the bare model: layers}.
    inputs: config -> example inputs, as shapes.
    table: what is done with each field of config.json.
    unused: regular expressions of checkpoint keys that other architectures use and this load may pass over.
    untransposed: regular expressions of dotted module names whose kernel Hugging Face stores as [in, out].
    rename: (pattern, replacement) pairs from dotted tree path, layers numbered, to Hugging Face's key.
    renamed_modules: (pattern, replacement) pairs, all of which are applied, from a module's name in checkpoints to the
      one that transformers and PEFT's adapters have for it now, where these differ; both are read, the latter written.
    parameters: regular expressions of modules, as transformers now calls them, that it holds as bare parameters.
    default: the architecture built when config.json names none.
    copies: checkpoint key, below a prefix -> keys that hold the same tensor again, or in its stead.
    always_tied: whether transformers ties output layer and word embeddings whatever config.json says, unless the files
      hold two that differ.
    saved: (config, config.json, tensors) -> the last two as they are written, where readers differ from this family.
    inner: (config, layer) -> {dotted path below that layer: count} of what is stacked within a layer: experts.
    alike: config -> whether all layers of a stack have the same leaves; where not, they are never stacked.
    weights: what the files of tensors are called, as readers look for them.
  """

  model_types: tuple[str, ...]
  parse: Callable[[Mapping[str, Any]], Any]
  architectures: Mapping[str, Architecture]
  stacks: Callable[[Any], dict[str, int]]
  inputs: Callable[[Any], dict[str, Any]]
  table: Table = COMMON
  unused: tuple[str, ...] = ()
  untransposed: tuple[str, ...] = ()
  rename: tuple[tuple[str, str], ...] = ()
  renamed_modules: tuple[tuple[str, str], ...] = ()
  parameters: tuple[str, ...] = ()
  default: str = ""
  copies: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  always_tied: bool = False
  saved: Callable[[Any, Json, Weights], tuple[Json, Weights]] = lambda config, hf_config, tensors: (hf_config, tensors)
  inner: Callable[[Any, int], dict[str, int]] = lambda config, layer: {}
  alike: Callable[[Any], bool] = lambda config: True
  weights: str = MODEL

  def architecture(self, hf_config: Mapping[str, Any], task: str) -> str:
    """The class to build: `task`'s, else the one config.json names, else the default.

    Raises:
      UserError: the family has no head for the task.
    """
    if task:
      for name, architecture in self.architectures.items():
        if architecture.task == task:
          return name
      tasks = [one.task for one in self.architectures.values()]
      raise UserError(f"{self.model_types[0]} models have no {task} head; {nearest(task, tasks)}")
    for name in self.table.values(hf_config)["architectures"] or ():
      if name in self.architectures:
        return name
    return self.default or next(iter(self.architectures))

  def inputs_of(self, architecture: str, config: Any) -> dict[str, Any]:
    """Example inputs of one of its architectures, as shapes."""
    found, reads = self.inputs(config), self.architectures[architecture].reads
    return {name: found[name] for name in reads} if reads else found

  def stacks_of(self, architecture: str, config: Any, runtime: Runtime) -> dict[str, int]:
    """Dotted path of each stack in the tree -> layers, or experts; none of layers when they are unrolled."""
    stacks = self.all_stacks(architecture, config)
    if runtime.scan_layers and self.alike(config):
      inner = {f"{path}.{rest}": count for path in stacks for rest, count in self.inner(config, 0).items()}
      return {**stacks, **inner}
    return {
      f"{path}.{layer}.{rest}": count
      for path, layers in stacks.items()
      for layer in range(layers)
      for rest, count in self.inner(config, layer).items()
    }

  def all_stacks(self, architecture: str, config: Any) -> dict[str, int]:
    """Dotted path of each stack of layers -> layers, however they are stored."""
    own = self.architectures[architecture]
    stacks = (own.stacks or self.stacks)(config)
    return {f"{own.prefix}.{path}" if own.prefix else path: count for path, count in stacks.items()}


def check_heads(hidden_size: int, heads: int) -> None:
  """Raises a `UserError` unless the hidden features divide among the heads."""
  if hidden_size % heads:
    raise UserError(f"config.json: {hidden_size} hidden features do not divide among {heads} heads")


def token_inputs(length: int = 4) -> dict[str, jax.ShapeDtypeStruct]:
  """Example inputs of a text model: one sequence of `length` tokens."""
  shape = jax.ShapeDtypeStruct((1, length), jnp.int32)
  return {"input_ids": shape, "attention_mask": shape}


# Names and layouts between the tree and a checkpoint --------------------------------------------------------------

_LEAF_NAMES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "scale_offset": "weight",
               "mean": "running_mean", "var": "running_var", "sinusoids": "weight"}  # fmt: skip


def checkpoint_key(family: Family, name: str) -> str:
  """Hugging Face's key of a leaf, from its name: ``encoder.layer.0.output.dense.kernel`` -> ``... .weight``."""
  name = buffers.owner(name)
  for pattern, replacement in family.rename:
    name, hits = re.subn(pattern, replacement, name)
    if hits:
      break
  module, _, leaf = name.rpartition(".")
  return f"{module}.{_LEAF_NAMES.get(leaf, leaf)}" if module else leaf


def module_key(family: Family, name: str) -> str:
  """The name that transformers, and PEFT's adapters, now have for what is called `name` in checkpoints."""
  for pattern, replacement in family.renamed_modules:
    name = re.sub(rf"^{pattern}$", replacement, name)
  return name


def checkpoint_axes(family: Family, name: str, ndim: int) -> tuple[int, ...] | None:
  """The permutation that turns a checkpoint's tensor into the leaf; None for none. Its own inverse up to 3-D.

  Torch stores linear kernels [out, in] and convolutions [out, in, *window].
  """
  module, _, leaf = name.rpartition(".")
  if leaf != "kernel" or any(re.fullmatch(pattern, module) for pattern in family.untransposed):
    return None
  return {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0), 5: (2, 3, 4, 1, 0)}[ndim]


Index = int | tuple[int, ...] | None


def expanded(tree: masks.Tree, stacks: Mapping[str, int]) -> dict[str, tuple[str, Index]]:
  """Leaf name, layers numbered -> (dotted path in the tree, index on its stack axis, on its two of them, or None)."""
  names: dict[str, tuple[str, Index]] = {}
  for path in masks.flatten(tree):
    shape = masks.stack_shape(path, stacks)
    for at, name in zip(np.ndindex(shape), masks.layer_names(path, stacks)):
      names[name] = (path, None if not at else at[0] if len(at) == 1 else at)
  return names
