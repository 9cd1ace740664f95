"""Between the parameter tree, layers stacked or not, and tensors by PEFT's keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from peftjax import masks
from peftjax.buffers import is_buffer
from peftjax.interop.formats.base import Format, Layers, Tensor, Tensors
from peftjax.methods.base import Leaves
from peftjax.methods.bound import Bound
from peftjax.models import family
from peftjax.models.family import Index, checkpoint_axes, checkpoint_key, expanded
from peftjax.sites import Site

if TYPE_CHECKING:
  from peftjax.model import Model


def module_key(model: Model, name: str) -> str:
  """PEFT's (Hugging Face's) name of a module of the tree."""
  if not name:
    return ""
  return family.module_key(model.family, checkpoint_key(model.family, f"{name}.kernel").removesuffix(".weight"))


def module_names(model: Model) -> dict[str, str]:
  """{name in the tree: name in PEFT} of all modules, those that only hold other modules included."""
  names = {}
  for leaf in base_names(model):
    parts, first = leaf.split(".")[:-1], 3 if is_buffer(leaf) else 1  # the root and the collection are no modules
    names.update({(name := ".".join(parts[:end])): module_key(model, name) for end in range(first, len(parts) + 1)})
  return names


def base_names(model: Model) -> dict[str, tuple[str, Index]]:
  """{leaf's name, layers numbered: (path in the tree, index on its stack axes or None)} of the base's leaves."""
  added = model.adapter_paths()
  return {name: place for name, place in expanded(model.params, model.stacks).items() if place[0] not in added}


# The method's own leaves ------------------------------------------------------------------------------------------


def write_adapter(model: Model, one: Bound, form: Format, *, shapes: bool = False) -> Tensors:
  """The tensors of a method's leaves.

  Args:
    shapes: of the tensors that `read_adapter` reads, the leaves as they are: arrays of the right shape and dtype whose
      values do not matter, without reading the leaves; where one tensor is one leaf they take no memory.
  """
  whole = np.asarray if shapes else np.ascontiguousarray
  layers, shared = _layers(model, one, shapes), _shared(model, one, shapes)
  method = form.saved_as(one.method) if form.saved_as and not shapes else one.method
  if form.leaves_as and not shapes:
    layers = {name: form.leaves_as(one.method, site, layers[name]) for name, site in _sites(one).items()}
  if form.write:
    return form.write(one, layers, shared)
  tensors: Tensors = {}
  for name, site in _sites(one).items():
    for leaf, tensor in form.tensors(method, site).items():
      if leaf in layers[name]:
        key = f"{form.prefix}{module_key(model, site.names[0])}.{tensor.key}"
        tensors[key] = whole(tensor.out(layers[name][leaf]))
  for leaf, tensor in form.shared(method).items():
    if leaf in shared:
      tensors[f"base_model.{tensor.key}"] = whole(tensor.out(shared[leaf]))
  return tensors


def read_adapter(model: Model, one: Bound, form: Format, tensors: Tensors) -> dict[str, Any]:
  """{path in the tree: leaf} of a method's leaves from tensors that `write_adapter` would write."""
  layers, shared = _layers(model, one, shapes=True), _shared(model, one, shapes=True)
  if form.read:
    layers, shared = form.read(one, tensors, layers, shared)
  else:
    for name, site in _sites(one).items():
      prefix = f"{form.prefix}{module_key(model, site.names[0])}."
      _fill(layers[name], form.tensors(one.method, site), tensors, prefix)
    _fill(shared, form.shared(one.method), tensors, "base_model.")
  return _in_tree(model, one, layers, shared)


def _fill(leaves: Leaves, table: Mapping[str, Tensor], tensors: Tensors, prefix: str) -> None:
  for leaf in list(leaves):
    if leaf in table:
      leaves[leaf] = table[leaf].into(tensors[prefix + table[leaf].key])
    else:
      del leaves[leaf]  # not in the file: stays as the method made it


def _sites(one: Bound) -> dict[str, Site]:
  """{layer's key: the site of that layer alone}, in order."""
  return {_layer_key(site, name): site.one(index) for site in one.sites for index, name in enumerate(site.names)}


def _layer_key(site: Site, name: str) -> str:
  return name if site.method == "__call__" else f"{name}.{site.method}"


def _own_names(one: Bound) -> tuple[str, ...]:
  return (*one.method.leaf_names, *one.method.buffer_names)


def _layers(model: Model, one: Bound, shapes: bool) -> Layers:
  flat = masks.flatten(model.params)
  layers: Layers = {key: {} for key in _sites(one)}
  for site in one.sites:
    for leaf in _own_names(one):
      path = ".".join((*site.leaf_path, leaf))
      if path in flat:
        whole = _array(flat[path], shapes)
        for index, name in zip(np.ndindex(site.stack), site.names):
          layers[_layer_key(site, name)][leaf] = whole[index]
  return layers


def _shared(model: Model, one: Bound, shapes: bool) -> Leaves:
  held = masks.flatten(model.params.get(one.shared_path, {}))
  return {name: _array(leaf, shapes) for name, leaf in held.items()}


def _array(leaf: Any, shapes: bool) -> np.ndarray:
  return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) if shapes else np.asarray(leaf)


