"""Layers of one structure stored as one: a leaf with a leading layer axis, or one subtree a layer."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from peftjax import masks


def unstack(params: masks.Tree, stacks: Mapping[str, int]) -> masks.Tree:
  """The tree with one subtree a layer: {"layer": {"kernel": [6, ...]}} -> {"layer": {"0": {"kernel": [...]}, ...}}."""
  flat = {}
  for path, leaf in masks.flatten(params).items():
    names = masks.layer_names(path, stacks)
    if names == (path,):
      flat[path] = leaf
    else:
      layers = [jax.tree.map(lambda array, at=index: array[at], leaf) for index in range(len(names))]
      flat.update(zip(names, layers))
  return masks.unflatten(flat)


def stack(params: masks.Tree, stacks: Mapping[str, int]) -> masks.Tree:
  """The inverse of `unstack`; the layers' leaves must agree in name and shape."""
  flat = masks.flatten(params)
  for prefix, count in stacks.items():
    first = [path.removeprefix(f"{prefix}.0.") for path in flat if path.startswith(f"{prefix}.0.")]
    for rest in first:
      layers = [flat.pop(f"{prefix}.{index}.{rest}") for index in range(count)]
      flat[f"{prefix}.{rest}"] = jax.tree.map(lambda *arrays: jnp.stack(arrays), *layers)
  return masks.unflatten(flat)
