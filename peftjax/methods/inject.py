"""How methods meet a model: finding its sites, laying leaves beside the base's, acting during the forward pass.

The model stays an ordinary Linen module. `discover` runs it once on shapes under a recording interceptor; `attach`
computes new leaves as pure functions of sites; `interceptor` only reads leaves, so it works unchanged under `scan`,
`remat`, `jit`, `grad` and `vmap`, and without an adapter leaf the outputs are bitwise the base's.

A quantised kernel is met here too: the interceptor takes the base's product from it, and methods see it as an array.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax import masks
from peftjax.errors import UserError
from peftjax.methods.acting import Actor, Scaled
from peftjax.methods.base import BIAS, Call, Context, Leaves, Method, Site
from peftjax.methods.per_example import PerExample, Summed
from peftjax.quantize import dequantize, is_quantized

_Entry = tuple[Actor, Site, Leaves, dict[str, Any]]
ARRAY_KINDS = ("linear", "conv", "embedding", "unembedding", "norm")
_LEAF_MODULES: tuple[tuple[Any, str, str], ...] = (
  (nn.Dense, "linear", "kernel"),
  (nn.Conv, "conv", "kernel"),
  (nn.Embed, "embedding", "embedding"),
  (nn.LayerNorm, "norm", "scale"),
  (nn.RMSNorm, "norm", "scale"),
  (nn.GroupNorm, "norm", "scale"),
)


@dataclasses.dataclass(frozen=True)
class Bound:
  """A method bound to a model, with the sites it acts on.

  Attributes:
    scale: factor on all that the method changes.
    members: of several adapters whose leaves are stacked behind the layers' axes: each one's place in the stack, -1 if
      it has no part in this method. A batch's `adapter_ids` count these. Empty: there is one adapter, not stacked.
    weights: all of the stacked adapters act, summed with these weights, instead of one for each example.
  """

  method: Method
  sites: tuple[Site, ...]
  scale: float = 1.0
  members: tuple[int, ...] = ()
  weights: tuple[float, ...] = ()

  def mask(self, name: str, leaf: Any) -> str:
    """The method's mask, and the biases that its `bias` setting frees: "all", or "<method>_only" at its sites."""
    group = self.method.mask(name, leaf)
    mode = getattr(self.method, "bias", "none")
    module, _, tail = name.rpartition(".")
    if group != masks.FROZEN or mode == "none" or tail != "bias":
      return group
    return BIAS if mode == "all" or any(module in site.names for site in self.sites) else masks.FROZEN

  def actor(self, adapter_ids: jax.Array | None = None) -> Actor:
    """What acts at the sites: the method, scaled where it is, or several adapters of it.

    Args:
      adapter_ids: int[B], each example's adapter, -1 for none.
    """
    if self.weights:
      return Summed(self.method, self.weights)
    if self.members:
      if adapter_ids is None:
        raise UserError(f"the model holds {len(self.members)} adapters; say by adapter_ids which each example has")
      local = jnp.asarray(self.members)[jnp.maximum(adapter_ids, 0)]
      return PerExample(self.method, jnp.where(adapter_ids < 0, -1, local))
    return self.method if self.scale == 1.0 else Scaled(self.method, self.scale)

  @property
  def is_stacked(self) -> bool:
    """Whether there are several adapters' leaves."""
    return bool(self.members or self.weights)

  @property
  def shared_path(self) -> str:
    """Where the leaves that its sites share stand in the tree."""
    return self.method.name


# Sites ------------------------------------------------------------------------------------------------------------


