"""Several adapters of one base by name: held apart, put on when asked for.

bank = Bank(base).add("sst2", LoRA(rank=8), key).add("mnli", "folder/of/an/adapter")
bank.use("sst2")(input_ids=ids)                      # switching compiles nothing where the shapes are the same
bank.use()(input_ids=ids)                            # the base, bitwise
bank.mixed()(input_ids=ids, adapter_ids=bank.ids(["sst2", "mnli", None]))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from peftjax.adapters.adapter import Adapter, checked_weights, put, scaled, take
from peftjax.adapters.combining import combine
from peftjax.adapters.stacking import mixed, summed
from peftjax.errors import UserError, nearest
from peftjax.interop import peft
from peftjax.methods.base import Method

if TYPE_CHECKING:
  from peftjax.model import Model


Methods = Method | list[Method] | tuple[Method, ...]


@dataclasses.dataclass(frozen=True)
class Bank:
  """A base and adapters for it; every change gives a new one that shares the arrays.

  Attributes:
    base: the model without an adapter.
    held: name -> adapter.
  """

  base: Model
  held: Mapping[str, Adapter] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    if self.base.bound:
      raise UserError("the base of a bank has an adapter already; give disabled(model), and add the adapter by name")

  @property
  def names(self) -> tuple[str, ...]:
    """The adapters' names, in the order in which `adapter_ids` counts them."""
    return tuple(self.held)

  def add(self, name: str, adapter: Adapter | Model | Methods | str | Path, key: jax.Array | None = None) -> Bank:
    """With one more adapter.

    Args:
      adapter: an adapter, a model of this base that has one, a method whose leaves are made fresh by `key`, or a PEFT
        adapter folder.

    Raises:
      UserError: the name is taken, or the adapter is for another model.
    """
    if name in self.held:
      raise UserError(f"an adapter named {name!r} is there already; delete it first, or replace it by `update`")
    taken = self._taken(adapter, key)
    put(self.base, taken)
    return dataclasses.replace(self, held={**self.held, name: taken})

  def _taken(self, adapter: Adapter | Model | Methods | str | Path, key: jax.Array | None) -> Adapter:
    if isinstance(adapter, Adapter):
      return adapter
    if isinstance(adapter, str | Path):
      return take(peft.load(self.base, adapter))
    return take(self.base.add(adapter, key) if isinstance(adapter, Method | list | tuple) else adapter)

  def update(self, name: str, adapter: Adapter | Model) -> Bank:
    """With another adapter, or that of a model such as a trained one, in place of the one of that name."""
    self._of(name)
    return self.delete(name).add(name, adapter)._ordered(self.names)

  def delete(self, name: str) -> Bank:
    """The bank without an adapter; raises `UserError` if it has none of that name."""
    self._of(name)
    return dataclasses.replace(self, held={other: one for other, one in self.held.items() if other != name})

  def use(self, *names: str, weights: Sequence[float] = (), along: str = "") -> Model:
    """The base with one adapter, with several that act at once, or with none.

    Args:
      weights: a factor on each; default 1.
      along: of several: whose head, and what else trained along, is used.

    Raises:
      UserError: no such adapter; what a method changes takes no factor, or has no sum.
    """
    chosen = [self._of(name) for name in names]
    if not chosen:
      return self.base
    if len(chosen) == 1:
      model = put(self.base, chosen[0])
      return scaled(model, *checked_weights(weights, 1)) if weights else model
    if along and along not in names:
      raise UserError(f"along: {along!r} is not among the adapters in use; {nearest(along, names)}")
    return summed(self.base, chosen, weights, names.index(along) if along else None)

  def mixed(self, *names: str) -> Model:
    """The base with all adapters, or those named, of which every example of a batch names one by `adapter_ids`."""
    return mixed(self.base, [self._of(name) for name in names or self.names])

  def ids(self, names: Sequence[str | None], of: Sequence[str] = ()) -> np.ndarray:
    """int32[B]: `adapter_ids` of a batch by names; None for the base.

    Args:
      of: what `mixed` was given; default all adapters.
    """
    known = tuple(of) or self.names
    for name in names:
      if name is not None and name not in known:
        raise UserError(f"no adapter named {name!r}; {nearest(name, known)}")
    return np.asarray([-1 if name is None else known.index(name) for name in names], np.int32)

  def combine(
    self, name: str, weights: Mapping[str, float], how: str = "svd", *, along: str = "", **settings: Any
  ) -> Bank:
    """With a new adapter that combines those of `weights`; `how` and settings as `combine` has them."""
    models = [put(self.base, self._of(one)) for one in weights]
    place = list(weights).index(along) if along else None
    return self.add(name, combine(models, tuple(weights.values()), how, along=place, **settings))

  def _of(self, name: str) -> Adapter:
    if name not in self.held:
      raise UserError(f"no adapter named {name!r}; {nearest(name, self.held)}")
    return self.held[name]

  def _ordered(self, names: Sequence[str]) -> Bank:
    return dataclasses.replace(self, held={name: self.held[name] for name in names})
