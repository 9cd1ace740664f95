"""What a model keeps beside its parameters, such as the statistics of batch normalisation, in the tree of its leaves.

    module's variables   {"params": {"bn": {"scale", "bias"}}, "batch_stats": {"bn": {"mean", "var"}}}
    the model's tree     {"bn": {"scale", "bias"}, "buffers": {"batch_stats": {"bn": {"mean", "var"}}}}

Buffers never train: they are saved, merged, quantised around and laid on a mesh as frozen leaves are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftjax.errors import UserError
from peftjax.trees import Tree

ROOT = "buffers"
BATCH_STATS = "batch_stats"
CONSTANTS = "constants"  # what checkpoints store as parameters and nobody trains, such as computed positions
_OF_ONE_PASS = ("cache", "intermediates", "losses", "metrics")  # collections that a forward pass makes


def tree_of(variables: Mapping[str, Any]) -> Tree:
  """The tree of a module's variables.

  Raises:
    UserError: a module of the model is called as the root of the buffers is.
  """
  kept = {name: dict(values) for name, values in variables.items() if name not in ("params", *_OF_ONE_PASS)}
  params = dict(variables.get("params", {}))
  if ROOT in params:
    raise UserError(f"a module of the model is called {ROOT!r}, which is where its buffers stand; call it otherwise")
  return {**params, ROOT: kept} if kept else params


def variables_of(tree: Tree) -> dict[str, Any]:
  """The inverse of `tree_of`: what the module is applied to."""
  params = {name: value for name, value in tree.items() if name != ROOT}
  return {"params": params, **tree.get(ROOT, {})}


def is_buffer(name: str) -> bool:
  """Whether the leaf of this name is a buffer."""
  return name.startswith(f"{ROOT}.")


def is_parameter(name: str) -> bool:
  """Whether the leaf of this name counts as a parameter: all but buffers, and of these the constants."""
  return not is_buffer(name) or name.startswith(f"{ROOT}.{CONSTANTS}.")


def owner(name: str) -> str:
  """A buffer's name as if it stood with its module's parameters; any other name as it is.

  >>> owner("buffers.batch_stats.layers.0.bn.mean")
  'layers.0.bn.mean'
  """
  return name.split(".", 2)[2] if is_buffer(name) else name


def with_stacks(stacks: Mapping[str, int]) -> dict[str, int]:
  """The stacks of layers, and the same stacks among the statistics of batch normalisation."""
  return {**stacks, **{f"{ROOT}.{BATCH_STATS}.{path}": count for path, count in stacks.items()}}
