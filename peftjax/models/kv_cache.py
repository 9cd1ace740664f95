"""Keys and values of earlier tokens, and which of them a token sees.

The cache is a Flax variable collection. A first pass with ``mutable=("cache",)`` keeps every attention layer's keys and
values; `grow` makes room; later passes give it back as ``{"params": ..., "cache": ...}`` and write their own tokens at
the slot `index`. At its root stand, for all layers, `mask` [B, S] (the slots that hold tokens), `positions` [B, S] and
`index`.

Shapes are in the names: B batch, L query length, S slots, K key heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from peftjax.errors import UserError
from peftjax.models.layers import CACHE

Cache = dict[str, Any]
_SLOT_AXIS = {"key": -3, "value": -3, "mask": -1, "positions": -1}
_BATCH_AXIS = {"key": -4, "value": -4, "cross_key": -4, "cross_value": -4}
_BATCH_AXIS |= {"mask": -2, "positions": -2, "encoder_mask": -2}


class Tokens(NamedTuple):
  """The tokens of one call among those they may attend to.

  Attributes:
    positions: int[B, L].
    key_positions: int[B, S], S = L without a cache.
    mask: bool[B, S], or None if every key is a token.
    segments: int[B, L], or None: tokens see only their own segment.
    slot: where in the cache the first of the tokens is; None without a cache.
  """

  positions: jax.Array
  key_positions: jax.Array
  mask: jax.Array | None
  segments: jax.Array | None
  slot: jax.Array | None


def place(
  module: nn.Module,
  embeds_BxLxE: jax.Array,
  attention_mask_BxL: jax.Array | None,
  position_ids_BxL: jax.Array | None,
  segment_ids_BxL: jax.Array | None = None,
  *,
  skips_padding: bool = False,
) -> Tokens:
  """Where the tokens of a call stand, after those of the cache if `module` has one, which is brought up to date.

  Positions that are not given count up from 0, from each segment's start, or after the cache's. Padding is counted, as
  Hugging Face's models do, unless `skips_padding` or a cache is kept.

  Raises:
    UserError: segments together with a cache.
  """
  batch, length = embeds_BxLxE.shape[:2]
  has_cache = module.has_variable(CACHE, "index")
  keeps_cache = module.is_mutable_collection(CACHE) and not module.is_initializing()
  if segment_ids_BxL is not None and (has_cache or keeps_cache):
    raise UserError("segment_ids are for training on packed sequences; a cache holds one sequence a row")
  mask = None if attention_mask_BxL is None else attention_mask_BxL.astype(bool)
  if has_cache:
    tokens = _after_cache(module, batch, length, mask, position_ids_BxL)
  else:
    if position_ids_BxL is None:
      position_ids_BxL = _fresh_positions(batch, length, mask, segment_ids_BxL, skips_padding or keeps_cache)
    tokens = Tokens(position_ids_BxL, position_ids_BxL, mask, segment_ids_BxL, None)
  if keeps_cache:
    kept = jnp.ones((batch, length), bool) if tokens.mask is None else tokens.mask
    module.put_variable(CACHE, "mask", kept)
    module.put_variable(CACHE, "positions", tokens.key_positions)
    module.put_variable(CACHE, "index", jnp.int32(length) if tokens.slot is None else tokens.slot + length)
  return tokens


def counted_positions(
  module: nn.Module,
  embeds_BxLxE: jax.Array,
  attention_mask_BxL: jax.Array | None,
  segment_ids_BxL: jax.Array | None = None,
  *,
  skips_padding: bool = False,
) -> jax.Array | None:
  """int[B, L], the positions that `place` counts where none are given; None where they go on from the cache's."""
  if module.has_variable(CACHE, "index"):
    return None
  keeps_cache = module.is_mutable_collection(CACHE) and not module.is_initializing()
  mask = None if attention_mask_BxL is None else attention_mask_BxL.astype(bool)
  batch, length = embeds_BxLxE.shape[:2]
  return _fresh_positions(batch, length, mask, segment_ids_BxL, skips_padding or keeps_cache)


def _fresh_positions(
  batch: int, length: int, mask: jax.Array | None, segments: jax.Array | None, skips_padding: bool
) -> jax.Array:
  counted = jnp.broadcast_to(jnp.arange(length), (batch, length))
  if segments is not None:
    starts = jnp.concatenate([jnp.ones((batch, 1), bool), segments[:, 1:] != segments[:, :-1]], axis=1)
    return counted - jax.lax.cummax(jnp.where(starts, counted, 0), axis=1)
  if mask is not None and skips_padding:
    return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
  return counted