def _in_tree(model: Model, one: Bound, layers: Layers, shared: Leaves) -> dict[str, Any]:
  flat = masks.flatten(model.params)
  found: dict[str, Any] = {}
  for site in one.sites:
    rows = [layers[_layer_key(site, name)] for name in site.names]
    for leaf in rows[0]:
      path = ".".join((*site.leaf_path, leaf))
      values = [row[leaf] for row in rows]
      found[path] = jnp.asarray(np.stack(values).reshape(flat[path].shape), flat[path].dtype)
  for leaf, value in shared.items():
    path = f"{one.shared_path}.{leaf}"
    found[path] = jnp.asarray(value, flat[path].dtype)
  return found


# The base's leaves that train along -------------------------------------------------------------------------------


def base_key(model: Model, name: str, prefix: str, wrapped: Iterable[str] = (), infix: str = "base_layer") -> str:
  """PEFT's key of a base leaf; a module that PEFT wraps in an adapter keeps its own leaves under `base_layer`."""
  module, _, leaf = checkpoint_key(model.family, name).rpartition(".")
  module = family.module_key(model.family, module)
  if name.rpartition(".")[0] in wrapped or infix != "base_layer":
    return f"{prefix}{module}.{infix}.{leaf}"
  return f"{prefix}{module}.{leaf}"


def read_base(model: Model, names: Iterable[str]) -> dict[str, np.ndarray]:
  """{leaf's name: value in Hugging Face's layout} of base leaves."""
  flat, places = masks.flatten(model.params), base_names(model)
  found = {}
  for name in names:
    path, index = places[name]
    value = np.asarray(flat[path] if index is None else flat[path][index])
    axes = checkpoint_axes(model.family, name, value.ndim)
    found[name] = np.ascontiguousarray(value if axes is None else value.transpose(np.argsort(axes)))
  return found


def base_shapes(model: Model, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
  """{leaf's name: shape in Hugging Face's layout} of base leaves."""
  flat, places = masks.flatten(model.params), base_names(model)
  found = {}
  for name in names:
    path, _ = places[name]
    shape = flat[path].shape[len(masks.stack_shape(path, model.stacks)) :]
    axes = checkpoint_axes(model.family, name, len(shape))
    found[name] = shape if axes is None else tuple(shape[axis] for axis in np.argsort(axes))
  return found


def put_base(model: Model, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """{path in the tree: leaf} with the base leaves of `values`, in Hugging Face's layout, put in place."""
  flat, places = masks.flatten(model.params), base_names(model)
  found: dict[str, Any] = {}
  for name, value in values.items():
    path, index = places[name]
    axes = checkpoint_axes(model.family, name, value.ndim)
    leaf = value if axes is None else value.transpose(axes)
    if index is None:
      found[path] = jnp.asarray(leaf, flat[path].dtype)
    else:
      whole = found.setdefault(path, np.array(flat[path]))
      whole[index] = leaf
  return {path: jnp.asarray(leaf) for path, leaf in found.items()}