def discover(
  module: nn.Module, inputs: Mapping[str, Any], stacks: Mapping[str, int]
) -> tuple[masks.Tree, tuple[Site, ...]]:
  """(parameter shapes, sites) of a module, from shapes alone.

  Args:
    module: any Linen model; modules may declare `sites` (method name -> kind) beside the built-in leaf modules.
    inputs: keyword inputs of its call, arrays or `jax.ShapeDtypeStruct`s.
    stacks: dotted path of each scanned stack -> number of layers.
  """
  found: dict[tuple[tuple[str, ...], str], Site] = {}

  def record(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    y = next_fun(*args, **kwargs)
    site = _site_of(context, args, kwargs, stacks)
    if site is not None:
      found.setdefault((site.path, site.method), site)
    return y

  with nn.intercept_methods(record):
    variables = jax.eval_shape(lambda key, batch: module.init(key, **batch), jax.random.key(0), dict(inputs))
  return variables["params"], tuple(found.values())


def _site_of(context: Any, args: Any, kwargs: Any, stacks: Mapping[str, int]) -> Site | None:
  module, method = context.module, context.method_name
  kind = getattr(type(module), "sites", {}).get(method)
  if kind == "model" and module.path:
    return None  # only the outermost model's inputs are the user's
  shape: tuple[int, ...] = ()
  dtype, has_bias = jnp.float32, False
  if kind is None and method == "__call__":
    for module_type, leaf_kind, leaf in _LEAF_MODULES:
      if isinstance(module, module_type) and module.has_variable("params", leaf):
        value = module.get_variable("params", leaf)
        kind, shape, dtype = leaf_kind, tuple(value.shape), value.dtype
        has_bias = module.has_variable("params", "bias")
        break
  if kind is None and method == "attend" and isinstance(module, nn.Embed):
    kind, shape, dtype = "unembedding", tuple(module.embedding.shape), module.embedding.dtype
  if kind is None:
    return None
  if not shape:
    shape = _activation_shape(kind, arguments_of(module, method, args, kwargs))
  dotted = ".".join(module.path)
  below = dotted + "."  # a stack's own module is one of its layers
  names = tuple(name[:-1] for name in masks.layer_names(below, stacks))
  stack = masks.stack_shape(below, stacks)
  base_path = module.embedding_path if kind == "model" else module.path
  return Site(module.path, method, kind, names, stack, shape, dtype, has_bias, base_path)


def _activation_shape(kind: str, arguments: dict[str, Any]) -> tuple[int, ...]:
  if kind == "attention":
    q, k = arguments["q"], arguments["k"]
    return (q.shape[-2], k.shape[-2], q.shape[-1])
  return (next(iter(arguments.values())).shape[-1],)


def arguments_of(module: nn.Module, method: str, args: Any, kwargs: Any) -> dict[str, Any]:
  """The call's arguments by name."""
  parameters = list(inspect.signature(getattr(type(module), method)).parameters)[1:]
  return {**dict(zip(parameters, args)), **kwargs}


# Leaves -----------------------------------------------------------------------------------------------------------


def attach(
  params: masks.Tree,
  bound: Sequence[Bound],
  key: jax.Array,
  *,
  observed: Mapping[str, Leaves] | None = None,
  original: Callable[[Site], jax.Array] | None = None,
  dtype: Any = jnp.float32,
) -> masks.Tree:
  """A new tree with the methods' fresh leaves beside the base's, which are the same arrays as before.

  A leaf depends on `key`, its layer's name and the base leaves of its own module alone: not on how layers are stored,
  nor on other methods.

  Args:
    observed: `note_key` -> what a method noted at a site while the base ran; `create` finds it in `base`.
    original: the float kernel of a site whose kernel is quantised, for methods with `needs_original`.

  Raises:
    UserError: two methods add a leaf of one name at one site.
  """
  flat = masks.flatten(params)
  for one in bound:
    for site in one.sites:
      base = {**_base_leaves(flat, site), **(observed or {}).get(note_key(one.method, site), {})}
      if original is not None and one.method.needs_original and is_quantized(base.get("kernel")):
        base |= {"original": original(site), "quantized": base["kernel"]}
      for name, leaf in _create_at(one.method, site, base, key).items():
        _put(flat, ".".join((*site.leaf_path, name)), leaf, dtype)
    shared_key = jax.random.fold_in(key, zlib.crc32(one.method.name.encode()))
    for name, leaf in one.method.create_shared(shared_key, one.sites).items():
      _put(flat, f"{one.shared_path}.{name}", leaf, dtype)
  return masks.unflatten(flat)


def note_key(method: Method, site: Site) -> str:
  """What names a method's observations at a site."""
  return f"{method.name}:{'.'.join(site.leaf_path)}"


def _base_leaves(flat: Mapping[str, Any], site: Site) -> Leaves:
  prefix = ".".join(site.base_path)
  names = ("kernel", "bias", "embedding", "scale")
  return {name: flat[f"{prefix}.{name}"] for name in names if f"{prefix}.{name}" in flat}


def _put(flat: dict[str, Any], path: str, leaf: Any, dtype: Any) -> None:
  if is_quantized(leaf):
    flat[path] = leaf
    return
  if path in flat:
    raise UserError(f"two methods add the leaf {path!r}")
  flat[path] = leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _create_at(method: Method, site: Site, base: Leaves, key: jax.Array) -> Leaves:
  hashes = jnp.asarray([zlib.crc32(name.encode()) for name in site.names], jnp.uint32)
  if not site.stack:
    return method.create(jax.random.fold_in(key, hashes[0]), site, _as_arrays(base, site))
  keys = jax.vmap(lambda one: jax.random.fold_in(key, one))(hashes).reshape(site.stack)
  return site.mapped(lambda one, leaves: method.create(one, site.one(0), _as_arrays(leaves, site)))(keys, base)


def _as_arrays(base: Leaves, site: Site) -> Leaves:
  arrays = {name: dequantize(leaf, site.dtype) if is_quantized(leaf) else leaf for name, leaf in base.items()}
  return arrays | {name: leaf for name, leaf in base.items() if name == "quantized"}


def leaf_paths(bound: Sequence[Bound], params: masks.Tree) -> set[str]:
  """Dotted tree paths of all leaves that the methods added."""
  paths = set()
  for one in bound:
    added = {*one.method.leaf_names, *one.method.buffer_names}
    prefixes = [*(".".join(site.leaf_path) for site in one.sites), one.shared_path]
    paths |= {f"{prefix}.{name}".lstrip(".") for prefix in prefixes for name in added}
  return paths & set(masks.flatten(params))


# The forward pass -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def acting(
  bound: Sequence[Bound], params: masks.Tree, read: set[str] | None = None, adapter_ids: jax.Array | None = None
) -> Iterator[masks.Tree]:
  """Within it, calls of the module's sites are acted on by the methods.

  Args:
    bound: methods with their sites, applied in order.
    params: the model's leaves.
    read: if given, collects the dotted paths of the leaves that were read.
    adapter_ids: int[B], where the model holds several adapters: which one each example has, -1 for none.

  Yields:
    The tree to apply the module to: `params`, with what methods derive from their shared leaves.
  """
  if adapter_ids is not None and not any(one.members for one in bound):
    raise UserError("adapter_ids: the model does not hold several adapters; stack them first (docs/adapters.md)")
  if not bound and not any(map(is_quantized, masks.flatten(params).values())):
    yield params
    return
  table: dict[tuple[tuple[str, ...], str], list[_Entry]] = {}
  for one in bound:
    shared = params.get(one.shared_path, {})
    if read is not None:
      read.update(f"{one.shared_path}.{name}" for name in masks.flatten(shared))
    notes: dict[str, Any] = {}
    actor = one.actor(adapter_ids)
    for site in one.sites:
      table.setdefault((site.path, site.method), []).append((actor, site, shared, notes))
  with nn.intercept_methods(_interceptor(table, read)):
    yield _with_derived(bound, params)


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


