"""That every leaf a method adds does something: it is read, and the outputs depend on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn

from peftjax import masks
from peftjax.dataflow import used_inputs
from peftjax.errors import UserError
from peftjax.methods.attach import leaf_paths, penalty
from peftjax.methods.bound import Bound
from peftjax.methods.inject import Body, forward
from peftjax.trees import joined, parted


def check_all_used(
  module: nn.Module | Body, params: masks.Tree, bound: Sequence[Bound], inputs: Mapping[str, Any]
) -> None:
  """Checks by one trace of the forward pass on shapes what the methods' leaves do.

  A leaf of `leaf_names` must reach an output of the model or the method's `penalty`, whatever its values: a gate that
  starts at zero is no objection, nor a leaf without elements, as OFT's where its blocks have one row. A leaf of
  `buffer_names` must be read.

  Raises:
    UserError: a leaf does nothing, with its name, its method's and what to do.
  """
  shapes = {path: (leaf.shape, leaf.dtype) for path, leaf in masks.flatten(params).items()}
  try:
    key = hash((module, repr(bound), tuple(shapes.items()), tuple(inputs.items())))
  except TypeError:  # a module's setting that cannot be hashed
    key = None
  if key is not None and key in _all_used:
    return
  added = leaf_paths(bound, params)
  if added:
    read: set[str] = set()
    idle = _idle(module, params, bound, inputs, added, read)
    if idle:  # unless dropout alone reads it
      idle &= _idle(module, params, bound, inputs, added, read, rng=jax.random.key(0))
    _refuse_unread(bound, added - read)
    _refuse_idle(bound, idle)
  if key is not None:
    _all_used.add(key)


_all_used: set[int] = set()  # what was found in order once in this process: tracing takes long


def _idle(
  module: nn.Module | Body,
  params: masks.Tree,
  bound: Sequence[Bound],
  inputs: Mapping[str, Any],
  added: set[str],
  read: set[str],
  rng: jax.Array | None = None,
) -> set[str]:
  """The paths of the added leaves on which nothing depends; `read` collects those that were read."""
  flat = masks.flatten(params)
  own = {path: flat[path] for path in sorted(added)}
  rest = {path: leaf for path, leaf in flat.items() if path not in added}
  arrays, static = parted(dict(inputs))

  def run(own: Mapping[str, Any], rest: Mapping[str, Any], given: Sequence[Any]) -> Any:
    tree = masks.unflatten({**rest, **own})
    return forward(module, bound, tree, joined(given, static), rng, read=read), penalty(bound, tree)

  used = used_inputs(run, own, rest, arrays)
  paths = [path for path, leaf in own.items() for _ in jax.tree.leaves(leaf)]
  empty = {path for path, leaf in own.items() if not any(one.size for one in jax.tree.leaves(leaf))}
  return added - empty - {path for path, is_used in zip(paths, used) if is_used}


def _refuse_unread(bound: Sequence[Bound], paths: Iterable[str]) -> None:
  for path in sorted(paths):
    raise UserError(
      f"{_owner(bound, path)}: its leaf {path!r} is never read in a forward pass{_more(paths)}; read it in before or "
      f"after, or do not create it"
    )


def _refuse_idle(bound: Sequence[Bound], paths: Iterable[str]) -> None:
  trained = {path for path in paths if path.rpartition(".")[2] in _trained_names(bound, path)}
  for path in sorted(trained):
    raise UserError(
      f"{_owner(bound, path)}: no output of the model depends on its leaf {path!r}{_more(trained)}; use it in before "
      f"or after, do not create it, or name it in buffer_names instead of leaf_names if it is not to act"
    )


def _more(paths: Iterable[str]) -> str:
  others = len(set(paths)) - 1
  return f" (nor {others} others)" if others > 1 else " (nor 1 other)" if others else ""


def _of(bound: Sequence[Bound], path: str) -> list[Bound]:
  """Those whose leaf it may be."""
  return [one for one in bound if path in leaf_paths((one,), masks.unflatten({path: 0}))]


def _owner(bound: Sequence[Bound], path: str) -> str:
  return next((one.method.name for one in _of(bound, path)), "a method")


def _trained_names(bound: Sequence[Bound], path: str) -> set[str]:
  return {name for one in _of(bound, path) for name in one.method.leaf_names}
