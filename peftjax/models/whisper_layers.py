"""The layers of Whisper: attention, blocks, the encoder of log-mel frames and the decoder of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.buffers import CONSTANTS
from peftjax.models.kv_cache import Tokens, frame_of, remember, remember_encoded
from peftjax.models.layers import Dropout, Runtime, activation, attend, stack_of
from peftjax.models.sinusoids import sinusoids
from peftjax.sites import HasSites

Frame = Mapping[str, jax.Array]
"""What a decoder's layers share: "mask" [B or 1, 1, L, S] and "encoded" [B, S', d_model]; of an encoder nothing."""


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
  """The fields of config.json that shape the model; names and defaults are Hugging Face's."""

  vocab_size: int = 51865
  num_mel_bins: int = 80
  encoder_layers: int = 4
  encoder_attention_heads: int = 6
  decoder_layers: int = 4
  decoder_attention_heads: int = 6
  encoder_ffn_dim: int = 1536
  decoder_ffn_dim: int = 1536
  activation_function: str = "gelu"
  d_model: int = 384
  dropout: float = 0.0
  attention_dropout: float = 0.0
  activation_dropout: float = 0.0
  max_source_positions: int = 1500
  max_target_positions: int = 448
  pad_token_id: int | None = 50256
  decoder_start_token_id: int = 50257
  tie_word_embeddings: bool = True
  use_weighted_layer_sum: bool = False
  classifier_proj_size: int = 256
  num_labels: int = 2


class WhisperAttention(nn.Module, HasSites):
  """Attention to the sequence itself, or of a decoder to the encoder's states; keys have no bias."""

  config: WhisperConfig
  runtime: Runtime
  heads: int
  is_cross: bool = False
  sites: ClassVar = {"attend": "attention"}

  def setup(self) -> None:
    dense, size = self.runtime.dense, self.config.d_model
    self.k_proj = dense(size, use_bias=False)
    self.v_proj, self.q_proj, self.out_proj = dense(size), dense(size), dense(size)

  def __call__(self, x: jax.Array, frame: Frame) -> jax.Array:
    q = self._heads(self.q_proj(x))
    if self.is_cross:
      k, v = remember_encoded(self, self._keys_and_values, frame.get("encoded"))
      y = self.attend(q, k, v, None)
    elif frame:
      k, v = remember(self, *self._keys_and_values(x), frame)
      y = self.attend(q, k, v, frame["mask"])
    else:
      y = self.attend(q, *self._keys_and_values(x), None)
    return self.out_proj(y.reshape(x.shape))

  def _heads(self, x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:2], self.heads, -1)

  def _keys_and_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return self._heads(self.k_proj(x)), self._heads(self.v_proj(x))

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """[B, L, H, D] from queries [B, L, H, D], keys and values [B, S, H, D] and a decoder's mask [B or 1, 1, L, S]."""
    return attend(self, q, k, v, mask, self.config.attention_dropout, causal=mask is not None)


class WhisperLayer(nn.Module, HasSites):
  """x ← x + attention(LN(x)), in a decoder x ← x + cross_attention(LN(x)), x ← x + mlp(LN(x))."""

  config: WhisperConfig
  runtime: Runtime
  is_decoder: bool
  sites: ClassVar = {
    "attention_branch": "sublayer",
    "cross_attention_branch": "sublayer",
    "mlp_branch": "sublayer",
    "__call__": "block",
  }

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    heads = config.decoder_attention_heads if self.is_decoder else config.encoder_attention_heads
    self.self_attn = WhisperAttention(config, runtime, heads)
    self.self_attn_layer_norm = runtime.layer_norm(1e-5)
    if self.is_decoder:
      self.encoder_attn = WhisperAttention(config, runtime, heads, is_cross=True)
      self.encoder_attn_layer_norm = runtime.layer_norm(1e-5)
    self.fc1 = runtime.dense(config.decoder_ffn_dim if self.is_decoder else config.encoder_ffn_dim)
    self.fc2 = runtime.dense(config.d_model)
    self.final_layer_norm = runtime.layer_norm(1e-5)
    self.drop = Dropout(runtime.rate(config.dropout))
    self.drop_inside = Dropout(runtime.rate(config.activation_dropout))

  def attention_branch(self, x: jax.Array, frame: Frame) -> jax.Array:
    """Self-attention on normalised states, without its residual sum."""
    return self.drop(self.self_attn(x, frame))

  def cross_attention_branch(self, x: jax.Array, frame: Frame) -> jax.Array:
    """Attention to the encoder on normalised states, without its residual sum."""
    return self.drop(self.encoder_attn(x, frame))

  def mlp_branch(self, x: jax.Array) -> jax.Array:
    """The feed-forward sublayer on normalised states, without its residual sum."""
    hidden = activation(self.config.activation_function)(self.fc1(x))
    return self.drop(self.fc2(self.drop_inside(hidden)))

  def __call__(self, x: jax.Array, frame: Frame) -> tuple[jax.Array, jax.Array | None]:
    x = x + self.attention_branch(self.self_attn_layer_norm(x), frame)
    if self.is_decoder:
      x = x + self.cross_attention_branch(self.encoder_attn_layer_norm(x), frame)
    x = x + self.mlp_branch(self.final_layer_norm(x))
    return x, x if self.runtime.output_hidden_states else None


