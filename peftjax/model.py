"""`Model`: a Linen module, its parameters, and the methods that act on it.

model = peftjax.load("path/to/roberta-base")
model = model.add(peftjax.methods.LoRA(rank=8, alpha=16, targets=("query", "value")), jax.random.key(0))
out = model(input_ids=ids, attention_mask=mask)
model.merge().save("merged")
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from peftjax import masks
from peftjax.errors import UserError, nearest
from peftjax.methods import Method, expand
from peftjax.methods.base import Context, Site
from peftjax.methods.inject import Bound, acting, attach, bind, check_all_read, discover, leaf_paths, penalty
from peftjax.methods.observe import observe
from peftjax.models import gguf, pretrained
from peftjax.models.family import Architecture, Family
from peftjax.models.layers import Runtime
from peftjax.models.registry import family_of
from peftjax.quantize import is_quantized
from peftjax.quantize_model import (
  Quantization,
  as_quantization,
  check_frozen,
  dequantize_leaves,
  errors_of,
  quantize_leaves,
  quantized_paths,
)

HEAD = "head"
_DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Model:
  """A model: everything but `params` is static. Methods return new models; nothing is changed in place.

  Attributes:
    module: the Linen module; it knows nothing of methods.
    params: nested dict of arrays, or of shapes for a model made from config.json alone.
    config: the parsed config of the family.
    hf_config: config.json as a dict.
    architecture: Hugging Face's class name.
    sites: where methods may act.
    stacks: dotted path of each scanned stack -> layers.
    bound: the methods added so far, with their sites.
    folder: where it was loaded from.
    drawn: names of leaves that were not in the checkpoint (a new head).
    quantization_errors: dotted path of each quantised leaf -> its relative error, where the float leaf was at hand.
  """

  module: nn.Module
  params: masks.Tree
  config: Any
  hf_config: Mapping[str, Any]
  family: Family
  architecture: str
  runtime: Runtime
  sites: tuple[Site, ...]
  stacks: Mapping[str, int]
  bound: tuple[Bound, ...] = ()
  folder: Path | None = None
  drawn: tuple[str, ...] = ()
  new_head: bool = False
  quantization_errors: Mapping[str, float] = dataclasses.field(default_factory=dict)

  # Forward --------------------------------------------------------------------------------------------------------

  def forward(
    self,
    params: masks.Tree,
    inputs: Mapping[str, Any],
    rng: jax.Array | None = None,
    adapter_ids: jax.Array | None = None,
  ) -> dict[str, Any]:
    """A pure, traceable forward pass; with `rng` dropout is on.

    Args:
      adapter_ids: int[B], where the model holds several adapters: which one each example has, -1 for none.
    """
    rngs = None if rng is None else {"dropout": rng}
    with acting(self.bound, params, adapter_ids=adapter_ids) as whole:
      outputs: Any = self.module.apply({"params": whole}, **inputs, rngs=rngs)
    return outputs

  def __call__(self, *, adapter_ids: Any = None, **inputs: Any) -> dict[str, Any]:
    """The outputs for arrays given by name, as `forward` without dropout, compiled."""
    ids = None if adapter_ids is None else self.checked_ids(adapter_ids)
    return _jitted(self.forward_key)(self.params, {name: jnp.asarray(value) for name, value in inputs.items()}, ids)

  def checked_ids(self, adapter_ids: Any) -> jax.Array:
    """int[B]: each example's adapter of those that the model holds, -1 for none.

    Raises:
      UserError: no integers, or of an adapter that the model does not hold.
    """
    ids, count = np.asarray(adapter_ids), max([len(one.members) for one in self.bound], default=0)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
      raise UserError(f"adapter_ids: expected one integer for each example, got {ids.dtype} of shape {ids.shape}")
    if count and ids.size and not -1 <= ids.min() <= ids.max() < count:
      raise UserError(f"adapter_ids: {ids.min()} to {ids.max()}; the model holds {count} adapters, 0 to {count - 1}")
    return jnp.asarray(ids)

  @property
  def forward_key(self) -> _Forward:
    """What the compiled forward pass depends on, apart from shapes."""
    return _Forward(self.module, self.bound)

  @property
  def example_inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a smallest input."""
    return self.family.inputs(self.config)

  # Methods --------------------------------------------------------------------------------------------------------

  @property
  def head(self) -> tuple[str, ...]:
    """Dotted prefixes of the task head's leaves."""
    return self.family.architectures[self.architecture].head

  @property
  def task(self) -> str:
    """What the architecture computes."""
    return self.family.architectures[self.architecture].task

  @property
  def methods(self) -> tuple[Method, ...]:
    """The methods added so far."""
    return tuple(one.method for one in self.bound)

  @property
  def context(self) -> Context:
    """What methods may know of the model."""
    all_stacks = self.family.all_stacks(self.architecture, self.config)
    model_type = str(self.hf_config["model_type"])
    encode = functools.partial(_token_ids, self.folder) if self.folder or self.is_abstract else None
    return Context(self.sites, all_stacks, self.head, model_type, self.hf_config, encode)

  def add(self, methods: Method | Sequence[Method], key: jax.Array | None = None) -> Model:
    """The model with one or several methods added; its base leaves are the same arrays.

    Args:
      key: for the new leaves; default `jax.random.key(0)`.

    Raises:
      UserError: a pattern without match, a leaf that two methods add, a leaf that is never read.
    """
    parts = expand(methods)
    try:
      bound = bind(parts, self.context)
      self._check_uniform(bound)
    except masks.LayersDiffer as error:
      if not self.layer_stacks:
        raise UserError(f"{error}; the experts of a layer are one leaf, so treat them alike") from None
      return self.unrolled().add(methods, key)
    key = jax.random.key(0) if key is None else key
    laid = functools.partial(attach, bound=bound, key=key, original=self._originals(bound))
    observed = self._observe(bound)
    params = (
      jax.eval_shape(laid, self.params, observed=observed) if self.is_abstract else laid(self.params, observed=observed)
    )
    whole = (*self.bound, *bound)
    check_all_read(self.module, params, whole, self.example_inputs)
    return dataclasses.replace(self, params=params, bound=whole)

  def _originals(self, bound: tuple[Bound, ...]) -> Callable[[Site], jax.Array] | None:
    """How to get the float kernel that was quantised at a site; None if no method asks for one."""
    wanting = [one for one in bound if one.method.needs_original]
    if not wanting:
      return None
    paths, name = self.quantized_paths(), wanting[0].method.name
    if not any(".".join((*site.path, "kernel")) in paths for one in wanting for site in one.sites):
      raise UserError(f"{name}.init='loftq' starts from what quantisation rounded away; set model.quantize='nf4'")
    if self.is_abstract:
      return lambda site: jnp.zeros((*site.stack, *site.shape))
    if self.folder is None:
      raise UserError(f"{name}.init='loftq' needs the float weights; load the model from a folder with quantize='nf4'")
    return pretrained.kernels_of(self.folder, self.family, self.params, self.stacks)

  def _observe(self, bound: tuple[Bound, ...]) -> dict[str, dict[str, Any]]:
    """What methods note at their sites in a run of the model as it is; {} for most methods."""
    watching = [one for one in bound if one.method.calibration() is not None]
    if not watching:
      return {}
    plain = self.with_params(jax.eval_shape(lambda tree: tree, self.params)).unrolled()

    def run(params: masks.Tree) -> dict[str, dict[str, Any]]:
      whole = unstack(params, self.stacks)
      return {key: leaves for one in watching for key, leaves in observe(plain.module, plain.bound, whole, one).items()}

    return jax.eval_shape(run, self.params) if self.is_abstract else jax.jit(run)(self.params)

  def _check_uniform(self, bound: tuple[Bound, ...]) -> None:
    for one in bound:
      check_frozen(self.params, masks.label(self.params, one.mask, self.stacks), one.method.name)

  def labels(self) -> masks.Tree:
    """The group of every leaf: the head's is "head"; each method's mask names the rest."""

    def mask(name: str, leaf: Any) -> str:
      if any(name.startswith(prefix + ".") for prefix in self.head) and self.trains_head:
        return HEAD
      return masks.union(*(one.mask for one in self.bound))(name, leaf) if self.bound else masks.FROZEN

    return masks.label(self.params, mask, self.stacks)

  @property
  def trains_head(self) -> bool:
    """A classifier trains with every method; a language model's output layer is part of the base.

    Where each of several adapters has its own head, the base's is the one of examples without an adapter.
    """
    return bool(self.head) and not any(one.is_stacked for one in self.bound)

  def adapter_paths(self) -> set[str]:
    """Dotted tree paths of the leaves that methods added."""
    return leaf_paths(self.bound, self.params)

  def penalty(self, params: masks.Tree) -> jax.Array | float:
    """What the methods add to the mean loss of a training step; 0.0 if none does."""
    return penalty(self.bound, params)

  def transformed(self, optimizer: optax.GradientTransformation, total_steps: int) -> optax.GradientTransformation:
    """The optimizer of the trainable tree, with what the methods do at every update built around it."""
    for one in self.bound:
      if one.is_stacked and type(one.method).transform is not Method.transform:
        raise UserError(f"{one.method.name} changes every update, each adapter's by itself; train them one at a time")
      optimizer = one.method.transform(optimizer, total_steps)
    return optimizer

  def learning_rates(self) -> dict[str, float]:
    """Default peak learning rate of each group that trains, from the methods."""
    rates: dict[str, float] = {}
    for path, group in masks.flatten(self.labels()).items():
      if group in rates or group == masks.FROZEN:
        continue
      name = masks.layer_names(path, self.stacks)[0]
      owner = next((one.method for one in self.bound if one.mask(name, None) != masks.FROZEN), None)
      rates[group] = owner.rate_of(group) if owner else max([m.learning_rate for m in self.methods], default=1e-3)
    return rates

  # Layout ---------------------------------------------------------------------------------------------------------

  @property
  def is_abstract(self) -> bool:
    """Whether the leaves are shapes."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(self.params))

  @property
  def layer_stacks(self) -> dict[str, int]:
    """The stacks of layers, without those of experts within them."""
    layers = self.family.all_stacks(self.architecture, self.config)
    return {path: count for path, count in self.stacks.items() if path in layers}

  def unrolled(self) -> Model:
    """The same model with one subtree a layer instead of stacks, for methods that differ by layer."""
    runtime = dataclasses.replace(self.runtime, scan_layers=False)
    module, _, sites, stacks = build(self.family, self.architecture, self.config, runtime)
    unstacked = functools.partial(unstack, stacks=self.layer_stacks)
    params = jax.eval_shape(unstacked, self.params) if self.is_abstract else unstacked(self.params)
    fresh = dataclasses.replace(
      self, module=module, params=params, runtime=runtime, sites=sites, stacks=stacks, bound=()
    )
    bound = zip(self.bound, bind(self.methods, fresh.context))
    return dataclasses.replace(fresh, bound=tuple(dataclasses.replace(one, sites=new.sites, method=new.method)
                                                  for one, new in bound))  # fmt: skip

  # Quantised bases -------------------------------------------------------------------------------------------------

  def quantized(self, how: Quantization | str = "nf4") -> Model:
    """The model with the kernels of its linear modules quantised, and the relative error of each noted.

    Raises:
      UserError: methods were added before, or the settings do not fit the model.
    """
    if self.bound:
      raise UserError("quantise the model before methods are added, or after model.merge()")
    how = as_quantization(how) or Quantization()
    params = quantize_leaves(self.params, how, quantized_paths(how, self.context) - self.quantized_paths())
    errors = {} if self.is_abstract else errors_of(self.params, params)
    return dataclasses.replace(self, params=params, quantization_errors={**self.quantization_errors, **errors})

  def quantized_paths(self) -> set[str]:
    """Dotted tree paths of the leaves that are quantised."""
    return {path for path, leaf in masks.flatten(self.params).items() if is_quantized(leaf)}

  def dequantized(self, dtype: Any = jnp.float32) -> Model:
    """The model with its quantised leaves as arrays."""
    floats = functools.partial(dequantize_leaves, dtype=dtype)
    params = jax.eval_shape(floats, self.params) if self.is_abstract else floats(self.params)
    return dataclasses.replace(self, params=params, quantization_errors={})

  # Leaving --------------------------------------------------------------------------------------------------------

  def merge(self) -> Model:
    """The model with its methods' changes folded into the base's leaves in float32, and no adapter left.

    A quantised base becomes the float32 arrays that it stands for, with the changes; `quantized` rounds them again.

    Raises:
      UserError: a method is not a change of the base's weights.
    """
    from peftjax.adapters import merging  # it knows models, so it cannot be imported by them

    return merging.merge(self)

  def save(self, folder: str | Path) -> None:
    """Writes config.json and safetensors in Hugging Face's format, and copies the tokenizer along.

    Raises:
      UserError: methods are still separate; merge first, or save the adapter.
    """
    if self.adapter_paths():
      raise UserError("the model has separate adapter leaves; use model.merge().save() or model.save_adapter()")
    hf_config = {**self.hf_config, "architectures": [self.architecture]}
    tensors = pretrained.to_checkpoint(self.family, dequantize_leaves(self.params, jnp.float32), self.stacks)
    pretrained.save(folder, hf_config, tensors, self.folder)

  def save_adapter(self, folder: str | Path) -> None:
    """Writes the methods' leaves and what else trains as a Hugging Face PEFT adapter folder."""
    from peftjax.interop import peft  # interop knows models, so it cannot be imported by them

    peft.save(self, folder)

  def with_params(self, params: masks.Tree) -> Model:
    """The model with other values of the same leaves."""
    return dataclasses.replace(self, params=params)