def _after_cache(
  module: nn.Module, batch: int, length: int, mask: jax.Array | None, positions: jax.Array | None
) -> Tokens:
  index: jax.Array = module.get_variable(CACHE, "index")
  held: jax.Array = module.get_variable(CACHE, "mask")
  old_positions: jax.Array = module.get_variable(CACHE, "positions")
  mask = jnp.ones((batch, length), bool) if mask is None else mask
  if positions is None:
    last = jnp.where(held, old_positions, -1).max(axis=1, keepdims=True)
    positions = last + jnp.cumsum(mask, axis=1, dtype=jnp.int32)
  at = (0, index)
  return Tokens(
    positions,
    jax.lax.dynamic_update_slice(old_positions, positions.astype(old_positions.dtype), at),
    jax.lax.dynamic_update_slice(held, mask, at),
    None,
    index,
  )


def visible(tokens: Tokens, window: int | None = None) -> jax.Array:
  """bool[B or 1, 1, L, S]: which keys each token sees: itself, what came before, and no padding.

  Args:
    window: it sees at most this many positions back, its own included. Positions and not slots are counted, since a
      prompt's virtual tokens stand before the padding of short rows.
  """
  length, slots = tokens.positions.shape[1], tokens.key_positions.shape[1]
  queries = jnp.arange(length)[:, None] + (0 if tokens.slot is None else tokens.slot)
  keys = jnp.arange(slots)[None, :]
  seen = keys <= queries
  seen = seen[None, None]
  if window is not None:
    near = tokens.key_positions[:, None, :] > tokens.positions[:, :, None] - window
    seen = seen & near[:, None]
  if tokens.mask is not None:
    seen = seen & tokens.mask[:, None, None, :]
  if tokens.segments is not None:
    seen = seen & (tokens.segments[:, None, :, None] == tokens.segments[:, None, None, :])
  return seen


def frame_of(tokens: Tokens, *windows: int | None) -> dict[str, jax.Array]:
  """What every layer of a call gets: "mask" bool[B or 1, 1, L, S], and the cache's "slot" if there is one.

  With several windows the mask has a leading axis, one mask for each.
  """
  masks = [visible(tokens, window) for window in windows or (None,)]
  frame = {"mask": jnp.stack(jnp.broadcast_arrays(*masks)) if windows else masks[0]}
  return frame if tokens.slot is None else {**frame, "slot": tokens.slot}


def remember(
  module: nn.Module, k_BxLxKxD: jax.Array, v_BxLxKxD: jax.Array, frame: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """The keys and values to attend to: the call's own, written into the cache if `module` has one; kept if it may."""
  if module.has_variable(CACHE, "key"):
    at = (0, frame["slot"], 0, 0)
    k_BxLxKxD = jax.lax.dynamic_update_slice(module.get_variable(CACHE, "key"), k_BxLxKxD, at)
    v_BxLxKxD = jax.lax.dynamic_update_slice(module.get_variable(CACHE, "value"), v_BxLxKxD, at)
  if module.is_mutable_collection(CACHE):
    module.put_variable(CACHE, "key", k_BxLxKxD)
    module.put_variable(CACHE, "value", v_BxLxKxD)
  return k_BxLxKxD, v_BxLxKxD


def remember_encoded(
  module: nn.Module, compute: Callable[[jax.Array], tuple[jax.Array, jax.Array]], encoded: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """The keys and values of the encoder's states: computed once, then from the cache."""
  if encoded is None:
    return module.get_variable(CACHE, "cross_key"), module.get_variable(CACHE, "cross_value")
  k_BxSxKxD, v_BxSxKxD = compute(encoded)
  if module.is_mutable_collection(CACHE):
    module.put_variable(CACHE, "cross_key", k_BxSxKxD)
    module.put_variable(CACHE, "cross_value", v_BxSxKxD)
  return k_BxSxKxD, v_BxSxKxD


def check_positions(tokens: Tokens, limit: int) -> None:
  """Raises a `UserError` if a call reaches past the learned positions."""
  slots = tokens.key_positions.shape[1]
  if slots > limit:
    raise UserError(f"{slots} tokens, with what is to be generated, do not fit the model's {limit} positions")


def grow(cache: Cache, count: int) -> Cache:
  """The cache with `count` free slots more."""

  def pad(name: str, leaf: jax.Array) -> jax.Array:
    if name not in _SLOT_AXIS:
      return leaf
    widths = [(0, 0)] * leaf.ndim
    widths[_SLOT_AXIS[name]] = (0, count)
    return jnp.pad(leaf, widths)

  return _map_named(pad, cache)


def take_rows(cache: Cache, rows: jax.Array) -> Cache:
  """The cache of the batch's `rows`, in their order; rows may repeat."""
  return _map_named(
    lambda name, leaf: jnp.take(leaf, rows, axis=_BATCH_AXIS[name]) if name in _BATCH_AXIS else leaf, cache
  )


def _map_named(function: Callable[[str, jax.Array], jax.Array], cache: Cache) -> Cache:
  flat = traverse_util.flatten_dict(cache)
  return traverse_util.unflatten_dict({path: function(path[-1], leaf) for path, leaf in flat.items()})