class FixedPositions(nn.Module):
  """A table of positions that is stored and never trains."""

  length: int
  size: int
  runtime: Runtime

  @nn.compact
  def __call__(self, count: int) -> jax.Array:
    shape, dtype = (self.length, self.size), self.runtime.dtype
    table = self.variable(CONSTANTS, "sinusoids", lambda: jnp.asarray(sinusoids(*shape), dtype))
    first: jax.Array = table.value[:count]
    return first


class WhisperEncoder(nn.Module):
  """Two convolutions over the frames, of which the second takes every other one, and the layers."""

  config: WhisperConfig
  runtime: Runtime

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    dtypes = {"dtype": runtime.compute_dtype, "param_dtype": runtime.dtype}
    self.conv1 = nn.Conv(config.d_model, (3,), padding=1, **dtypes)
    self.conv2 = nn.Conv(config.d_model, (3,), strides=2, padding=1, **dtypes)
    self.embed_positions = FixedPositions(config.max_source_positions, config.d_model, runtime)
    self.layers = stack_of(WhisperLayer, (config, runtime, False), config.encoder_layers, runtime)
    self.layer_norm = runtime.layer_norm(1e-5)
    self.drop = Dropout(runtime.rate(config.dropout))

  def embed(self, input_features: jax.Array) -> jax.Array:
    """[B, frames / 2, d_model], with their positions, from [B, bins, frames]."""
    x = nn.gelu(self.conv1(input_features.transpose(0, 2, 1)), approximate=False)
    x = nn.gelu(self.conv2(x), approximate=False)
    return self.drop(x + self.embed_positions(x.shape[1]).astype(x.dtype))

  def __call__(self, embeds: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """(states [B, frames / 2, d_model], states of all layers or None)."""
    hidden, layers = self.layers(embeds, {})
    return _ended(embeds, layers, self.layer_norm(hidden))


class WhisperDecoder(nn.Module):
  """Learned positions and the layers."""

  config: WhisperConfig
  runtime: Runtime

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.embed_tokens = runtime.embed(config.vocab_size, config.d_model)
    self.embed_positions = runtime.embed(config.max_target_positions, config.d_model)
    self.layers = stack_of(WhisperLayer, (config, runtime, True), config.decoder_layers, runtime)
    self.layer_norm = runtime.layer_norm(1e-5)
    self.drop = Dropout(runtime.rate(config.dropout))

  def __call__(
    self, embeds: jax.Array, tokens: Tokens, encoded: jax.Array | None
  ) -> tuple[jax.Array, jax.Array | None]:
    """(states [B, L, d_model], states of all layers or None); without `encoded` from what the cache kept of it."""
    x = self.drop(embeds + self.embed_positions(tokens.positions))
    frame = frame_of(tokens)
    hidden, layers = self.layers(x, frame if encoded is None else {**frame, "encoded": encoded})
    return _ended(x, layers, self.layer_norm(hidden))


def _ended(first: jax.Array, layers: jax.Array | None, last: jax.Array) -> tuple[jax.Array, jax.Array | None]:
  """(the final states, what entered the first layer, each layer's states and at last the final ones)."""
  return last, None if layers is None else jnp.concatenate([first[None], layers[:-1], last[None]])
