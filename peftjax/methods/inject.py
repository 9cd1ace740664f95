"""How methods act during a forward pass: an interceptor around the calls of their sites.

The model stays an ordinary Linen module. The interceptor only reads leaves, so it works unchanged under `scan`,
`remat`, `jit`, `grad` and `vmap`, and without an adapter leaf the outputs are bitwise the base's.

A quantised kernel is met here too: the interceptor takes the base's product from it, and methods see it as an array.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax import masks
from peftjax.buffers import variables_of
from peftjax.errors import UserError
from peftjax.methods.actors import Actor
from peftjax.methods.base import Call, Leaves
from peftjax.methods.bound import Bound
from peftjax.methods.calls import dropping
from peftjax.methods.discovery import arguments_of
from peftjax.placement import in_rows
from peftjax.quantize import dequantize, is_quantized
from peftjax.sites import ARRAY_KINDS, Folding, Site

_BARE = "bare"  # the name of a copy on which no method acts

Entry = tuple[Actor, Site, Leaves, dict[str, Any]]
"""What acts at a site: the method, the site, the leaves that its sites share, and what they note."""

Table = Mapping[tuple[tuple[str, ...], str], list[Entry]]
"""(path, method) of each site -> what acts there, in order."""

Acting = tuple[Actor, Site, Leaves, Call]
"""An entry at one call: the site's own leaves, and the call."""


class Body(Protocol):
  """What a model computes with, where that is no Linen module."""

  def run(
    self, params: masks.Tree, inputs: Mapping[str, Any], rng: jax.Array | None, table: Table, read: set[str] | None
  ) -> Any:
    """The outputs for inputs by name, with what acts at the sites of the table.

    Args:
      params: the model's leaves, with what methods derive from their shared ones.
      rng: dropout is on where it is given.
      read: if given, collects the dotted paths of the leaves that were read.
    """


def forward(
  module: nn.Module | Body,
  bound: Sequence[Bound],
  params: masks.Tree,
  inputs: Mapping[str, Any],
  rng: jax.Array | None = None,
  *,
  read: set[str] | None = None,
  adapter_ids: jax.Array | None = None,
) -> Any:
  """One forward pass: a pure function of leaves, inputs and key. For the arguments see `acting` and `Body.run`."""
  if not isinstance(module, nn.Module):
    table = table_of(bound, params, read, adapter_ids)
    return module.run(_with_derived(bound, params), inputs, rng, table, read)
  rngs = None if rng is None else {"dropout": rng}
  with acting(bound, params, read, adapter_ids) as whole:
    return module.apply(variables_of(whole), **inputs, rngs=rngs)


@contextlib.contextmanager
def acting(
  bound: Sequence[Bound], params: masks.Tree, read: set[str] | None = None, adapter_ids: jax.Array | None = None
) -> Iterator[masks.Tree]:
  """Within it, calls of a Linen module's sites are acted on by the methods.

  Args:
    bound: methods with their sites, applied in order.
    params: the model's leaves.
    read: if given, collects the dotted paths of the leaves that were read.
    adapter_ids: int[B], where the model holds several adapters: which one each example has, -1 for none.

  Yields:
    The tree to apply the module to: `params`, with what methods derive from their shared leaves.
  """
  table = table_of(bound, params, read, adapter_ids)
  if not bound and not any(map(is_quantized, masks.flatten(params).values())):
    yield params
    return
  with nn.intercept_methods(_interceptor(table, read)):
    yield _with_derived(bound, params)


def table_of(
  bound: Sequence[Bound], params: masks.Tree, read: set[str] | None = None, adapter_ids: jax.Array | None = None
) -> Table:
  """What acts at which site in one forward pass. For the arguments see `acting`.

  Raises:
    UserError: `adapter_ids` without several adapters, or several without them.
  """
  if adapter_ids is not None and not any(one.members for one in bound):
    raise UserError("adapter_ids: the model does not hold several adapters; stack them first (docs/adapters.md)")
  table: dict[tuple[tuple[str, ...], str], list[Entry]] = {}
  for one in bound:
    shared = params.get(one.shared_path, {})
    if read is not None:
      read.update(f"{one.shared_path}.{name}" for name in masks.flatten(shared))
    notes: dict[str, Any] = {}
    actor = one.actor(adapter_ids)
    for site in one.sites:
      table.setdefault((site.path, site.method), []).append((actor, site, shared, notes))
  return table


