"""`Model`: a Linen module, its parameters, and the methods that act on it.

model = peftjax.load("path/to/roberta-base")
model = model.add(peftjax.methods.LoRA(rank=8, alpha=16, targets=("query", "value")), jax.random.key(0))
out = model(input_ids=ids, attention_mask=mask)
model.merge().save("merged")
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from peftjax import adding, buffers, masks, quantize_model, saving
from peftjax import summary as summary_lib
from peftjax.adapters import adapter, merging
from peftjax.errors import UserError
from peftjax.methods import Method
from peftjax.methods.attach import leaf_paths, penalty
from peftjax.methods.base import NEW_HEAD_RATE, Context
from peftjax.methods.bound import Bound, bind
from peftjax.methods.inject import Body, forward
from peftjax.models.building import build
from peftjax.models.concrete import check_ids
from peftjax.models.family import TEXT_CLASSIFICATION, Family, module_key
from peftjax.models.layers import Runtime
from peftjax.quantize import is_quantized
from peftjax.quantize_model import Quantization, dequantize_leaves
from peftjax.sites import Site
from peftjax.stacks import unstack
from peftjax.trees import Static, joined, parted
from peftjax.wrap.family import is_wrapped, unwrap
from peftjax.wrap.table import summary, uses_of

HEAD = "head"


@dataclasses.dataclass(frozen=True, repr=False)
class Model:
  """A model: everything but `params` is static. Methods return new models; nothing is changed in place.

  Attributes:
    module: the Linen module, or the user's own program (`peftjax.wrap`); it knows nothing of methods.
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
    merge_errors: dotted path of each leaf that was merged into fewer than 32 bits -> share of the change that rounding
      took.
    is_altered: whether methods were merged into the base since it was loaded, so that it is not `folder`'s.
  """

  module: nn.Module | Body
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
  quantization_errors: Mapping[str, float] = dataclasses.field(default_factory=dict)
  merge_errors: Mapping[str, float] = dataclasses.field(default_factory=dict)
  is_altered: bool = False

  def __repr__(self) -> str:
    return summary(self)

  def summary(self) -> str:
    """Its methods and parts on one screen: parameters, those that train, dtypes, groups."""
    return summary_lib.summary(self)

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
    outputs: Any = forward(self.module, self.bound, params, inputs, rng, adapter_ids=adapter_ids)
    return outputs

  def __call__(self, *, adapter_ids: Any = None, **inputs: Any) -> dict[str, Any]:
    """The outputs for arrays given by name, as `forward` without dropout, compiled.

    Raises:
      UserError: ids that the model does not embed, more tokens than it has positions.
    """
    check_ids(self.config, inputs)
    ids = None if adapter_ids is None else self.checked_ids(adapter_ids)
    arrays, static = parted(_arrays(inputs) if isinstance(self.module, nn.Module) else inputs)
    return _jitted(self.forward_key, static)(self.params, arrays, ids)

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
    return self.family.inputs_of(self.architecture, self.config)

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
    model_type = str(self.hf_config.get("model_type", ""))
    encode = functools.partial(_token_ids, self.folder) if self.folder or self.is_abstract else None
    renamed = functools.partial(module_key, self.family) if self.family.renamed_modules else None
    return Context(self.sites, all_stacks, self.head, model_type, self.hf_config, encode, uses_of(self), renamed)

  def add(self, methods: Method | Sequence[Method], key: jax.Array | None = None) -> Model:
    """The model with one or several methods added; its base leaves are the same arrays.

    Args:
      key: for the new leaves; default `jax.random.key(0)`.

    Raises:
      UserError: a pattern without match, a leaf that two methods add, a leaf that does nothing.
    """
    return adding.add(self, methods, key)

  def labels(self) -> masks.Tree:
    """The group of every leaf: the head's is "head"; each method's mask names the rest."""
    context = self.context

    def mask(name: str, leaf: Any) -> str:
      if buffers.is_buffer(name):
        return masks.FROZEN
      if context.in_head(name) and self.trains_head:
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
    """Default peak learning rate of each group that trains: the methods', but for a new linear head of texts' classes,
    which has one of its own beside any method."""
    rates: dict[str, float] = {HEAD: NEW_HEAD_RATE} if self._has_new_linear_head() else {}
    for path, group in masks.flatten(self.labels()).items():
      if group in rates or group == masks.FROZEN:
        continue
      name = masks.layer_names(path, self.stacks)[0]
      owner = next((one.method for one in self.bound if one.mask(name, None) != masks.FROZEN), None)
      rates[group] = owner.rate_of(group) if owner else max([m.learning_rate for m in self.methods], default=1e-3)
    return rates

  def _has_new_linear_head(self) -> bool:
    head = [f"{prefix}." for prefix in self.head]
    maps = [name for name, leaf in masks.flatten(self.params).items()
            if name.startswith(tuple(head)) and len(leaf.shape) > 1]  # fmt: skip
    return self.task == TEXT_CLASSIFICATION and self.trains_head and len(maps) == 1 and maps[0] in self.drawn

  # Layout ---------------------------------------------------------------------------------------------------------

  @property
  def is_abstract(self) -> bool:
    """Whether the leaves are shapes."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(self.params))

  @property
  def layer_stacks(self) -> dict[str, int]:
    """The stacks of layers, without those of experts within them."""
    layers = self.family.all_stacks(self.architecture, self.config)
    return {path: count for path, count in self.stacks.items() if buffers.owner(path) in layers}

  def unrolled(self) -> Model:
    """The same model with one subtree a layer instead of stacks, for methods that differ by layer.

    Raises:
      UserError: it is the user's own, whose program decides how layers are stored.
    """
    if is_wrapped(self):
      raise UserError("layers that a function of your own scans over are one leaf: treat them alike")
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
    if is_wrapped(self):
      raise UserError("a model of your own is not quantised here; give wrap the leaves that your program reads")
    return quantize_model.quantized(self, how)

  def quantized_paths(self) -> set[str]:
    """Dotted tree paths of the leaves that are quantised."""
    return {path for path, leaf in masks.flatten(self.params).items() if is_quantized(leaf)}

  def dequantized(self, dtype: Any = jnp.float32) -> Model:
    """The model with its quantised leaves as arrays."""
    floats = functools.partial(dequantize_leaves, dtype=dtype)
    params = jax.eval_shape(floats, self.params) if self.is_abstract else floats(self.params)
    return dataclasses.replace(self, params=params, quantization_errors={})

  # Leaving --------------------------------------------------------------------------------------------------------

  def merge(self, check: bool = True) -> Model:
    """The model with its methods' changes folded into the base's leaves in float32, and no adapter left.

    A quantised base becomes the float32 arrays that it stands for, with the changes; `quantized` rounds them again.

    Args:
      check: compare what each module computes before and after, on a few random rows.

    Raises:
      UserError: a method is not a change of the base's weights, or its `delta` is another than it acts by.
    """
    return merging.merge(self, check)

  def save(self, folder: str | Path, overwrite: bool = False) -> None:
    """Writes config.json and safetensors in Hugging Face's format beside what is there, and copies the tokenizer along.

    Args:
      overwrite: replace files of the same names that were not written here.

    Raises:
      UserError: methods are still separate; merge first, or save the adapter. As `outputs.written`.
    """
    saving.save(self, folder, overwrite)

  def save_adapter(self, folder: str | Path, overwrite: bool = False) -> None:
    """Writes the methods' leaves and what else trains as a Hugging Face PEFT adapter; `overwrite` as in `save`."""
    saving.save_adapter(self, folder, overwrite)

  def load_adapter(self, folder: str | Path, other_base: bool = False) -> Model:
    """The model with the adapter that `save_adapter` wrote, or Hugging Face PEFT for a model of one of its families.

    Args:
      other_base: take it though it says that it was trained on other weights.

    Raises:
      UserError: the model has an adapter already, or the adapter is for another model.
    """
    return saving.load_adapter(self, folder, other_base)

  def scaled(self, factor: float) -> Model:
    """The model with what its methods change multiplied by a factor; see `adapters.scaled`."""
    return adapter.scaled(self, factor)

  def unwrap(self) -> Any:
    """Of a model that `peftjax.wrap` made, the user's own kind of object again, with the model's leaves.

    Raises:
      UserError: methods are still separate, or the model is one of this package's families.
    """
    return unwrap(self)

  def with_params(self, params: masks.Tree) -> Model:
    """The model with other values of the same leaves."""
    return dataclasses.replace(self, params=params)


def _arrays(inputs: Mapping[str, Any]) -> dict[str, Any]:
  return {name: _arrays(one) if isinstance(one, Mapping) else jnp.asarray(one) for name, one in inputs.items()}


@dataclasses.dataclass(frozen=True)
class _Forward:
  module: nn.Module | Body
  bound: tuple[Bound, ...]

  def __hash__(self) -> int:
    return hash(self.module)


@functools.lru_cache(maxsize=64)
def _jitted(model: _Forward, static: Static) -> Any:
  def run(params: masks.Tree, arrays: list[Any], adapter_ids: jax.Array | None) -> Any:
    return forward(model.module, model.bound, params, joined(arrays, static), adapter_ids=adapter_ids)

  return jax.jit(run)


def _token_ids(folder: Path | None, text: str) -> tuple[int, ...]:
  if folder is None:
    return (0,) * 4096  # of a model of shapes alone, which do not depend on the tokens
  from peftjax.data import load_tokenizer  # only a method that starts from text needs the data package

  return tuple(int(token) for token in load_tokenizer(folder, 4096).encode([text]).ids[0])
