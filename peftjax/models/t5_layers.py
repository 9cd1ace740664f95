"""The layers of T5: attention with relative positions, and the stack that encoder and decoder are made of.

softmax(q kᵀ + b[bucket(position of key - position of query)])        unscaled; b is shared by a stack's layers
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from peftjax.models.kv_cache import remember, remember_encoded
from peftjax.models.layers import Dropout, Runtime, activation, attend, stack_of
from peftjax.sites import HasSites

Frame = Mapping[str, jax.Array]
"""What a stack's layers share: "mask", "bias" [1, H, L, S], in a decoder "encoded" [B, S', hidden] and "cross_mask"."""


@dataclasses.dataclass(frozen=True)
class T5Config:
  """The fields of config.json that shape the model; names and defaults are Hugging Face's.

  Attributes:
    scale_decoder_outputs: decoder states are divided by √d_model before the output layer (the original T5).
  """

  vocab_size: int = 32128
  d_model: int = 512
  d_kv: int = 64
  d_ff: int = 2048
  num_layers: int = 6
  num_decoder_layers: int = 0
  num_heads: int = 8
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128
  dropout_rate: float = 0.1
  classifier_dropout: float = 0.0
  layer_norm_epsilon: float = 1e-6
  feed_forward_proj: str = "relu"
  tie_word_embeddings: bool = True
  scale_decoder_outputs: bool = True
  pad_token_id: int = 0
  eos_token_id: int | None = 1
  decoder_start_token_id: int = 0
  num_labels: int = 2

  @property
  def is_gated(self) -> bool:
    """Whether the feed-forward network multiplies two projections."""
    return self.feed_forward_proj.startswith("gated-")

  @property
  def hidden_act(self) -> str:
    """The feed-forward network's activation."""
    name = self.feed_forward_proj.removeprefix("gated-")
    return "gelu_new" if self.feed_forward_proj == "gated-gelu" else name


def bucket_table(config: T5Config, bidirectional: bool) -> np.ndarray:
  """int32[max_distance + 1]: the bucket of each distance: exact for small ones, logarithmic up to the maximum."""
  count = config.relative_attention_num_buckets // (2 if bidirectional else 1)
  exact, limit = count // 2, config.relative_attention_max_distance
  distances = np.arange(limit + 1)
  logs = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(limit / exact))
  large = np.minimum(exact + (logs * np.float32(count - exact)).astype(np.int32), count - 1)
  return np.where(distances < exact, distances, large).astype(np.int32)


def buckets(config: T5Config, bidirectional: bool, queries_L: jax.Array, keys_S: jax.Array) -> jax.Array:
  """int32[L, S]: the bucket of each key's distance from each query; a decoder's later keys are at distance 0."""
  relative = keys_S[None, :] - queries_L[:, None]
  distance = jnp.abs(relative) if bidirectional else jnp.maximum(-relative, 0)
  table = jnp.asarray(bucket_table(config, bidirectional))
  found = table[jnp.minimum(distance, config.relative_attention_max_distance)]
  half = config.relative_attention_num_buckets // 2
  return found + jnp.where(relative > 0, half, 0) if bidirectional else found


_LARGEST = float(np.finfo(np.float16).max) - 1000


def is_half(runtime: Runtime) -> bool:
  """Whether activations are float16, in which T5's overflow: the residual stream and `wo` are then float32."""
  return jnp.dtype(runtime.compute_dtype or runtime.dtype) == jnp.float16


def _inner(runtime: Runtime) -> Runtime:
  """How a stack's layers run: in float16 their inputs, float32 states after a normalisation, are cast back."""
  return dataclasses.replace(runtime, compute_dtype=jnp.float16) if is_half(runtime) else runtime


def _finite(branch: jax.Array) -> jax.Array:
  """A sublayer's output; what overflowed in float16 is its largest number, as Hugging Face clamps."""
  return jnp.clip(branch, -_LARGEST, _LARGEST) if branch.dtype == jnp.float16 else branch


class T5Attention(nn.Module, HasSites):
  """Attention to the sequence itself, or of a decoder to the encoder's states."""

  config: T5Config
  runtime: Runtime
  is_cross: bool = False
  sites: ClassVar = {"attend": "attention"}

  def setup(self) -> None:
    inner = self.config.num_heads * self.config.d_kv
    self.q, self.k, self.v = (self.runtime.dense(inner, use_bias=False) for _ in range(3))
    self.o = self.runtime.dense(self.config.d_model, use_bias=False)

  def __call__(self, x: jax.Array, frame: Frame) -> jax.Array:
    q = self._heads(self.q(x))
    if self.is_cross:
      k, v = remember_encoded(self, self._keys_and_values, frame.get("encoded"))
      y = self.attend(q, k, v, frame["cross_mask"])
    else:
      k, v = remember(self, *self._keys_and_values(x), frame)
      y = self.attend(q, k, v, frame["mask"], frame["bias"])
    return self.o(y.reshape(*x.shape[:2], -1))

  def _heads(self, x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:2], self.config.num_heads, self.config.d_kv)

  def _keys_and_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return self._heads(self.k(x)), self._heads(self.v(x))

  def attend(
    self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, bias: jax.Array | None = None
  ) -> jax.Array:
    """[B, L, H, D] from queries [B, L, H, D], keys, values [B, S, H, D], mask [B, 1, L or 1, S], bias [1, H, L, S]."""
    return attend(self, q, k, v, mask, self.config.dropout_rate, scale=1.0, bias=bias)


