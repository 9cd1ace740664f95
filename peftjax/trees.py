"""Leaves of any pytree by name, and trees of some of its leaves.

A leaf's name is its path joined by dots: keys of dicts, places in lists and tuples, fields of registered dataclasses.

  {"blocks": [{"w": W₀}, {"w": W₁}]}          names "blocks.0.w", "blocks.1.w"
  without "blocks.0.w"                        {"blocks": [None, {"w": W₁}]}

What is left out of a dict is gone; in a list, a tuple or a dataclass, whose places have a meaning, None stands for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import traverse_util

from peftjax.errors import UserError
from peftjax.quantize import is_quantized

Tree = Any
"""A pytree of arrays; those of models are nested dicts."""


def flatten(tree: Tree) -> dict[str, Any]:
  """{"a.b.kernel": leaf}: the leaves of a pytree under their names; a quantised leaf is one.

  Raises:
    UserError: two leaves have one name, as in {"a.b": x, "a": {"b": y}}.

  >>> flatten({"a": [1, (2,)], "b": {"c": 3}})
  {'a.0': 1, 'a.1.0': 2, 'b.c': 3}
  """
  flat: dict[str, Any] = {}
  for name, leaf in _named(tree, ""):
    if name in flat:
      raise UserError(
        f"two leaves of the parameter tree are named {name!r}; keys may not hold a dot that makes them so"
      )
    flat[name] = leaf
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The nested dict of leaves by name; of a tree of dicts the inverse of `flatten`."""
  return traverse_util.unflatten_dict(dict(flat), sep=".")


def refilled(tree: Tree, leaves: Mapping[str, Any]) -> Tree:
  """A tree of the same structure with other leaves, by name."""

  def one(node: Any, name: str) -> Any:
    children = _children(node)
    if children is None:
      return leaves[name]
    return _made(node, [one(child, _joined(name, key)) for key, child in children])

  return one(tree, "")


def only(tree: Tree, keep: Callable[[str], bool]) -> Tree:
  """The tree of the leaves whose name is to be kept."""
  kept = _only(tree, keep, "")
  return {} if kept is None else kept


def combine(*parts: Tree) -> Tree:
  """One tree of all leaves of trees that `only` took apart. Works on tracers and shapes.

  Raises:
    ValueError: two parts hold the same leaf.
  """
  return _combined(list(parts), "") or {}


@dataclasses.dataclass(frozen=True)
class Static:
  """What of a pytree is no array, and where its arrays stand; hashable where its values are."""

  structure: Any
  values: tuple[tuple[int, Any], ...]


def parted(tree: Tree) -> tuple[list[Any], Static]:
  """(the arrays of a tree, the rest): flags, numbers and strings are part of a program, arrays go into it."""
  leaves, structure = jax.tree.flatten(tree)
  values = tuple((place, leaf) for place, leaf in enumerate(leaves) if not hasattr(leaf, "dtype"))
  return [leaf for leaf in leaves if hasattr(leaf, "dtype")], Static(structure, values)


def joined(arrays: Sequence[Any], static: Static) -> Tree:
  """The inverse of `parted`."""
  rest, given = dict(static.values), iter(arrays)
  leaves = [rest[place] if place in rest else next(given) for place in range(static.structure.num_leaves)]
  return jax.tree.unflatten(static.structure, leaves)


def _named(node: Any, name: str) -> Iterator[tuple[str, Any]]:
  children = _children(node)
  if children is None:
    yield name, node
    return
  for key, child in children:
    yield from _named(child, _joined(name, key))


def _joined(name: str, key: str) -> str:
  return f"{name}.{key}" if name else key


def _children(node: Any) -> list[tuple[str, Any]] | None:
  """(key, child) of a node; None for a leaf."""
  if type(node) is dict:
    return [(str(key), child) for key, child in node.items()]
  if is_quantized(node):
    return None
  pairs, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda one: one is not node)
  if len(pairs) == 1 and not pairs[0][0]:
    return None
  return [(jax.tree_util.keystr(path, simple=True, separator="."), child) for path, child in pairs]


def _made(node: Any, children: list[Any]) -> Any:
  """A node like the given one, of other children."""
  if type(node) is dict:
    return dict(zip(node, children))
  return jax.tree.unflatten(jax.tree.structure(node, is_leaf=lambda one: one is not node), children)


def _only(node: Any, keep: Callable[[str], bool], name: str) -> Any:
  children = _children(node)
  if children is None:
    return node if keep(name) else None
  kept = [_only(child, keep, _joined(name, key)) for key, child in children]
  if all(child is None for child in kept):
    return None
  if type(node) is dict:
    return {key: child for key, child in zip(node, kept) if child is not None}
  return _made(node, kept)


def _combined(parts: list[Any], name: str) -> Any:
  parts = [part for part in parts if part is not None]
  if len(parts) < 2:
    return parts[0] if parts else None
  if all(type(part) is dict for part in parts):
    keys = {key: None for part in parts for key in part}
    return {key: _combined([part.get(key) for part in parts], _joined(name, str(key))) for key in keys}
  held = [_children(part) for part in parts]
  if any(children is None for children in held):
    raise ValueError(f"{name!r} is in two parts of the tree")
  rows = zip(*(children or [] for children in held), strict=True)
  return _made(parts[0], [_combined([child for _, child in row], _joined(name, row[0][0])) for row in rows])
