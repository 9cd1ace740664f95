"""BLOOM (BigScience 2022, arXiv 2211.05100): positions as a slope on attention (ALiBi, Press et al. 2021, 2108.12409).

softmax(q kᵀ / √D + mₕ · position of the key),   mₕ = 2^(-8h/H)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from peftjax.errors import UserError
from peftjax.kinds import FLAG, whole
from peftjax.models.config_fields import (
  COMMON,
  EPSILON,
  FEATURES,
  HEADS,
  IDS,
  LAYERS,
  RATE,
  VOCABULARY,
  Field,
  Table,
  fields_for,
)
from peftjax.models.decoder import (
  BareDecoder,
  CausalLM,
  DecoderForSequenceClassification,
  Outputs,
  architectures,
  outputs_of,
)
from peftjax.models.family import Family, check_heads, token_inputs
from peftjax.models.kv_cache import Tokens, frame_of, remember
from peftjax.models.layers import Dropout, Runtime, activation, attend, stack_of
from peftjax.sites import HasSites

Frame = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class BloomConfig:
  """The fields of config.json that shape the model; names and defaults are Hugging Face's."""

  vocab_size: int = 250880
  hidden_size: int = 64
  n_layer: int = 2
  n_head: int = 8
  layer_norm_epsilon: float = 1e-5
  apply_residual_connection_post_layernorm: bool = False
  hidden_dropout: float = 0.0
  attention_dropout: float = 0.0
  tie_word_embeddings: bool = True
  pad_token_id: int | None = None
  num_labels: int = 2


def slopes(heads: int) -> np.ndarray:
  """float32[heads]: a geometric sequence; past the last power of two, every second term of the next one's follows."""
  lower = 2 ** math.floor(math.log2(heads))

  def powers(count: int, exponents: range) -> list[float]:
    return [2.0 ** (-8.0 / count * exponent) for exponent in exponents]

  found = powers(lower, range(1, lower + 1)) + powers(2 * lower, range(1, 2 * (heads - lower) + 1, 2))
  return np.asarray(found, np.float32)


class BloomAttention(nn.Module, HasSites):
  """Self-attention with queries, keys and values of every head from one projection."""

  config: BloomConfig
  runtime: Runtime
  sites: ClassVar = {"attend": "attention"}

  def setup(self) -> None:
    self.query_key_value = self.runtime.dense(3 * self.config.hidden_size)
    self.dense = self.runtime.dense(self.config.hidden_size)

  def __call__(self, x: jax.Array, frame: Frame) -> jax.Array:
    fused = self.query_key_value(x).reshape(*x.shape[:2], self.config.n_head, 3, -1)
    q, k, v = fused[..., 0, :], fused[..., 1, :], fused[..., 2, :]
    k, v = remember(self, k, v, frame)
    return self.dense(self.attend(q, k, v, frame["mask"], frame["bias"]).reshape(x.shape))

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, bias: jax.Array) -> jax.Array:
    """[B, L, H, D] from queries [B, L, H, D], keys, values [B, S, H, D], mask [B, 1, L, S], bias [B, H, 1, S]."""
    return attend(self, q, k, v, mask, self.config.attention_dropout, bias=bias)

  def prefix_bias(self, count: int) -> jax.Array:
    """[1, H, 1, count]: the bias of keys at the positions from 0 on, before the sequence."""
    return jnp.asarray(slopes(self.config.n_head))[None, :, None, None] * jnp.arange(count)


class BloomMLP(nn.Module):
  """The feed-forward network."""

  config: BloomConfig
  runtime: Runtime

  def setup(self) -> None:
    self.dense_h_to_4h = self.runtime.dense(4 * self.config.hidden_size)
    self.dense_4h_to_h = self.runtime.dense(self.config.hidden_size)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.dense_4h_to_h(activation("gelu_new")(self.dense_h_to_4h(x)))


