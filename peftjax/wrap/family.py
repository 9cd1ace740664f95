"""A user's own model as a family of one: what a `Model` asks of its family."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftjax import buffers, masks
from peftjax.errors import UserError, nearest
from peftjax.models.family import Architecture, Family
from peftjax.trees import Tree, refilled
from peftjax.wrap.kinds.base import Parts
from peftjax.wrap.program import Program

if TYPE_CHECKING:
  from peftjax.model import Model

WRAPPED = "wrapped"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrappedFamily(Family):
  """The family of one model that `wrap` made.

  Attributes:
    parts: the user's model taken apart.
    layers: dotted path of each list or stack of layers -> how many.
  """

  parts: Parts
  layers: Mapping[str, int]

  def all_stacks(self, architecture: str, config: Any) -> dict[str, int]:
    """The lists and stacks of layers in the user's tree."""
    del architecture, config
    return dict(self.layers)


def family_of(parts: Parts, program: Program, head: Sequence[str]) -> WrappedFamily:
  """The family of a program.

  Raises:
    UserError: a prefix of the head at which no leaf stands.
  """
  names = list(program.parameters)
  for prefix in head:
    if not any(name == prefix or name.startswith(f"{prefix}.") for name in names):
      known = {".".join(name.split(".")[:end]) for name in names for end in range(1, len(name.split(".")) + 1)}
      raise UserError(f"head: {prefix!r} is the start of no leaf's name; {nearest(prefix, known)}")
  return WrappedFamily(
    model_types=(WRAPPED,),
    parse=lambda config: None,
    architectures={WRAPPED: Architecture(lambda config, runtime: program, "", head=tuple(head))},  # type: ignore[arg-type,return-value]
    stacks=lambda config: {},
    inputs=lambda config: dict(program.example_inputs),
    parts=parts,
    layers={**_lists(names), **program.found.stacks},
  )


def _lists(names: Sequence[str]) -> dict[str, int]:
  """Nodes whose children are numbered from 0 on -> how many."""
  children: dict[str, set[str]] = {}
  for name in names:
    parts = name.split(".")
    for end in range(1, len(parts)):
      children.setdefault(".".join(parts[:end]), set()).add(parts[end])
  return {
    node: len(keys) for node, keys in children.items() if len(keys) > 1 and keys == set(map(str, range(len(keys))))
  }


def is_wrapped(model: Model) -> bool:
  """Whether `wrap` made the model."""
  return isinstance(model.family, WrappedFamily)


def unwrap(model: Model) -> Any:
  """The user's own kind of object, with the model's leaves.

  Raises:
    UserError: methods are still separate, or `load` made the model.
  """
  family = model.family
  if not isinstance(family, WrappedFamily):
    raise UserError("unwrap: the model is a family of this package; its module and leaves are `module` and `params`")
  if model.bound and model.adapter_paths():
    raise UserError("unwrap: the model has separate adapter leaves; merge() it first, or save them by save_adapter()")
  tree, kept = own_trees(family.parts, masks.flatten(model.params))
  return family.parts.whole(tree, kept)


def own_trees(parts: Parts, leaves: Mapping[str, Any]) -> tuple[Tree, dict[str, Tree]]:
  """(params, buffers) in the user's structure, from leaves by name."""
  kept = {
    name: refilled(tree, {one.removeprefix(f"{buffers.ROOT}.{name}."): leaf for one, leaf in leaves.items()})
    for name, tree in parts.buffers.items()
  }
  return refilled(parts.params, leaves), kept
