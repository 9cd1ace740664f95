"""An Equinox module: its floating arrays are the parameters, the rest of it is part of the program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from peftjax.trees import Tree
from peftjax.wrap.kinds.base import Parts, check_names, takes
from peftjax.wrap.kinds.function import called


def parts(module: Any, function: Callable[..., Any] | None, inputs: Mapping[str, Any]) -> Parts:
  """The module taken apart.

  Args:
    function: of the module and the inputs by name, such as one that maps it over a batch; None: the module's call.
  """
  import equinox  # only where the user's object is of this package

  own = module.__call__ if function is None else function
  check_names(own, 0 if function is None else 1, list(inputs))
  where = takes(own, "key")
  params, rest = equinox.partition(module, equinox.is_inexact_array)

  def whole(tree: Tree, buffers: Mapping[str, Tree]) -> Any:
    del buffers
    return equinox.combine(tree, rest)

  def call(tree: Tree, buffers: Mapping[str, Tree], given: Mapping[str, Any], key: Any) -> Any:
    given = dict(given)
    if where and key is not None:
      given.setdefault(where, key)
    built = whole(tree, buffers)
    return built(**given) if function is None else called(function, built, given)

  return Parts(params, {}, call, whole, f"the Equinox module {type(module).__name__}")
