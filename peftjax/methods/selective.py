"""Methods that are a mask alone: which of the base's own leaves train."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Self

from peftjax import masks
from peftjax.errors import UserError, nearest
from peftjax.methods import targets as default_targets
from peftjax.methods.base import BIAS, Context, Method, layer_index


@dataclasses.dataclass(frozen=True, kw_only=True)
class Full(Method):
  """Full fine-tuning: every leaf trains."""

  name: ClassVar[str] = "full"
  learning_rate: ClassVar[float] = 1e-4

  def mask(self, name: str, leaf: Any) -> str:
    return masks.full(name, leaf)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head(Method):
  """The task head alone, on a frozen model: the baseline that every other method must beat."""

  name: ClassVar[str] = "head"
  learning_rate: ClassVar[float] = 5e-3

  def bind(self, context: Context) -> Self:
    if not context.head:
      raise UserError("method 'head' trains the task's head, and this model has none; choose a task with a head")
    return super().bind(context)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitFit(Method):
  """BitFit (Ben Zaken et al. 2021, arXiv 2106.10199): the bias terms, those of normalisations included.

  Attributes:
    targets: patterns of modules whose biases train; empty: all. The paper's smaller variant has
      ("query", "intermediate.dense").
  """

  name: ClassVar[str] = "bitfit"
  learning_rate: ClassVar[float] = 5e-4

  targets: masks.Patterns = ()
  biases: tuple[str, ...] = dataclasses.field(default=(), repr=False)

  def bind(self, context: Context) -> Self:
    biased = [name for site in context.sites if site.has_bias for name in site.names]
    own = {name for site in context.sites for name in site.biases}
    if not biased:
      what = context.model_type or "the model"
      raise UserError(f"method 'bitfit' trains biases, and {what} has none; 'layernorm' may do instead")
    if self.targets:
      masks.match_table(self.targets, biased, "bitfit.targets")
      own = {name for site in context.sites for name, module in zip(site.biases, site.names)
             if masks.matches(self.targets, module)}  # fmt: skip
    return dataclasses.replace(super().bind(context), biases=tuple(sorted(own)))

  def mask(self, name: str, leaf: Any) -> str:
    module, _, tail = name.rpartition(".")
    if name in self.biases or (tail == "bias" and (not self.targets or masks.matches(self.targets, module))):
      return BIAS
    return super().mask(name, leaf)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerNormTuning(Method):
  """LN tuning (Zhao et al. 2023, arXiv 2312.11420): the scales and biases of the normalisations.

  Attributes:
    targets: patterns of normalisation modules; empty: Hugging Face PEFT's default for the architecture, and all of them
      where it has none.
  """

  name: ClassVar[str] = "layernorm"
  learning_rate: ClassVar[float] = 3e-3

  targets: masks.Patterns = ()
  modules: tuple[str, ...] = dataclasses.field(default=(), repr=False)

  def bind(self, context: Context) -> Self:
    norms = tuple(name for site in context.sites if site.kind == "norm" for name in site.names)
    if not norms:
      raise UserError(f"method 'layernorm' trains normalisations, and {context.model_type or 'the model'} has none")
    if self.targets:
      masks.match_table(self.targets, norms, "layernorm.targets")
    targets = self.targets or default_targets.NORMS.get(context.model_type, ("*",))
    bound = super().bind(context)
    return dataclasses.replace(
      bound, modules=tuple(module for name in norms if masks.matches(targets, name) for module in masks.called(name))
    )

  def mask(self, name: str, leaf: Any) -> str:
    own = {name, name.rpartition(".")[0]}
    return super().mask(name, leaf) if own.isdisjoint(self.modules) else "norm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastK(Method):
  """The last k layers of the deepest stack, or of the decoder's where there are two, as they are.

  Attributes:
    k: how many layers.
  """

  name: ClassVar[str] = "last_k"
  learning_rate: ClassVar[float] = 2e-4

  k: int = 2
  first: int = dataclasses.field(default=-1, repr=False)
  stack: str = dataclasses.field(default="", repr=False)

  def bind(self, context: Context) -> Self:
    if not context.stacks:
      raise UserError("method 'last_k' needs a model with layers")
    stack = max(context.stacks, key=lambda name: ("decoder" in name, context.stacks[name]))
    layers = context.stacks[stack]
    if not 1 <= self.k <= layers:
      raise UserError(f"last_k.k: expected 1 to {layers}, the layers of {stack}, got {self.k}")
    bound = super().bind(context)
    return dataclasses.replace(bound, first=layers - self.k, stack=stack)

  def mask(self, name: str, leaf: Any) -> str:
    if name.startswith(self.stack + "."):
      layer = layer_index(name)
      if layer is not None and layer >= self.first:
        return "last_k"
    return super().mask(name, leaf)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskMethod(Method):
  """A user's own mask function as a method."""

  name: ClassVar[str] = "mask"
  learning_rate: ClassVar[float] = 1e-4

  function: Callable[[str, Any], str]

  def mask(self, name: str, leaf: Any) -> str:
    return self.function(name, leaf)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patterns(Method):
  """Leaves whose name, or whose module's name, matches `train`; for hybrids and quick trials.

  Attributes:
    train: patterns as in `peftjax.masks.matches`.
  """

  name: ClassVar[str] = "patterns"
  learning_rate: ClassVar[float] = 1e-4

  train: masks.Patterns = ()

  def bind(self, context: Context) -> Self:
    names = [name for site in context.sites if site.method == "__call__" for name in site.names]
    if not self.train:
      raise UserError(f"patterns.train is empty; {nearest('', {name.rpartition('.')[2] for name in names})}")
    masks.match_table(self.train, names, "patterns.train")
    return super().bind(context)

  def mask(self, name: str, leaf: Any) -> str:
    group = masks.where(self.train, "patterns")(name, leaf)
    return group if group != masks.FROZEN else super().mask(name, leaf)
