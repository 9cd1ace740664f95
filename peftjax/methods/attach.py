"""The leaves that methods add: made as pure functions of sites, and laid beside the base's."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax import masks
from peftjax.errors import UserError
from peftjax.methods.base import Leaves, Method
from peftjax.methods.bound import Bound
from peftjax.methods.experts import OverExperts
from peftjax.quantize import dequantize, is_quantized
from peftjax.sites import BASE_LEAVES, Site


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
  if site.places:
    return site.folded(site.base_leaves(flat))
  prefix = ".".join(site.base_path)
  return {name: flat[f"{prefix}.{name}"] for name in BASE_LEAVES if f"{prefix}.{name}" in flat}


def _put(flat: dict[str, Any], path: str, leaf: Any, dtype: Any) -> None:
  if is_quantized(leaf):
    flat[path] = leaf
    return
  if path in flat:
    raise UserError(f"two methods add the leaf {path!r}")
  flat[path] = leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _create_at(method: Method, site: Site, base: Leaves, key: jax.Array) -> Leaves:
  hashes = jnp.asarray([zlib.crc32(name.encode()) for name in site.names], jnp.uint32)
  create = OverExperts(method).create if site.experts else method.create
  if not site.stack:
    return create(jax.random.fold_in(key, hashes[0]), site, _as_arrays(base, site))
  keys = jax.vmap(lambda one: jax.random.fold_in(key, one))(hashes).reshape(site.stack)
  return site.mapped(lambda one, leaves: create(one, site.one(0), _as_arrays(leaves, site)))(keys, base)


def _as_arrays(base: Leaves, site: Site) -> Leaves:
  arrays = {name: dequantize(leaf, site.dtype) if is_quantized(leaf) else leaf for name, leaf in base.items()}
  folded = arrays if site.places else site.fold(arrays)
  return folded | {name: leaf for name, leaf in base.items() if name == "quantized"}


def leaf_paths(bound: Sequence[Bound], params: masks.Tree) -> set[str]:
  """Dotted tree paths of all leaves that the methods added."""
  paths = set()
  for one in bound:
    added = {*one.method.leaf_names, *one.method.buffer_names}
    prefixes = [*(".".join(site.leaf_path) for site in one.sites), one.shared_path]
    paths |= {f"{prefix}.{name}".lstrip(".") for prefix in prefixes for name in added}
  return paths & set(masks.flatten(params))


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
      each = functools.partial(OverExperts(one.method).penalty, site=site.one(0))
      total += jnp.sum(site.mapped(jax.vmap(each) if one.is_stacked else each)(leaves))
  return total