@dataclasses.dataclass(frozen=True)
class _Forward:
  module: nn.Module
  bound: tuple[Bound, ...]

  def __hash__(self) -> int:
    return hash(self.module)


@functools.lru_cache(maxsize=64)
def _jitted(forward: _Forward) -> Any:
  def run(params: masks.Tree, inputs: dict[str, Any], adapter_ids: jax.Array | None) -> dict[str, Any]:
    with acting(forward.bound, params, adapter_ids=adapter_ids) as whole:
      outputs: Any = forward.module.apply({"params": whole}, **inputs)
    return outputs

  return jax.jit(run)


def _token_ids(folder: Path | None, text: str) -> tuple[int, ...]:
  if folder is None:
    return (0,) * 4096  # of a model of shapes alone, which do not depend on the tokens
  from peftjax.data import load_tokenizer  # only a method that starts from text needs the data package

  return tuple(int(token) for token in load_tokenizer(folder, 4096).encode([text]).ids[0])


def unstack(params: masks.Tree, stacks: Mapping[str, int]) -> masks.Tree:
  """The tree with one subtree a layer: {"layer": {"kernel": [6, ...]}} -> {"layer": {"0": {"kernel": [...]}, ...}}."""
  flat = {}
  for path, leaf in masks.flatten(params).items():
    names = masks.layer_names(path, stacks)
    if names == (path,):
      flat[path] = leaf
    else:
      layers = [jax.tree.map(lambda array, at=index: array[at], leaf) for index in range(len(names))]
      flat.update(zip(names, layers))
  return masks.unflatten(flat)


