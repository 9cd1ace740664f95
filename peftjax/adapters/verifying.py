"""Whether merged weights compute what the methods did, and how much of the change was rounded away.

At each site, its module alone, in float32, on a few random rows x:

    y = the base's output with the methods acting on it,    y' = that of W + delta,    y0 = that of W
    merged right:   max |y - y'| <= 1e-3 max |y - y0| + 1e-5 max |y0|
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jax.extend import core

from peftjax import buffers, masks
from peftjax.errors import UserError
from peftjax.methods.bound import Bound
from peftjax.methods.inject import acting
from peftjax.quantize import dequantize, is_quantized
from peftjax.sites import Example, Site
from peftjax.trees import joined, parted
from peftjax.vocabulary import OUTPUT

if TYPE_CHECKING:
  from peftjax.model import Model

OF_CHANGE, OF_OUTPUT = 1e-3, 1e-5
_INNER = 16  # roundings of what a model computes within it in fewer bits than it gives
_LAYERS, _ROWS = 4, 64
_BASE_LEAVES = ("kernel", "bias", "embedding", "scale")


def check_merged(model: Model, merged: Model, changes: Mapping[str, jax.Array], output: str = "") -> None:
  """Compares what the methods do at their sites with what their changes of the weights do.

  Of a stack up to four layers are compared. Where a site does not run by itself, the whole models are.

  Args:
    model: with the methods.
    merged: without, for the comparison of the whole.
    changes: dotted path of a base leaf -> its float32 change, layers stacked as the leaf is.
    output: the path of the kernel that the tied output layer has been given of its own; "" if it stays tied.

  Raises:
    UserError: they differ by more than rounding; with the site and by how much.
  """
  flat = masks.flatten(model.params)
  is_whole_needed = False
  for place in _places(model.bound):
    acting_there = [(one, site) for one in model.bound for site in one.sites if (site.path, site.method) == place]
    site = acting_there[0][1]
    try:
      for index in _layers(len(site.names)):
        _compare(model, flat, changes, acting_there, index, output)
    except (KeyError, AttributeError, TypeError, ValueError, FlaxError):
      is_whole_needed = True
  if is_whole_needed:
    _compare_whole(model, merged)


def _places(bound: tuple[Bound, ...]) -> list[tuple[tuple[str, ...], str]]:
  return list(dict.fromkeys((site.path, site.method) for one in bound for site in one.sites))


def _layers(count: int) -> list[int]:
  return sorted({round(place) for place in np.linspace(0, count - 1, min(count, _LAYERS))})


def _compare(
  model: Model,
  flat: Mapping[str, Any],
  changes: Mapping[str, jax.Array],
  acting_there: list[tuple[Bound, Site]],
  index: int,
  output: str,
) -> None:
  """One layer's site; raises as `check_merged`, or whatever keeps it from running by itself."""
  site = acting_there[0][1]
  if site.example is None:
    raise ValueError(f"{site.kind} sites do not run by themselves")
  at = np.unravel_index(index, site.stack) if site.stack else ()
  leaves, whole = _tree(model, flat, acting_there, at)
  base = {name: leaves[name] for name in _BASE_LEAVES if name in leaves}
  found = {name: changes[path][at] for name in base if (path := ".".join((*site.path, name))) in changes}
  if site.method == OUTPUT and output:
    found = {"embedding": changes[output].T} if output in changes else {}
  alone = tuple(
    dataclasses.replace(one, sites=(dataclasses.replace(here.one(index), path=(), base_path=()),))
    for one, here in acting_there
  )
  x = _input(site, found)
  with jax.default_matmul_precision("float32"):
    with acting(alone, whole) as tree:
      y = _run(site.example, site.method, tree, x)
    merged = {**base, **{name: base[name] + change for name, change in found.items()}}
    y_merged, y_base = (_run(site.example, site.method, one, x) for one in (merged, base))
  off, change = (float(jnp.nan_to_num(jnp.abs(y - other)).max()) for other in (y_merged, y_base))
  if off > OF_CHANGE * change + OF_OUTPUT * float(jnp.nan_to_num(jnp.abs(y_base)).max()):
    names = " and ".join(one.method.name for one, _ in acting_there)
    raise UserError(
      f"{names} cannot be merged at {site.one(index).name}: the outputs would be off by {off:.2g} where the method "
      f"changes them by {change:.2g}; its delta is not what its before and after do (check=False merges all the same)"
    )


