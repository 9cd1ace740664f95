"""A Linen module and its variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from flax.core import unfreeze

from peftjax.errors import UserError
from peftjax.trees import Tree
from peftjax.wrap.kinds.base import Parts


def parts(module: nn.Module, variables: Any, inputs: Mapping[str, Any]) -> Parts:
  """The module taken apart; its inputs are those of `module.apply`, `rngs` and `method` among them.

  Raises:
    UserError: there are no variables.
  """
  del inputs
  if not isinstance(variables, Mapping):
    raise UserError("wrap: a Linen module comes with its variables; give module.init(key, ...) as the second argument")
  plain: Any = variables
  held = dict(unfreeze(plain))
  is_bare = "params" not in held
  params = held if is_bare else held.pop("params")
  kept: dict[str, Tree] = {} if is_bare else held

  def call(tree: Tree, buffers: Mapping[str, Tree], given: Mapping[str, Any], key: Any) -> Any:
    given = dict(given)
    if key is not None:
      given.setdefault("rngs", {"dropout": key})
    return module.apply({"params": tree, **buffers}, **given)

  def whole(tree: Tree, buffers: Mapping[str, Tree]) -> Any:
    return tree if is_bare else {"params": tree, **buffers}

  return Parts(params, kept, call, whole, f"the variables of the Linen module {type(module).__name__}")