def enter(calls: Sequence[Acting], x: Any) -> Any:
  """The input that the base gets."""
  given = x
  for method, site, leaves, call in calls:
    if not method.acts_by_delta(site):
      x = _as_wide_as(given, method.before(leaves, x, site, call))
  return x


def change_of(calls: Sequence[Acting], leaf: str = "kernel") -> jax.Array | None:
  """The float32 change of a leaf, as it is stored, by methods that act by that alone; None if there is none."""
  deltas: list[jax.Array] = [
    site.unfold({leaf: change[leaf]})[leaf]
    for method, site, leaves, call in calls
    if method.acts_by_delta(site) and leaf in (change := method.delta(leaves, _float32_base(call), site, call.shared))
  ]
  return functools.reduce(jnp.add, deltas) if deltas else None


def leave(calls: Sequence[Acting], x: Any, y: Any) -> Any:
  """The output, from the site's own input and what the base gave."""
  for method, site, leaves, call in calls:
    if not method.acts_by_delta(site):
      y = _as_wide_as(y, method.after(leaves, x, y, site, call))
  return y


def _with_derived(bound: Sequence[Bound], params: masks.Tree) -> masks.Tree:
  derived = [(one.sites, _derive(one, params.get(one.shared_path, {}))) for one in bound]
  if not any(leaves for _, leaves in derived):
    return params
  flat = masks.flatten(params)
  for sites, leaves_of in derived:
    for site, leaves in zip(sites, leaves_of):
      flat.update({".".join((*site.leaf_path, name)): leaf for name, leaf in leaves.items()})
  return masks.unflatten(flat)


def _derive(one: Bound, shared: Leaves) -> list[Leaves]:
  if not (one.is_stacked and shared):
    return one.method.derive(shared, one.sites)
  each = jax.vmap(lambda own: one.method.derive(own, one.sites))(shared)
  return [
    {name: jnp.moveaxis(leaf, 0, len(site.stack)) for name, leaf in leaves.items()}
    for site, leaves in zip(one.sites, each)
  ]


