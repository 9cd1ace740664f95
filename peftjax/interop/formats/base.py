"""What a method's file format is: its PEFT type, the keys of its config, and where its leaves go."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from peftjax.errors import UserError, nearest
from peftjax.methods.base import Context, Leaves, Method
from peftjax.methods.bound import Bound
from peftjax.sites import Site

Config = dict[str, Any]
Tensors = dict[str, np.ndarray]
Layers = dict[str, Leaves]

# Keys of every adapter_config.json.
COMMON = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision",
          "task_type")  # fmt: skip
# Which modules an adapter is on; they become the fields `targets`, `exclude` and `layers`.
TARGETS: Config = {
  "target_modules": None,
  "exclude_modules": None,
  "layers_to_transform": None,
  "layers_pattern": None,
}

# What most configs have besides.
MODULES: Config = {**TARGETS, "bias": "none", "modules_to_save": None, "init_weights": True}


def _same(value: np.ndarray) -> np.ndarray:
  return value


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A leaf as PEFT stores it.

  Attributes:
    key: what follows the module's name in the tensor's key.
    out: the leaf of one layer -> PEFT's layout.
    into: the inverse.
  """

  key: str
  out: Callable[[np.ndarray], np.ndarray] = _same
  into: Callable[[np.ndarray], np.ndarray] = _same


def transposed(key: str) -> Tensor:
  """A matrix that torch stores as [out, in]."""
  return Tensor(key, np.transpose, np.transpose)


def column(key: str) -> Tensor:
  """A vector [n] that PEFT stores as [n, 1]."""
  return Tensor(key, lambda leaf: leaf.reshape(-1, 1), np.ravel)


def row(key: str) -> Tensor:
  """A vector [n] that PEFT stores as [1, n]."""
  return Tensor(key, lambda leaf: leaf.reshape(1, -1), np.ravel)


def kernel(key: str, *axes: int) -> Tensor:
  """A matrix [in · window, out] that PEFT stores as a convolution's kernel [out, in, *window].

  Args:
    axes: (in, *window).
  """
  return Tensor(
    key,
    lambda leaf: leaf.T.reshape(leaf.shape[1], *axes),
    lambda tensor: tensor.reshape(tensor.shape[0], -1).T,
  )


def square(site: Site, method: str) -> None:
  """Raises a `UserError` at a convolution whose window PEFT takes for a square."""
  if len(set(site.window)) > 1:
    size = " x ".join(map(str, site.window))
    raise UserError(f"PEFT's {method} takes windows of convolutions for squares, and {site.name}'s is {size}")


def needed(tensors: Tensors, key: str) -> np.ndarray:
  """A tensor that others make no sense without.

  Raises:
    UserError: it is missing.
  """
  if key not in tensors:
    raise UserError(f"the tensor {key!r} is missing; {nearest(key, tensors, 1)}")
  return tensors[key]


def _no_tensors(method: Any, site: Site) -> Mapping[str, Tensor]:
  del method, site
  return {}


def _no_config(method: Any, config: Config, names: Mapping[str, str], context: Context) -> Config:
  del method, config, names, context
  return {}


def _no_fields(config: Config, names: Mapping[str, str], context: Context) -> Config:
  del config, names, context
  return {}


def _packed(bound: Bound, config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
  del bound
  return config, tensors


def _unpacked(bound: Bound, config: Config, tensors: Tensors) -> Tensors:
  del bound, config
  return tensors


@dataclasses.dataclass(frozen=True)
class Format:
  """How one method is written as a PEFT adapter and read from one.

  Attributes:
    peft_type: adapter_config.json's.
    method: the method's class.
    defaults: the config's keys beside `COMMON`, with PEFT's defaults. A key that neither `fields` nor `free` names must
      be at its default.
    kinds: the kinds of module that it is on, where they are not the method's.
    chooses_modules: whether `target_modules` and its kin choose them by name.
    fields: key -> field of the method that means the same.
    inits: PEFT's `init_weights` -> the method's `init`, where it has one; of keys with one value the first is written.
    free: keys that may hold anything: those that `fields_of` reads, and those that do not change what the adapter
      computes, such as how it was initialised.
    tensors: (method, site) -> {leaf: where it is stored}.
    shared: method -> {leaf that all sites share: where it is stored, after "base_model."}.
    applies: whether a config of this type is this method's, where several methods share one type.
    prefix: of tensors on modules.
    infix: where the leaves are the base's own, in `method.modules`: what stands between module and leaf in a key.
    bias_mode: PEFT's word for the biases of the targeted modules, where it has that knob.
    config_of: (method, config so far, {targeted module's name in the tree: in PEFT}, context) -> entries that no field
      gives.
    fields_of: (config, the same names, context) -> fields that no key gives.
    saved_as: the method that is written for a method, where PEFT stores another, equivalent one.
    leaves_as: (method, site, leaves) -> the leaves of `saved_as(method)`.
    write, read: for formats whose tensors are not one for one leaf: (bound, layers, shared) -> tensors, and
      (bound, tensors, layers, shared) -> (layers, shared).
    pack: (bound, config, tensors) -> (config, tensors) as they are stored, where that is not one tensor a leaf.
    unpack: (bound, config, tensors) -> tensors as before `pack`.
    reads_as: the method that a file of PEFT's gives, where it holds only what the method's leaves make.
    has_more: whether the leaves cannot be had back from PEFT's tensors, and are kept beside them for training to go on.
  """

  peft_type: str
  method: type[Method]
  defaults: Config
  kinds: tuple[str, ...] = ()
  chooses_modules: bool = True
  fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
  inits: Mapping[Any, str] | None = None
  free: tuple[str, ...] = ()
  tensors: Callable[[Any, Site], Mapping[str, Tensor]] = _no_tensors
  shared: Callable[[Any], Mapping[str, Tensor]] = lambda method: {}
  applies: Callable[[Config], bool] = lambda config: True
  prefix: str = "base_model.model."
  infix: str = ""
  bias_mode: str = ""
  config_of: Callable[[Any, Config, Mapping[str, str], Context], Config] = _no_config
  fields_of: Callable[[Config, Mapping[str, str], Context], Config] = _no_fields
  saved_as: Callable[[Any], Any] | None = None
  leaves_as: Callable[[Any, Site, Leaves], Leaves] | None = None
  write: Callable[[Bound, Layers, Leaves], Tensors] | None = None
  read: Callable[[Bound, Tensors, Layers, Leaves], tuple[Layers, Leaves]] | None = None
  pack: Callable[[Bound, Config, Tensors], tuple[Config, Tensors]] = _packed
  unpack: Callable[[Bound, Config, Tensors], Tensors] = _unpacked
  reads_as: type[Method] | None = None
  has_more: Callable[[Any], bool] = lambda method: False
