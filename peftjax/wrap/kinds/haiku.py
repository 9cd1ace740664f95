"""A Haiku transform and its parameters, with its state where it has one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftjax.errors import UserError
from peftjax.trees import Tree
from peftjax.wrap.kinds.base import Parts, takes

STATE = "state"


def is_transformed(model: Any) -> bool:
  """Whether it is what `haiku.transform` or `haiku.transform_with_state` gives."""
  return type(model).__name__ in ("Transformed", "TransformedWithState") and type(model).__module__.startswith("haiku")


def parts(transformed: Any, params: Any, inputs: Mapping[str, Any]) -> Parts:
  """The transform taken apart; a key goes in as the input `rng`, or as that of the forward pass.

  Args:
    params: of a transform with state, the pair (params, state).

  Raises:
    UserError: there are no parameters, or no state.
  """
  del inputs
  has_state = type(transformed).__name__ == "TransformedWithState"
  if params is None or (has_state and not isinstance(params, tuple)):
    wanted = "(params, state)" if has_state else "params"
    raise UserError(f"wrap: a Haiku transform comes with its parameters; give {wanted} as transform.init gave them")
  held, state = params if has_state else (params, None)
  takes_rng = bool(takes(transformed.apply, "rng"))  # not behind `haiku.without_apply_rng`

  def call(tree: Tree, buffers: Mapping[str, Tree], given: Mapping[str, Any], key: Any) -> Any:
    given = dict(given)
    streams = (given.pop("rng", key),) if takes_rng else ()
    first = (tree, buffers.get(STATE, state)) if has_state else (tree,)
    return transformed.apply(*first, *streams, **given)

  def whole(tree: Tree, buffers: Mapping[str, Tree]) -> Any:
    return (tree, buffers.get(STATE, state)) if has_state else tree

  kept = {STATE: state} if has_state and state else {}
  return Parts(held, kept, call, whole, "the parameters of a Haiku transform")
