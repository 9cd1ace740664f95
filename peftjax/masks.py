"""Which leaves train: path patterns, masks, labels, and the partition of the parameter tree.

A parameter tree is any pytree; those of models are nested dicts. A leaf's *name* is its path joined by dots, in models
spelled as Hugging Face spells the module, with the index of the layer in it:
``encoder.layer.3.attention.self.query.kernel``. Homogeneous layers are stored stacked (one leaf with a leading layer
axis and no index in its path); a mask never sees that: it is asked once for every layer, under that layer's name.

A *mask* is a function ``(name, leaf) -> group``. The group ``"frozen"`` does not train; any other string names a group
that does, and `peftjax.optim` may give every group its own transform.

  before    params = {"query": {"kernel": W, "bias": b}}
  labels    {"query": {"kernel": "frozen", "bias": "bias"}}       label(params, where(("bias",), "bias"))
  after     trainable = {"query": {"bias": b}},  frozen = {"query": {"kernel": W}}
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from peftjax.errors import UserError, nearest
from peftjax.patterns import full_match
from peftjax.quantize import is_quantized, tree_bytes
from peftjax.trees import Tree, flatten, only, refilled
from peftjax.trees import combine as combine
from peftjax.trees import unflatten as unflatten

FROZEN = "frozen"
ALL_LINEAR = "all-linear"

Mask = Callable[[str, Any], str]
Patterns = str | Sequence[str]


class LayersDiffer(Exception):
  """Layers stored as one stack were given different groups; the tree must be unstacked first."""


# Names ------------------------------------------------------------------------------------------------------------


def layer_names(name: str, stacks: Mapping[str, int]) -> tuple[str, ...]:
  """The names, one a layer, of a dotted path that may lie below a stack, or below a stack within a stack (experts).

  >>> layer_names("encoder.layer.query", {"encoder.layer": 2})
  ('encoder.layer.0.query', 'encoder.layer.1.query')
  """
  names, done = [""], 0
  for stack in _stacks_above(name, stacks):
    piece, done = name[done : len(stack)], len(stack)
    names = [f"{one}{piece}.{index}" for one in names for index in range(stacks[stack])]
  return tuple(one + name[done:] for one in names)


def stack_shape(name: str, stacks: Mapping[str, int]) -> tuple[int, ...]:
  """The leading axes of the leaf at a dotted path: one for each stack that it lies below.

  >>> stack_shape("layers.experts.up.kernel", {"layers": 2, "layers.experts": 8})
  (2, 8)
  """
  return tuple(stacks[stack] for stack in _stacks_above(name, stacks))


def _stacks_above(name: str, stacks: Mapping[str, int]) -> list[str]:
  return sorted((stack for stack in stacks if name == stack or name.startswith(stack + ".")), key=len)


_LEAVES = ("kernel", "weight", "w", "embedding", "embeddings", "scale")


def called(name: str) -> tuple[str, ...]:
  """What a place may be called in a pattern: its name and, where that is a leaf's own, its module's.

  >>> called("blocks.3.attn.q.kernel"), called("encoder.layer.0.query")
  (('blocks.3.attn.q.kernel', 'blocks.3.attn.q'), ('encoder.layer.0.query',))

  Haiku's names of modules hold slashes, which may be dots.
  """
  module, _, leaf = name.rpartition(".")
  found = (name, module) if module and leaf in _LEAVES else (name,)
  return (*found, *(one.replace("/", ".") for one in found)) if "/" in name else found


# Patterns ---------------------------------------------------------------------------------------------------------


def matches(patterns: Patterns, name: str) -> bool:
  """Whether a dotted name matches.

  A string is a regular expression for the whole name. In a sequence each entry is a suffix of whole components
  (Hugging Face PEFT's rule for `target_modules`) or, where it holds one of ``*?[``, a glob for the whole name.

  >>> matches(("query", "output.dense"), "encoder.layer.0.output.dense")
  True
  >>> matches(r".*layer\\.[01]\\..*query", "encoder.layer.1.attention.self.query")
  True
  >>> matches(("*.layer.0.*",), "encoder.layer.0.attention.self.query")
  True

  A place in a function of a user's own is named by its leaf, and its module's name matches too (`called`).
  """
  if isinstance(patterns, str):
    return any(full_match(patterns, one) for one in called(name))
  return any(_entry_matches(entry, one) for one in called(name) for entry in patterns)


def shortest(chosen: Collection[str], names: Collection[str]) -> tuple[str, ...]:
  """A suffix, or a glob behind a layer's number, that matches `chosen` and nothing else of `names`; else all of them.

  >>> shortest({"h.0.a.key", "h.1.a.key"}, {"h.0.a.key", "h.1.a.key", "h.0.b.key"})
  ('a.key',)
  """
  parts = min(chosen).split(".")
  for start in range(len(parts) - 1, -1, -1):
    suffix = ".".join(parts[start:])
    for entry in (suffix, f"*[0-9].{suffix}"):
      if {name for name in names if _entry_matches(entry, name)} == set(chosen):
        return (entry,)
  return tuple(sorted(chosen))


def _entry_matches(entry: str, name: str) -> bool:
  if any(char in entry for char in "*?["):
    return fnmatch.fnmatchcase(name, entry)
  return name == entry or name.endswith("." + entry)


def as_entries(patterns: Patterns) -> tuple[str, ...]:
  """The patterns one by one: a regular expression is one entry, a sequence is its entries."""
  return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def match_table(patterns: Patterns, names: Iterable[str], what: str = "targets") -> dict[str, list[str]]:
  """For each pattern the names it matches.

  Raises:
    UserError: a pattern matches nothing; the line lists near misses.
  """
  names = list(names)
  table = {}
  for entry in as_entries(patterns):
    one: Patterns = entry if isinstance(patterns, str) else (entry,)
    table[entry] = [name for name in names if matches(one, name)]
    if not table[entry]:
      raise UserError(f"{what}: {entry!r} matches none of {len(names)} modules; {_near_misses(entry, patterns, names)}")
  return table


def _near_misses(entry: str, patterns: Patterns, names: list[str]) -> str:
  names = [one for name in names for one in called(name)]
  tails = {name.rsplit(".", 1)[-1] for name in names if not name.rsplit(".", 1)[-1].isdigit()}
  tails |= {".".join(name.split(".")[-2:]) for name in names if "." in entry}
  if isinstance(patterns, str) and entry in tails:
    return f"a string is a regular expression for the whole name; write targets=({entry!r},) to match a suffix"
  return nearest(entry, tails)


# Masks ------------------------------------------------------------------------------------------------------------


def full(name: str, leaf: Any) -> str:
  """Full fine-tuning: every leaf trains."""
  del name, leaf
  return "full"


def nothing(name: str, leaf: Any) -> str:
  """Every leaf is frozen."""
  del name, leaf
  return FROZEN


def where(patterns: Patterns, group: str) -> Mask:
  """A mask that puts leaves whose name, or whose module's name, matches into `group` and freezes the rest."""

  def mask(name: str, leaf: Any) -> str:
    del leaf
    module = name.rpartition(".")[0]
    return group if matches(patterns, name) or matches(patterns, module) else FROZEN

  return mask


def union(*masks: Mask) -> Mask:
  """Trains what any of the masks trains; the first that does not freeze a leaf names its group."""

  def mask(name: str, leaf: Any) -> str:
    for one in masks:
      group = one(name, leaf)
      if group != FROZEN:
        return group
    return FROZEN

  return mask


# Labels and the partition -----------------------------------------------------------------------------------------


def label(tree: Tree, mask: Mask, stacks: Mapping[str, int] | None = None) -> Tree:
  """The tree of groups.

  Args:
    tree: parameters, or their shapes.
    mask: the mask; it sees every leaf of a stack once for each layer, without the layer axis.
    stacks: dotted path of each stack of layers -> number of layers.

  Raises:
    LayersDiffer: the mask gives the layers of one stacked leaf different groups.
    UserError: the mask returned something that is not a string, or "Frozen".
  """
  stacks = stacks or {}
  groups = {}
  for path, leaf in flatten(tree).items():
    names = layer_names(path, stacks)
    axes = len(stack_shape(path, stacks))
    seen = jax.ShapeDtypeStruct(leaf.shape[axes:], leaf.dtype) if axes else leaf
    found = {mask(name, seen) for name in names}
    for group in found:
      if not isinstance(group, str) or not group:
        raise UserError(f"the mask returned {group!r} for {path!r}; expected the name of a group or {FROZEN!r}")
      if group != FROZEN and group.strip().lower() == FROZEN:  # a group of this name would train
        raise UserError(f"the mask returned {group!r} for {path!r}; did you mean {FROZEN!r}?")
    if len(found) > 1:
      raise LayersDiffer(f"{path}: layers are in groups {sorted(found)}")
    groups[path] = found.pop()
  return refilled(tree, groups)


def partition(tree: Tree, labels: Tree) -> tuple[Tree, Tree]:
  """(trainable, frozen): two trees that share no leaf and together hold all of them; `combine` is the inverse.

  Of lists, tuples and dataclasses both have the whole structure, with None for the other one's leaves.
  """
  groups = flatten(labels)
  return only(tree, lambda name: groups[name] != FROZEN), only(tree, lambda name: groups[name] == FROZEN)


# Counting ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Count:
  """Numbers of parameters, and bytes, of a set of leaves."""

  leaves: int
  parameters: int
  bytes: int


def count(tree: Tree) -> Count:
  """Counts the leaves of a tree of arrays or shapes; a quantised leaf has the parameters of the array it stands for."""
  leaves = jax.tree.leaves(tree, is_leaf=is_quantized)
  sizes = [int(np.prod(leaf.shape, dtype=np.int64)) for leaf in leaves]
  return Count(len(leaves), sum(sizes), tree_bytes(tree))
