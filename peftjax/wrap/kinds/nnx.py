"""An NNX module: split into its parameters and the rest, and merged again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from peftjax.trees import Tree
from peftjax.wrap.kinds.base import Parts, check_names

STATE = "state"


def parts(module: nnx.Module, function: Callable[..., Any] | None, inputs: Mapping[str, Any]) -> Parts:
  """The module taken apart.

  Args:
    function: of the module and the inputs by name; None: the module's call.

  Batch statistics and other state are buffers, whose changes in a forward pass are dropped. Random streams stay as they
  are, or start from the key of the forward pass.
  """
  check_names(module.__call__ if function is None else function, 0 if function is None else 1, list(inputs))
  split: tuple[Any, ...] = nnx.split(module, nnx.Param, nnx.RngState, ...)
  graph, params, streams, rest = split
  held = nnx.to_pure_dict(rest)

  def rebuilt(tree: Tree, buffers: Mapping[str, Tree], key: Any = None) -> Any:
    own, other = jax.tree.map(lambda leaf: leaf, params), jax.tree.map(lambda leaf: leaf, rest)
    nnx.replace_by_pure_dict(own, tree)
    if held:
      nnx.replace_by_pure_dict(other, buffers[STATE])
    return nnx.merge(graph, own, _started(streams, key), other)

  def call(tree: Tree, buffers: Mapping[str, Tree], given: Mapping[str, Any], key: Any) -> Any:
    built = rebuilt(tree, buffers, key)
    return built(**given) if function is None else function(built, **given)

  collections = {STATE: held} if held else {}
  return Parts(nnx.to_pure_dict(params), collections, call, rebuilt, f"the NNX module {type(module).__name__}")


def _started(streams: Any, key: Any) -> Any:
  """The random streams, each from the key where there is one."""
  leaves, structure = jax.tree.flatten(streams)
  if key is None:
    return jax.tree.unflatten(structure, leaves)
  keys = [index for index, leaf in enumerate(leaves) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
  for index in keys:
    fresh = jax.random.fold_in(key, index)
    leaves[index] = fresh if leaves[index].ndim == 0 else jax.random.split(fresh, leaves[index].shape)
  return jax.tree.unflatten(structure, leaves)