def _interceptor(table: Table, read: set[str] | None) -> Callable[..., Any]:
  def intercept(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    module, method_name = context.module, context.method_name
    if module.scope is None or module.name == _BARE:
      return next_fun(*args, **kwargs)
    if method_name == "__call__" and is_quantized(_kernel(module)):
      next_fun = functools.partial(_quantized_product, module)
    entries = table.get((module.path, method_name))
    if not entries:
      return next_fun(*args, **kwargs)
    arguments = arguments_of(module, method_name, args, kwargs)
    first = entries[0][1]
    x: Any
    if first.kind in ARRAY_KINDS:
      x, run = _on_array(next_fun, arguments, first.folding)
    else:
      x, run = arguments, lambda given: next_fun(**given)
    calls = [
      (method, site, _leaves(module, method, site, read), _call(module, site, shared, notes))
      for method, site, shared, notes in entries
    ]
    deltas = [
      site.unfold(method.delta(leaves, _float32_base(call), site, call.shared))
      for method, site, leaves, call in calls
      if method.acts_by_delta(site)
    ]
    base_x = enter(calls, x)
    y = _changed(module, run, base_x, deltas, first, calls[0][3]) if deltas else run(base_x)
    y = leave(calls, x, y)
    return y if first.folding is None else first.folding.unfold_y(y)

  return intercept


def _as_wide_as(given: Any, changed: Any) -> Any:
  """What a method made of an array in that array's dtype: its float32 leaves widen a model of fewer bits otherwise."""
  if not (isinstance(given, jax.Array) and isinstance(changed, jax.Array)) or given.dtype == changed.dtype:
    return changed
  return changed.astype(given.dtype) if jnp.issubdtype(given.dtype, jnp.floating) else changed


def _on_array(
  next_fun: Callable[..., Any], arguments: Mapping[str, Any], folding: Folding | None
) -> tuple[jax.Array, Callable[[Any], Any]]:
  """(a module's input, its output as a function of that), folded where it has more axes than a matrix."""
  name, *_ = arguments
  rest = {other: value for other, value in arguments.items() if other != name}
  if folding is None:
    return arguments[name], lambda x: next_fun(x, **rest)
  return folding.fold_x(arguments[name]), lambda x: folding.fold_y(next_fun(folding.unfold_x(x), **rest))


def _kernel(module: nn.Module) -> Any:
  return module.get_variable("params", "kernel") if isinstance(module, nn.Dense) else None


def _quantized_product(module: nn.Dense, x: jax.Array) -> jax.Array:
  """A linear module's output, its kernel made anew in every pass: the backward pass keeps the codes alone."""

  @jax.checkpoint
  def product(kernel: Any, x: jax.Array) -> jax.Array:
    x, kernel = nn.dtypes.promote_dtype(x, dequantize(kernel, module.param_dtype), dtype=module.dtype)
    return in_rows(lambda rows: jnp.dot(rows, kernel, precision=module.precision), x)

  y = product(_kernel(module), x)
  return y + module.get_variable("params", "bias").astype(y.dtype) if module.use_bias else y


def _float32_base(call: Call) -> Leaves:
  held = {name: call.base(name) for name in ("kernel", "bias")}
  return {name: leaf.astype(jnp.float32) for name, leaf in held.items() if leaf is not None}


def _changed(
  module: Any, run: Callable[[jax.Array], jax.Array], x: jax.Array, deltas: Sequence[Leaves], site: Site, call: Call
) -> jax.Array:
  """The output of a linear module or a convolution with changes added to its leaves.

  In float32 the sum of the kernels is multiplied once; in fewer bits a small change would be rounded away in that sum,
  so that it is multiplied by itself.
  """
  names = {name for one in deltas for name in one}
  total = site.fold({name: functools.reduce(jnp.add, [one[name] for one in deltas if name in one]) for name in names})
  kernel, bias = call.base("kernel"), call.base("bias")
  if {kernel.dtype, x.dtype, module.dtype or jnp.dtype(jnp.float32)} != {jnp.dtype(jnp.float32)}:
    y = run(x)
    y = y + call.product(x.astype(y.dtype), total["kernel"].astype(y.dtype)).astype(y.dtype)
  else:
    y = call.product(x, kernel + total["kernel"])
    y = y if bias is None else y + bias
  return y + total["bias"].astype(y.dtype) if "bias" in total else y


def _product(module: Any, site: Site, x: jax.Array, kernel: jax.Array, **changes: Any) -> jax.Array:
  """What the module makes of x with another kernel, both as the site has them, and without a bias.

  Args:
    changes: other settings of a convolution.
  """
  if site.kind == "linear":
    one = functools.partial(jnp.dot, precision=module.precision)
    if kernel.ndim > 2:
      return jax.vmap(one, in_axes=(-2, 0), out_axes=-2)(x, kernel)
    return in_rows(lambda rows: one(rows, kernel), x)
  other = module.clone(parent=None, name=_BARE, features=kernel.shape[-1], use_bias=False, **changes)
  found: jax.Array = other.apply({"params": site.unfold({"kernel": kernel})}, x)
  return found


def _leaves(module: nn.Module, method: Actor, site: Site, read: set[str] | None) -> Leaves:
  if site.method == "__call__":
    held: Leaves = {name: module.get_variable("params", name) for name in (*method.leaf_names, *method.buffer_names)
            if module.has_variable("params", name)}  # fmt: skip
  else:
    held = dict(module.get_variable("params", site.method) or {})
  if read is not None:
    read.update(".".join((*site.leaf_path, name)) for name in held)
  return held


def _call(module: nn.Module, site: Site, shared: Leaves, notes: dict[str, Any]) -> Call:
  def base(name: str) -> Any:
    leaf = module.get_variable("params", name) if module.has_variable("params", name) else None
    if is_quantized(leaf):
      return dequantize(leaf, module.param_dtype)
    return leaf if leaf is None or site.folding is None else site.fold({name: leaf})[name]

  def key() -> Any:
    return module.make_rng("dropout") if module.has_rng("dropout") else None

  rerun = functools.partial(_rerun, module, site)
  product = functools.partial(_product, module, site)
  return Call(base, shared, dropping(key), key, rerun, product, module, notes)


def _rerun(module: Any, site: Site, leaves: Leaves, x: Any) -> Any:
  """What a leaf module gives with other leaves, of as many outputs as these have."""
  other = module.clone(parent=None, name=_BARE)
  if isinstance(module, nn.Conv | nn.ConvTranspose):
    other = module.clone(parent=None, name=_BARE, features=leaves["kernel"].shape[-1], use_bias="bias" in leaves)
  variables = {**module.variables, "params": site.unfold(leaves)}
  if site.folding is None:
    return other.apply(variables, x)
  return site.folding.fold_y(other.apply(variables, site.folding.unfold_x(x)))