class T5FeedForward(nn.Module):
  """wo(act(wi(x))), or wo(act(wi_0(x)) ⊙ wi_1(x))."""

  config: T5Config
  runtime: Runtime

  def setup(self) -> None:
    config, dense = self.config, self.runtime.dense
    if config.is_gated:
      self.wi_0, self.wi_1 = dense(config.d_ff, use_bias=False), dense(config.d_ff, use_bias=False)
    else:
      self.wi = dense(config.d_ff, use_bias=False)
    wide = dataclasses.replace(self.runtime, dtype=jnp.float32, compute_dtype=jnp.float32)
    self.wo = (wide if is_half(self.runtime) else self.runtime).dense(config.d_model, use_bias=False)
    self.dropout = Dropout(self.runtime.rate(config.dropout_rate))

  def __call__(self, x: jax.Array) -> jax.Array:
    act = activation(self.config.hidden_act)
    hidden = act(self.wi_0(x)) * self.wi_1(x) if self.config.is_gated else act(self.wi(x))
    return self.wo(self.dropout(hidden))


class T5Sublayer(nn.Module):
  """One network behind its normalisation, under the name that checkpoints give it."""

  config: T5Config
  runtime: Runtime
  kind: str

  def setup(self) -> None:
    self.layer_norm = self.runtime.rms_norm(self.config.layer_norm_epsilon)
    if self.kind == "DenseReluDense":
      network: nn.Module = T5FeedForward(self.config, self.runtime)
    else:
      network = T5Attention(self.config, self.runtime, is_cross=self.kind == "EncDecAttention")
    setattr(self, self.kind, network)
    self.dropout = Dropout(self.runtime.rate(self.config.dropout_rate))

  def __call__(self, x: jax.Array, *frame: Frame) -> jax.Array:
    return self.dropout(getattr(self, self.kind)(self.layer_norm(x), *frame))


class T5Sublayers(nn.Module):
  """The sublayers of one block, which checkpoints number."""

  config: T5Config
  runtime: Runtime
  kinds: tuple[str, ...]

  def setup(self) -> None:
    for index, kind in enumerate(self.kinds):
      setattr(self, str(index), T5Sublayer(self.config, self.runtime, kind))

  def __call__(self, kind: str, x: jax.Array, *frame: Frame) -> jax.Array:
    return getattr(self, str(self.kinds.index(kind)))(x, *frame)


class T5Block(nn.Module, HasSites):
  """x ← x + attention(norm(x)), in a decoder x ← x + cross_attention(norm(x)), x ← x + mlp(norm(x))."""

  config: T5Config
  runtime: Runtime
  is_decoder: bool
  sites: ClassVar = {
    "attention_branch": "sublayer",
    "cross_attention_branch": "sublayer",
    "mlp_branch": "sublayer",
    "__call__": "block",
  }

  def setup(self) -> None:
    cross = ("EncDecAttention",) if self.is_decoder else ()
    kinds = ("SelfAttention", *cross, "DenseReluDense")
    self.layer = T5Sublayers(self.config, self.runtime, kinds)

  def attention_branch(self, x: jax.Array, frame: Frame) -> jax.Array:
    """Self-attention without its residual sum."""
    return self.layer("SelfAttention", x, frame)

  def cross_attention_branch(self, x: jax.Array, frame: Frame) -> jax.Array:
    """Attention to the encoder without its residual sum."""
    return self.layer("EncDecAttention", x, frame)

  def mlp_branch(self, x: jax.Array) -> jax.Array:
    """The feed-forward sublayer without its residual sum."""
    return self.layer("DenseReluDense", x)

  def __call__(self, x: jax.Array, frame: Frame) -> tuple[jax.Array, jax.Array | None]:
    x = x + _finite(self.attention_branch(x, frame))
    if self.is_decoder:
      x = x + _finite(self.cross_attention_branch(x, frame))
    x = x + self.mlp_branch(x)
    return x, x if self.runtime.output_hidden_states else None


class T5Stack(nn.Module):
  """The blocks of the encoder or the decoder, with the bias they share."""

  config: T5Config
  runtime: Runtime
  is_decoder: bool

  def setup(self) -> None:
    config, runtime = self.config, _inner(self.runtime)
    length = config.num_decoder_layers if self.is_decoder else config.num_layers
    self.block = stack_of(T5Block, (config, runtime, self.is_decoder), length, runtime)
    # Checkpoints keep it in the first block; there it would make the blocks differ.
    self.relative_attention_bias = runtime.embed(config.relative_attention_num_buckets, config.num_heads)
    self.final_layer_norm = runtime.rms_norm(config.layer_norm_epsilon)
    self.dropout = Dropout(runtime.rate(config.dropout_rate))

  def __call__(self, embeds: jax.Array, frame: Frame) -> tuple[jax.Array, jax.Array | None]:
    """(states [B, L, d_model], states of all layers or None)."""
    length, slots = embeds.shape[1], frame["mask"].shape[-1]
    queries = jnp.arange(length) + frame.get("slot", 0)
    found = buckets(self.config, not self.is_decoder, queries, jnp.arange(slots))
    # A product instead of a lookup: its gradient is a product too, not [L, S] additions to a few rows.
    count = self.config.relative_attention_num_buckets
    values = self.relative_attention_bias(jnp.arange(count))
    chosen = jax.nn.one_hot(found, count, dtype=values.dtype)
    bias = jnp.einsum("lsn,nh->hls", chosen, values, precision=jax.lax.Precision.HIGHEST)[None]
    embedded = self.dropout(embeds.astype(jnp.float32) if is_half(self.runtime) else embeds)
    hidden, layers = self.block(embedded, {**frame, "bias": bias})
    hidden = self.dropout(self.final_layer_norm(hidden))
    if layers is None:
      return hidden, None
    return hidden, jnp.concatenate([embedded[None], layers[:-1], hidden[None]])