def _tree(
  model: Model, flat: Mapping[str, Any], acting_there: list[tuple[Bound, Site]], at: tuple[Any, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(the module's own leaves of one layer in float32, these with the methods' and what they share)."""
  site = acting_there[0][1]

  def one(leaf: Any) -> Any:
    leaf = jax.tree.map(lambda stacked: stacked[at], leaf)
    if is_quantized(leaf):
      return dequantize(leaf, jnp.float32)
    return leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

  def below(path: tuple[str, ...]) -> dict[str, Any]:
    prefix = ".".join((*path, ""))
    return {name: one(flat[prefix + name]) for name in names if prefix + name in flat}

  names: set[str] = set(_BASE_LEAVES)
  leaves = below(site.path)
  names = {name for each, _ in acting_there for name in (*each.method.leaf_names, *each.method.buffer_names)}
  own = below(site.leaf_path)
  whole = {**leaves, **own} if site.method == "__call__" else {**leaves, site.method: own}
  shared = {each.shared_path: model.params[each.shared_path] for each, _ in acting_there
            if each.shared_path in model.params}  # fmt: skip
  return leaves, {**whole, **shared}


def _run(example: Example, method: str, leaves: Mapping[str, Any], x: jax.Array) -> jax.Array:
  module = example.module
  if hasattr(module, "dtype"):
    module = module.clone(dtype=jnp.float32)
  name, *_ = example.arguments
  rest = {other: value for other, value in example.arguments.items() if other != name}
  found: jax.Array = module.apply({"params": dict(leaves)}, **{name: x}, **rest, method=method)
  return found


def _input(site: Site, changes: Mapping[str, jax.Array]) -> jax.Array:
  """Random rows; of an embedding the rows that change most, and others over all of the table."""
  assert site.example is not None
  shape = next(iter(site.example.arguments.values()))
  if jnp.issubdtype(shape.dtype, jnp.integer):
    rows = np.linspace(0, site.shape[0] - 1, _ROWS).astype(int)
    if "embedding" in changes:
      sizes = jnp.abs(changes["embedding"]).max(axis=-1)
      rows = np.concatenate([rows, np.asarray(jax.lax.top_k(sizes, min(_ROWS, site.shape[0]))[1])])
    return jnp.asarray(rows, shape.dtype)
  return jnp.asarray(np.random.default_rng(0).normal(size=shape.shape), jnp.float32)


def _compare_whole(model: Model, merged: Model) -> None:
  """The outputs on a smallest input of ones, where ones are tokens, masks or positions, and of random numbers."""
  random = np.random.default_rng(0)

  def drawn(one: Any) -> Any:
    if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
      return jax.random.split(jax.random.key(0), one.shape) if one.shape else jax.random.key(0)
    is_number = jnp.issubdtype(one.dtype, jnp.floating)
    return jnp.asarray(random.normal(size=one.shape), one.dtype) if is_number else jnp.ones(one.shape, one.dtype)

  shapes, static = parted(dict(model.example_inputs))
  arrays = [drawn(one) for one in shapes]

  def run(one: Model) -> dict[str, Any]:
    given = jax.jit(lambda tree, arrays: one.forward(tree, joined(arrays, static)))(one.params, arrays)
    return masks.flatten(given)

  outputs, folded = run(model), run(merged)
  within = _narrowest(lambda tree: merged.forward(tree, joined(arrays, static)), merged.params)
  for name, found in outputs.items():
    if not jnp.issubdtype(found.dtype, jnp.floating):
      continue
    y, other = (np.nan_to_num(np.asarray(one[name], np.float32)) for one in (outputs, folded))
    off, size = float(np.abs(y - other).max()), float(np.abs(y).max())
    if off > (OF_CHANGE + max(64 * _eps(found.dtype), _INNER * _eps(within))) * size:
      methods = " and ".join(one.method.name for one in model.bound)
      raise UserError(
        f"{methods} cannot be merged: the model's {name or 'output'} would be off by {off:.2g} of {size:.2g}; a delta "
        "is not what before and after do (check=False merges all the same)"
      )


def _eps(dtype: Any) -> float:
  return float(jnp.finfo(dtype).eps)


def _narrowest(function: Callable[[Any], Any], tree: masks.Tree) -> Any:
  """The floating dtype of fewest bits in which a function computes, whatever its inputs and outputs are."""

  def dtypes(jaxpr: core.Jaxpr) -> Iterator[Any]:
    for equation in jaxpr.eqns:
      yield from (out.aval.dtype for out in equation.outvars if hasattr(out.aval, "dtype"))
      for inner in core.jaxprs_in_params(equation.params):
        yield from dtypes(inner)

  found = {one for one in dtypes(jax.make_jaxpr(function)(tree).jaxpr) if jnp.issubdtype(one, jnp.floating)}
  return max(found, key=_eps, default=jnp.dtype(jnp.float32))


# Rounding ---------------------------------------------------------------------------------------------------------


def lost(exact: jax.Array, rounded: jax.Array, change: jax.Array) -> float:
  """The share of a change that rounding took, ‖rounded - exact‖ / ‖change‖; 1 if all of it, 0 where nothing changed."""
  size = float(jnp.linalg.norm(change))
  return 0.0 if size == 0.0 else min(1.0, float(jnp.linalg.norm(rounded.astype(jnp.float32) - exact)) / size)


def is_traced(params: masks.Tree) -> bool:
  """Whether the leaves stand for values that are not there yet, so that nothing can be compared."""
  return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(buffers.variables_of(params)))
