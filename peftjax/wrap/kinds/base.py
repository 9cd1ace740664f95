"""What `wrap` needs to know of a user's model, of whatever library it is."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peftjax.errors import UserError, nearest
from peftjax.trees import Tree


@dataclasses.dataclass(frozen=True)
class Parts:
  """A user's model taken apart.

  Attributes:
    params: the parameters, a pytree of arrays.
    buffers: what it keeps beside them, {collection: pytree}.
    call: (params, buffers, inputs by name, key or None) -> outputs.
    whole: (params, buffers) -> the user's own kind of object.
    kind: what that is, for the user.
  """

  params: Tree
  buffers: Mapping[str, Tree]
  call: Callable[[Tree, Mapping[str, Tree], Mapping[str, Any], Any], Any]
  whole: Callable[[Tree, Mapping[str, Tree]], Any]
  kind: str


def check_names(function: Callable[..., Any], skipped: int, names: Sequence[str]) -> None:
  """Raises a `UserError` if a function has no argument of one of these names, or needs one that is not among them.

  Args:
    skipped: how many arguments come first and are not among the inputs.
  """
  try:
    parameters = list(inspect.signature(function).parameters.values())[skipped:]
  except (TypeError, ValueError):
    return
  if any(one.kind is one.VAR_KEYWORD for one in parameters):
    return
  known = [one.name for one in parameters if one.kind is not one.VAR_POSITIONAL]
  for name in names:
    if name not in known:
      raise UserError(f"example_inputs: the function has no argument {name!r}; {nearest(name, known)}")
  lacking = [one.name for one in parameters if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL,)
             and one.name not in names]  # fmt: skip
  if lacking:
    raise UserError(f"example_inputs: the function needs {', '.join(lacking)}; got {', '.join(names) or 'nothing'}")


def takes(function: Callable[..., Any], *names: str) -> str:
  """The first of these names that a function has an argument of; "" if it has none."""
  try:
    parameters = inspect.signature(function).parameters
  except (TypeError, ValueError):
    return ""
  return next((name for name in names if name in parameters), "")
