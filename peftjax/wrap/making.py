"""`peftjax.wrap`: any JAX model as a `Model`.

model = peftjax.wrap(net, example_inputs={"x": x})                     # an NNX or an Equinox module
model = peftjax.wrap(module, variables, example_inputs={"x": x})       # Linen; a Haiku transform and its parameters
model = peftjax.wrap(f, params, example_inputs={"x": x})               # a function f(params, x)
model = model.add(peftjax.methods.LoRA(rank=8, targets=("q", "v")), key)
model(x=x)                                                             # what the function itself gives
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from flax import nnx

from peftjax import buffers, masks
from peftjax.errors import UserError
from peftjax.model import Model
from peftjax.models.layers import Runtime
from peftjax.wrap.family import WRAPPED, family_of, own_trees
from peftjax.wrap.kinds import equinox, function, haiku, linen
from peftjax.wrap.kinds import nnx as nnx_kind
from peftjax.wrap.kinds.base import Parts
from peftjax.wrap.program import Program


def wrap(
  model: Any,
  params: Any = None,
  example_inputs: Mapping[str, Any] | None = None,
  head: Sequence[str] | str = (),
) -> Model:
  """A user's own model with everything that `load` gives: methods, masks, merging, adapters in files.

  The program is traced once, on shapes: which leaf is used where follows from the dataflow, and methods act there. No
  leaf is copied or changed.

  Args:
    model: a function of a pytree, a Linen module, an NNX module, an Equinox module, or a Haiku transform.
    params: the function's pytree, or an NNX or Equinox module where that is the function's first argument; the Linen
      module's variables; the transform's parameters, of one with state (params, state). An NNX or Equinox module given
      as `model` holds its own.
    example_inputs: the other arguments by name: arrays or `jax.ShapeDtypeStruct`s; flags, numbers and strings are part
      of the program.
    head: dotted starts of the names of leaves that a new task needs; they train with every method.

  Raises:
    UserError: an object of another kind, a leaf that is no array, an argument that the function does not have.
  """
  if not isinstance(example_inputs, Mapping):
    raise UserError("wrap: example_inputs is a dict from the name of each argument to an array or a shape")
  parts = _parts(model, params, example_inputs)
  leaves = _leaves(parts)
  shapes = jax.tree.map(_shape, parts.params), jax.tree.map(_shape, dict(parts.buffers))

  def run(values: Mapping[str, Any], inputs: Mapping[str, Any], key: Any) -> Any:
    tree, kept = own_trees(own, values)
    return parts.call(tree, kept, inputs, key)

  own = Parts(shapes[0], shapes[1], parts.call, parts.whole, parts.kind)
  program = Program(run, leaves, example_inputs)
  if all(row.kind == "unused" for row in program.found.rows):
    raise UserError(
      f"wrap: {parts.kind} reads none of its {len(program.found.rows)} leaves with these inputs; arrays that it "
      f"closes over are no parameters"
    )
  family = family_of(own, program, (head,) if isinstance(head, str) else tuple(head))
  tree = masks.unflatten(leaves)
  return Model(program, tree, None, {}, family, WRAPPED, Runtime(), program.found.sites, dict(program.found.stacks))


def _shape(leaf: Any) -> Any:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _parts(model: Any, params: Any, inputs: Mapping[str, Any]) -> Parts:
  if isinstance(model, nn.Module):
    return linen.parts(model, params, inputs)
  if isinstance(model, nnx.Module):
    return nnx_kind.parts(model, None, inputs)
  if haiku.is_transformed(model):
    return haiku.parts(model, params, inputs)
  if _is_equinox(model):
    return equinox.parts(model, None, inputs)
  if not callable(model):
    raise UserError(
      f"wrap: expected a function, a Linen, NNX or Equinox module, or a Haiku transform; got {type(model).__name__}"
    )
  if isinstance(params, nnx.Module):
    return nnx_kind.parts(params, model, inputs)
  if _is_equinox(params):
    return equinox.parts(params, model, inputs)
  if params is None:
    raise UserError("wrap: a function comes with its parameters, a pytree that is its first argument")
  return function.parts(model, params, inputs)


def _is_equinox(model: Any) -> bool:
  """Whether it is an Equinox module; that package is not imported for it."""
  package = sys.modules.get("equinox")
  return package is not None and isinstance(model, package.Module)


def _leaves(parts: Parts) -> dict[str, Any]:
  """Dotted path -> array, of parameters and buffers; the arrays are the user's."""
  found: dict[str, Any] = {}
  for prefix, tree in [
    ("", parts.params),
    *((f"{buffers.ROOT}.{name}.", kept) for name, kept in parts.buffers.items()),
  ]:
    for name, leaf in masks.flatten(tree).items():
      if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        what = "a function" if callable(leaf) else f"{type(leaf).__name__} {leaf!r}"
        raise UserError(
          f"params: the leaf {name!r} is {what}; expected arrays alone: close the function over what is none"
        )
      if not name or (not prefix and buffers.is_buffer(name + ".")):
        raise UserError(f"params: expected a dict, list or dataclass of arrays whose names do not start with "
                        f"{buffers.ROOT!r}; got {name or 'one array'!r}")  # fmt: skip
      found[prefix + name] = leaf
  if not found:
    raise UserError("params: the tree holds no array")
  return found