def _interceptor(table: Mapping[Any, list[_Entry]], read: set[str] | None) -> Callable[..., Any]:
  def intercept(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    module, method_name = context.module, context.method_name
    if module.scope is None:
      return next_fun(*args, **kwargs)
    if method_name == "__call__" and is_quantized(_kernel(module)):
      next_fun = functools.partial(_quantized_product, module)
    entries = table.get((module.path, method_name))
    if not entries:
      return next_fun(*args, **kwargs)
    arguments = arguments_of(module, method_name, args, kwargs)
    is_array = entries[0][1].kind in ARRAY_KINDS
    x = next(iter(arguments.values())) if is_array else arguments
    calls = [
      (method, site, _leaves(module, method, site, read), _call(module, shared, notes))
      for method, site, shared, notes in entries
    ]
    base_x = x
    for method, site, leaves, call in calls:
      base_x = method.before(leaves, base_x, site, call)
    deltas: list[jax.Array] = [
      method.delta(leaves, _float32_base(module), site, call.shared)["kernel"]
      for method, site, leaves, call in calls
      if method.acts_by_delta(site)
    ]
    if deltas:
      assert not isinstance(base_x, dict)
      y = _changed_product(module, next_fun, base_x, functools.reduce(jnp.add, deltas))
    else:
      y = next_fun(base_x) if is_array else next_fun(**base_x)
    for method, site, leaves, call in calls:
      y = method.after(leaves, x, y, site, call)
    return y

  return intercept


def _kernel(module: nn.Module) -> Any:
  return module.get_variable("params", "kernel") if isinstance(module, nn.Dense) else None


def _quantized_product(module: nn.Dense, x: jax.Array) -> jax.Array:
  """A linear module's output, its kernel made anew in every pass: the backward pass keeps the codes alone."""

  @jax.checkpoint
  def product(kernel: Any, x: jax.Array) -> jax.Array:
    x, kernel = nn.dtypes.promote_dtype(x, dequantize(kernel, module.param_dtype), dtype=module.dtype)
    return jnp.dot(x, kernel, precision=module.precision)

  y = product(_kernel(module), x)
  return y + module.get_variable("params", "bias").astype(y.dtype) if module.use_bias else y


def _float32_base(module: nn.Module) -> Leaves:
  held = [name for name in ("kernel", "bias") if module.has_variable("params", name)]
  return {name: dequantize(module.get_variable("params", name)) for name in held}


def _changed_product(module: nn.Dense, next_fun: Callable[..., Any], x: jax.Array, delta: jax.Array) -> jax.Array:
  """A linear module's output with `delta` added to its kernel.

  In float32 the sum of the kernels is multiplied once; in fewer bits a small change would be rounded away in that sum,
  so that it is multiplied by itself.
  """
  kernel = dequantize(module.get_variable("params", "kernel"), module.param_dtype)
  if {kernel.dtype, x.dtype, module.dtype or jnp.dtype(jnp.float32)} != {jnp.dtype(jnp.float32)}:
    y = next_fun(x)
    return y + x.astype(y.dtype) @ delta.astype(y.dtype)
  y = jnp.dot(x, kernel + delta, precision=module.precision)
  return y + module.get_variable("params", "bias") if module.use_bias else y


def _leaves(module: nn.Module, method: Actor, site: Site, read: set[str] | None) -> Leaves:
  if site.method == "__call__":
    held: Leaves = {name: module.get_variable("params", name) for name in (*method.leaf_names, *method.buffer_names)
            if module.has_variable("params", name)}  # fmt: skip
  else:
    held = dict(module.get_variable("params", site.method) or {})
  if read is not None:
    read.update(".".join((*site.leaf_path, name)) for name in held)
  return held


def _call(module: nn.Module, shared: Leaves, notes: dict[str, Any]) -> Call:
  def base(name: str) -> Any:
    leaf = module.get_variable("params", name) if module.has_variable("params", name) else None
    return dequantize(leaf, module.param_dtype) if is_quantized(leaf) else leaf

  def drop(x: jax.Array, rate: float) -> jax.Array:
    if rate == 0.0 or not module.has_rng("dropout"):
      return x
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))

  return Call(base=base, shared=shared, dropout=drop, module=module, notes=notes)