def stack(params: masks.Tree, stacks: Mapping[str, int]) -> masks.Tree:
  """The inverse of `unstack`; the layers' leaves must agree in name and shape."""
  flat = masks.flatten(params)
  for prefix, count in stacks.items():
    first = [path.removeprefix(f"{prefix}.0.") for path in flat if path.startswith(f"{prefix}.0.")]
    for rest in first:
      layers = [flat.pop(f"{prefix}.{index}.{rest}") for index in range(count)]
      flat[f"{prefix}.{rest}"] = jax.tree.map(lambda *arrays: jnp.stack(arrays), *layers)
  return masks.unflatten(flat)


# Making models ----------------------------------------------------------------------------------------------------


def build(
  family: Family, architecture: str, config: Any, runtime: Runtime
) -> tuple[nn.Module, masks.Tree, tuple[Site, ...], dict[str, int]]:
  """(module, shapes, sites, stacks) of an architecture; what was built last is kept, since tracing takes long."""
  try:
    key = (id(family), architecture, config, runtime)
    kept = _built.get(key)
  except TypeError:  # a config that cannot be hashed
    return _build(family, architecture, config, runtime)
  if kept is None:
    kept = (family, *_build(family, architecture, config, runtime))  # holding the family keeps its id its own
    while len(_built) >= 8:
      del _built[next(iter(_built))]
    _built[key] = kept
  _, module, shapes, sites, stacks = kept
  return module, shapes, sites, dict(stacks)