class BloomBlock(nn.Module, HasSites):
  """x ← x + attention(LN(x)); x ← x + mlp(LN(x)), with the normalised x as the residual if the config says so."""

  config: BloomConfig
  runtime: Runtime
  sites: ClassVar = {"attention_branch": "sublayer", "mlp_branch": "sublayer", "__call__": "block"}

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.input_layernorm = runtime.layer_norm(config.layer_norm_epsilon)
    self.post_attention_layernorm = runtime.layer_norm(config.layer_norm_epsilon)
    self.self_attention = BloomAttention(config, runtime)
    self.mlp = BloomMLP(config, runtime)
    self.drop = Dropout(runtime.rate(config.hidden_dropout))

  def attention_branch(self, x: jax.Array, frame: Frame) -> jax.Array:
    """The attention sublayer without its residual sum, from normalised states."""
    return self.drop(self.self_attention(x, frame))

  def mlp_branch(self, x: jax.Array) -> jax.Array:
    """The feed-forward sublayer without its residual sum, from normalised states."""
    return self.drop(self.mlp(x))

  def __call__(self, x: jax.Array, frame: Frame) -> tuple[jax.Array, jax.Array | None]:
    keeps_normed = self.config.apply_residual_connection_post_layernorm
    normed = self.input_layernorm(x)
    x = (normed if keeps_normed else x) + self.attention_branch(normed, frame)
    normed = self.post_attention_layernorm(x)
    x = (normed if keeps_normed else x) + self.mlp_branch(normed)
    return x, x if self.runtime.output_hidden_states else None


class BloomModel(BareDecoder):
  """The decoder without an output layer."""

  config: BloomConfig
  runtime: Runtime
  embedding: ClassVar[str] = "word_embeddings"
  skips_padding: ClassVar[bool] = True

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.word_embeddings = runtime.embed(config.vocab_size, config.hidden_size)
    self.word_embeddings_layernorm = runtime.layer_norm(config.layer_norm_epsilon)
    self.h = stack_of(BloomBlock, (config, runtime), config.n_layer, runtime)
    self.ln_f = runtime.layer_norm(config.layer_norm_epsilon)

  def run_layers(self, embeds: jax.Array, tokens: Tokens) -> Outputs:
    bias = jnp.asarray(slopes(self.config.n_head))[:, None, None] * tokens.key_positions[:, None, None, :]
    embedded = self.word_embeddings_layernorm(embeds)
    hidden, layers = self.h(embedded, {**frame_of(tokens), "bias": bias})
    return outputs_of(embedded, layers, self.ln_f(hidden))


class BloomForCausalLM(CausalLM):
  """The decoder with its output layer."""

  bare: ClassVar[Any] = BloomModel
  prefix: ClassVar[str] = "transformer"


class BloomForSequenceClassification(DecoderForSequenceClassification):
  """The decoder with a classifier on the last token."""

  bare: ClassVar[Any] = BloomModel
  prefix: ClassVar[str] = "transformer"


TABLE = COMMON | Table(
  read={
    "vocab_size": Field(VOCABULARY, 250880),
    "hidden_size": Field(FEATURES, 64),
    "n_layer": Field(LAYERS, 2),
    "n_head": Field(HEADS, 8),
    "layer_norm_epsilon": Field(EPSILON, 1e-5),
    "apply_residual_connection_post_layernorm": Field(FLAG, False),
    "hidden_dropout": Field(RATE, 0.0),
    "attention_dropout": Field(RATE, 0.0),
    "tie_word_embeddings": Field(FLAG, True),
    "bos_token_id": Field(IDS.or_null, 1),
    "eos_token_id": Field(IDS.or_null, 2),
    "pretraining_tp": Field(whole(1, 2**16), 1),
    "slow_but_exact": Field(FLAG, False),
  },
  spellings={"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "n_embed": "hidden_size"},
)


def _parse(hf_config: Mapping[str, Any]) -> BloomConfig:
  values = TABLE.values(hf_config)
  if values["slow_but_exact"] and values["pretraining_tp"] > 1:
    raise UserError(
      "config.json: slow_but_exact=true with pretraining_tp above 1 leaves out two biases of a layer in transformers; "
      "expected false, the sum in one piece"
    )
  config = BloomConfig(**fields_for(values, BloomConfig))
  check_heads(config.hidden_size, config.n_head)
  return config


BLOOM = Family(
  model_types=("bloom",),
  table=TABLE,
  parse=_parse,
  architectures=architectures("Bloom", BloomModel, BloomForCausalLM, BloomForSequenceClassification, "transformer"),
  stacks=lambda config: {"h": config.n_layer},
  inputs=lambda config: token_inputs(),
  unused=(r"lm_head\.weight", r"score\.weight"),
)