def penalty(bound: Sequence[Bound], params: masks.Tree) -> jax.Array | float:
  """What the methods add to the mean loss of a training step, over all sites and layers; 0.0 if no method adds any."""
  total: Any = 0.0
  flat = masks.flatten(params)
  for one in bound:
    if type(one.method).penalty is Method.penalty:
      continue
    for site in one.sites:
      prefix = ".".join(site.leaf_path)
      leaves = {name: flat[f"{prefix}.{name}"] for name in one.method.leaf_names if f"{prefix}.{name}" in flat}
      each = functools.partial(one.method.penalty, site=site.one(0))
      total += jnp.sum(site.mapped(jax.vmap(each) if one.is_stacked else each)(leaves))
  return total


# Checks -----------------------------------------------------------------------------------------------------------


def bind(methods: Sequence[Method], context: Context) -> tuple[Bound, ...]:
  """The methods with their defaults filled in and their sites chosen.

  Raises:
    UserError: a pattern without match.
    masks.LayersDiffer: a method treats the layers of one stack differently.
  """
  bound = []
  for method in methods:
    ready = method.bind(context)
    bound.append(Bound(ready, tuple(ready.select(context))))
  return tuple(bound)


def check_all_read(module: nn.Module, params: masks.Tree, bound: Sequence[Bound], inputs: Mapping[str, Any]) -> None:
  """Raises a `UserError` if a leaf that a method added is never read in the forward pass."""
  shapes = {path: (leaf.shape, leaf.dtype) for path, leaf in masks.flatten(params).items()}
  try:
    key = hash((module, repr(bound), tuple(shapes.items()), tuple(inputs.items())))
  except TypeError:  # a module's setting that cannot be hashed
    key = None
  if key is not None and key in _all_read:
    return
  read: set[str] = set()

  def forward(tree: masks.Tree, batch: Mapping[str, Any]) -> Any:
    with acting(bound, tree, read) as whole:
      return module.apply({"params": whole}, **batch)

  jax.eval_shape(forward, params, dict(inputs))
  unread = sorted(leaf_paths(bound, params) - read)
  if unread:
    raise UserError(f"{len(unread)} adapter leaves are never read in a forward pass, such as {unread[0]!r}")
  if key is not None:
    _all_read.add(key)


_all_read: set[int] = set()  # what was found in order once in this process: tracing takes long