_built: dict[Any, Any] = {}


def _build(
  family: Family, architecture: str, config: Any, runtime: Runtime
) -> tuple[nn.Module, masks.Tree, tuple[Site, ...], dict[str, int]]:
  module = family.architectures[architecture].build(config, runtime)
  stacks = family.stacks_of(architecture, config, runtime)
  shapes, sites = discover(module, family.inputs(config), stacks)
  return module, shapes, sites, stacks


def load(
  path: str | Path,
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
) -> Model:
  """A model from a Hugging Face folder of config.json and *.safetensors, or from "packaged:NAME".

  Args:
    adapter: a Hugging Face PEFT adapter folder to add.
    dtype: how the base's leaves are stored: float32, bfloat16 or float16.
    task: build the architecture for it ("text_classification", ...); empty: what config.json says. A head that the
      checkpoint lacks is drawn with `seed`, and a base without a head gets the adapter's.
    num_labels: classes of the head; 0: what config.json says.
    runtime: how it runs; `dtype` overrides its dtype.
    quantize: int8, int4 or nf4: the kernels of linear modules are quantised one after the other while they are read.
    place: the model, of shapes -> (a tree of shapes -> its shardings): where leaves are to lie as they are read.

  Raises:
    UserError: the folder, the architecture, a key or a shape is not what was expected.
  """
  folder = folder_of(path)
  hf_config = pretrained.read_config(folder)
  if not pretrained.is_tied(folder, family_of(hf_config), hf_config):
    hf_config = {**hf_config, "tie_word_embeddings": False}
  if adapter and not task and not num_labels and not label_names:
    from peftjax.interop import peft  # interop knows models, so it cannot be imported by them

    task, label_names, num_labels = peft.implied_head(adapter, from_config(hf_config).task)
  model = from_config(
    hf_config, dtype, task=task, num_labels=num_labels, label_names=label_names, runtime=runtime, quantize=quantize
  )
  shardings = None if place is None else place(model)
  params, drawn, errors = pretrained.load_params(
    folder, model.family, model.params, model.stacks, model.head, seed, shardings
  )
  model = dataclasses.replace(model, params=params, folder=folder, drawn=tuple(drawn), quantization_errors=errors)
  if adapter:
    from peftjax.interop import peft

    return peft.load(model, adapter)
  return model


