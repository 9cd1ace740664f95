"""Checks of a run's promises: every trainable leaf moves, every frozen leaf stays as it was, bit by bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.masks import Tree, flatten


def fingerprints(tree: Tree) -> dict[str, str]:
  """Leaf name -> 16 hexadecimal digits of its bits, shape and dtype apart.

  Computed where the leaf lies, in integers modulo 2**32, so it is the same on every mesh and number of processes.
  """
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  sums = {jax.tree_util.keystr(path, simple=True, separator="."): _two_sums(leaf) for path, leaf in leaves}
  return {name: "".join(f"{int(one):08x}" for one in pair) for name, pair in jax.device_get(sums).items()}


@jax.jit
def _two_sums(leaf: jax.Array) -> jax.Array:
  """Two sums of the elements' bits, each multiplied by an odd number that depends on the position."""
  bits = _as_uint32(jnp.asarray(leaf)).ravel()
  position = jax.lax.iota(jnp.uint32, bits.size)
  mixed = [_mix(position * jnp.uint32(2) + jnp.uint32(salt)) | jnp.uint32(1) for salt in (0x9E3779B9, 0x7F4A7C15)]
  return jnp.stack([jnp.sum(_mix(bits + one) * one, dtype=jnp.uint32) for one in mixed])


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of 32-bit words in which every input bit reaches every output bit (the finalizer of MurmurHash3)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def _as_uint32(leaf: jax.Array) -> jax.Array:
  if leaf.dtype == jnp.bool_ or leaf.dtype.itemsize * 8 != jax.dtypes.itemsize_bits(leaf.dtype):
    leaf = leaf.astype(jnp.int8)  # booleans and packed integers below a byte
  width = leaf.dtype.itemsize
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[width]  # 8 bytes become two words
  return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)


def digest(tree: Tree) -> str:
  """64 hexadecimal digits of all names, shapes, dtypes and bits of a tree: the content hash of a base model."""
  shapes = {
    jax.tree_util.keystr(path, simple=True, separator="."): [list(leaf.shape), str(leaf.dtype)]
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }
  text = json.dumps([shapes, fingerprints(tree)], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def check_moved(before: Tree, after: Tree, metrics: Mapping[str, Any]) -> None:
  """Checks that an update moved every leaf whose gradient was not zero.

  Args:
    before, after: the trainable tree.
    metrics: of the update, as `peftjax.train.step` gives them; nothing is checked if it was not finite.

  Raises:
    RuntimeError: a leaf stands still, by name.
  """
  if not metrics["finite"]:
    return
  changed = flatten(_changed(before, after))
  stuck = [name for name, norm in metrics["leaf_norms"].items() if float(norm) > 0 and not bool(changed[name])]
  if stuck:
    raise RuntimeError(f"{len(stuck)} trainable leaves have a gradient and did not move: {', '.join(stuck[:4])}")


@jax.jit
def _changed(before: Tree, after: Tree) -> Tree:
  return jax.tree.map(lambda old, new: jnp.any(old != new), before, after)


def check_unchanged(before: Mapping[str, str], after: Mapping[str, str]) -> None:
  """Compares the fingerprints of the frozen leaves.

  Raises:
    RuntimeError: a leaf changed, by name.
  """
  changed = [name for name, one in after.items() if before[name] != one]
  if changed:
    raise RuntimeError(f"{len(changed)} frozen leaves changed during training: {', '.join(changed[:4])}")
