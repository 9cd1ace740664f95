"""A plain function of a pytree of parameters: `f(params, x=...)` or `f(params, x)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from peftjax.trees import Tree
from peftjax.wrap.kinds.base import Parts, check_names, takes


def parts(function: Callable[..., Any], params: Tree, inputs: Mapping[str, Any]) -> Parts:
  """The function taken apart; its inputs are its arguments behind the first.

  Where a forward pass is given a key and the inputs hold none, it goes to an argument called key or rng.
  """
  check_names(function, 1, list(inputs))
  where = takes(function, "key", "rng")

  def call(tree: Tree, buffers: Mapping[str, Tree], given: Mapping[str, Any], key: Any) -> Any:
    del buffers
    given = dict(given)
    if where and key is not None:
      given.setdefault(where, key)
    return called(function, tree, given)

  return Parts(params, {}, call, lambda tree, buffers: tree, "a function of a pytree")


def called(function: Callable[..., Any], first: Any, given: Mapping[str, Any]) -> Any:
  """The function of its first argument and the others by name; by place where they have no names."""
  try:
    parameters = list(inspect.signature(function).parameters.values())[1:]
  except (TypeError, ValueError):
    parameters = []
  by_place = [one.name for one in parameters if one.kind is one.POSITIONAL_ONLY and one.name in given]
  rest = {name: value for name, value in given.items() if name not in by_place}
  return function(first, *(given[name] for name in by_place), **rest)