def from_config(
  hf_config: Mapping[str, Any],
  dtype: str = "float32",
  *,
  task: str = "",
  num_labels: int = 0,
  label_names: Sequence[str] = (),
  runtime: Runtime | None = None,
  quantize: Quantization | str | None = None,
) -> Model:
  """A model of shapes alone from a config.json; nothing is read or allocated. For the arguments see `load`."""
  if dtype not in _DTYPES:
    raise UserError(f"model.dtype: unknown {dtype!r}; {nearest(dtype, _DTYPES)}")
  runtime = dataclasses.replace(runtime or Runtime(), dtype=jnp.dtype(dtype))
  family = family_of(hf_config)
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
  """The folder that `model.path` names; of a GGUF file one that is made in the cache."""
  text = os.fspath(path)
  is_packaged = text.startswith("packaged:")
  if not is_packaged and not _is_gguf(Path(text).expanduser()):
    return Path(text).expanduser()
  from peftjax.data import packages  # only these need the data package

  folder = packages.model_folder(text.removeprefix("packaged:")) if is_packaged else Path(text).expanduser()
  return gguf.prepared(folder, packages.cache_folder("gguf")) if _is_gguf(folder) else folder


def _is_gguf(path: Path) -> bool:
  if path.suffix == ".gguf" and path.is_file():
    return True
  return path.is_dir() and not (path / pretrained.CONFIG).is_file() and any(path.glob("*.gguf"))
