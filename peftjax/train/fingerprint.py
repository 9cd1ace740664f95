"""Fingerprints of arrays: the same bits give the same digits, on every mesh and number of processes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.masks import Tree

_HOST_ELEMENTS = 2**18  # smaller leaves are read on the host, which spares a compilation for each of their shapes
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def fingerprints(tree: Tree) -> dict[str, str]:
  """Leaf name -> 16 hexadecimal digits of its bits; neither shape nor dtype is in them.

  Two sums, modulo 2**32, of the elements' bits, each mixed with and multiplied by an odd number that depends on its
  position. Integers add up the same in any order, so large leaves are summed where they lie.
  """
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  sums = {jax.tree_util.keystr(path, simple=True, separator="."): _of_leaf(leaf) for path, leaf in leaves}
  return {name: "".join(f"{int(one):08x}" for one in pair) for name, pair in jax.device_get(sums).items()}


def digest(tree: Tree) -> str:
  """64 hexadecimal digits of all names, shapes, dtypes and bits of a tree: the content hash of a base model."""
  shapes = {
    jax.tree_util.keystr(path, simple=True, separator="."): [list(leaf.shape), str(leaf.dtype)]
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }
  text = json.dumps([shapes, fingerprints(tree)], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _of_leaf(leaf: Any) -> Any:
  if leaf.size > _HOST_ELEMENTS or not getattr(leaf, "is_fully_addressable", True):
    return _on_device(leaf)
  return _two_sums(_bits(np.asarray(leaf)), np.arange(leaf.size, dtype=np.uint32), np)


@jax.jit
def _on_device(leaf: jax.Array) -> jax.Array:
  return _two_sums(_bits(leaf), jax.lax.iota(jnp.uint32, leaf.size), jnp)


def _bits(leaf: Any) -> Any:
  """uint32 [size]: the bits of every element, of a NumPy or a JAX array."""
  if leaf.dtype == jnp.bool_ or leaf.dtype.itemsize * 8 != jax.dtypes.itemsize_bits(leaf.dtype):
    leaf = leaf.astype(jnp.int8)  # booleans and packed integers below a byte
  return leaf.ravel().view(_UNSIGNED[leaf.dtype.itemsize]).astype(np.uint32)


def _two_sums(bits: Any, position: Any, xp: Any) -> Any:
  """uint32 [2], by `xp`, NumPy or JAX's."""
  odd = [_mix(position * np.uint32(2) + np.uint32(salt)) | np.uint32(1) for salt in (0x9E3779B9, 0x7F4A7C15)]
  return xp.stack([xp.sum(_mix(bits + one) * one, dtype=np.uint32) for one in odd])


def _mix(x: Any) -> Any:
  """A bijection of 32-bit words in which every input bit reaches every output bit (the finalizer of MurmurHash3)."""
  x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
  return x ^ (x >> np.uint32(16))
