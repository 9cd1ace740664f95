"""GPT-2 (Radford et al. 2019), whose larger shapes are GPT-3's (Brown et al. 2020, arXiv 2005.14165)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.kinds import FLAG, NAME
from peftjax.models.config_fields import (
  COMMON,
  EPSILON,
  FEATURES,
  HEADS,
  IDS,
  LAYERS,
  POSITIONS,
  RATE,
  VOCABULARY,
  Field,
  Only,
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
class GPT2Config:
  """The fields of config.json that shape the model; names and defaults are Hugging Face's."""

  vocab_size: int = 50257
  n_positions: int = 1024
  n_embd: int = 768
  n_layer: int = 12
  n_head: int = 12
  n_inner: int | None = None
  activation_function: str = "gelu_new"
  resid_pdrop: float = 0.1
  embd_pdrop: float = 0.1
  attn_pdrop: float = 0.1
  layer_norm_epsilon: float = 1e-5
  scale_attn_weights: bool = True
  scale_attn_by_inverse_layer_idx: bool = False
  tie_word_embeddings: bool = True
  pad_token_id: int | None = None
  num_labels: int = 2

  @property
  def position_rows(self) -> int:
    """The positions that may be given."""
    return self.position_limit

  @property
  def position_limit(self) -> int:
    """How many positions there are; they are learned."""
    return self.n_positions


class GPT2Attention(nn.Module, HasSites):
  """Self-attention with queries, keys and values from one projection."""

  config: GPT2Config
  runtime: Runtime
  sites: ClassVar = {"attend": "attention"}

  def setup(self) -> None:
    self.c_attn = self.runtime.dense(3 * self.config.n_embd)
    self.c_proj = self.runtime.dense(self.config.n_embd)

  def __call__(self, x: jax.Array, layer: jax.Array, frame: Frame) -> jax.Array:
    config = self.config
    q, k, v = (part.reshape(*x.shape[:2], config.n_head, -1) for part in jnp.split(self.c_attn(x), 3, axis=-1))
    if config.scale_attn_by_inverse_layer_idx:
      q = q / (layer + 1).astype(q.dtype)
    k, v = remember(self, k, v, frame)
    return self.c_proj(self.attend(q, k, v, frame["mask"]).reshape(x.shape))

  def keys_and_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Those of hidden states [B, L, hidden], each [B, L, hidden]."""
    _, k, v = jnp.split(self.c_attn(x), 3, axis=-1)
    return k, v

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, L, H, D] from queries [B, L, H, D], keys and values [B, S, H, D], mask [B, 1, L, S]."""
    scale = None if self.config.scale_attn_weights else 1.0
    return attend(self, q, k, v, mask, self.config.attn_pdrop, scale=scale, causal=True)


class GPT2MLP(nn.Module):
  """The feed-forward network."""

  config: GPT2Config
  runtime: Runtime

  def setup(self) -> None:
    self.c_fc = self.runtime.dense(self.config.n_inner or 4 * self.config.n_embd)
    self.c_proj = self.runtime.dense(self.config.n_embd)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.c_proj(activation(self.config.activation_function)(self.c_fc(x)))


class GPT2Block(nn.Module, HasSites):
  """x ← x + attention(LN(x)); x ← x + mlp(LN(x))."""

  config: GPT2Config
  runtime: Runtime
  sites: ClassVar = {"attention_branch": "sublayer", "mlp_branch": "sublayer", "__call__": "block"}

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.ln_1, self.ln_2 = (runtime.layer_norm(config.layer_norm_epsilon) for _ in range(2))
    self.attn = GPT2Attention(config, runtime)
    self.mlp = GPT2MLP(config, runtime)
    self.dropout = Dropout(runtime.rate(config.resid_pdrop))

  def attention_branch(self, x: jax.Array, layer: jax.Array, frame: Frame) -> jax.Array:
    """The attention sublayer without its residual sum."""
    return self.dropout(self.attn(self.ln_1(x), layer, frame))

  def mlp_branch(self, x: jax.Array) -> jax.Array:
    """The feed-forward sublayer without its residual sum."""
    return self.dropout(self.mlp(self.ln_2(x)))

  def __call__(self, x: jax.Array, layer: jax.Array, frame: Frame) -> tuple[jax.Array, jax.Array | None]:
    x = x + self.attention_branch(x, layer, frame)
    x = x + self.mlp_branch(x)
    return x, x if self.runtime.output_hidden_states else None


class GPT2Model(BareDecoder):
  """The decoder without an output layer."""

  config: GPT2Config
  runtime: Runtime
  embedding: ClassVar[str] = "wte"

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.wte = runtime.embed(config.vocab_size, config.n_embd)
    self.wpe = runtime.embed(config.n_positions, config.n_embd)
    self.drop = Dropout(runtime.rate(config.embd_pdrop))
    self.h = stack_of(GPT2Block, (config, runtime), config.n_layer, runtime, per_layer=True)
    self.ln_f = runtime.layer_norm(config.layer_norm_epsilon)

  def run_layers(self, embeds: jax.Array, tokens: Tokens) -> Outputs:
    embedded = self.drop(embeds + self.wpe(tokens.positions))
    hidden, layers = self.h(embedded, jnp.arange(self.config.n_layer), frame_of(tokens))
    return outputs_of(embedded, layers, self.ln_f(hidden))


class GPT2LMHeadModel(CausalLM):
  """The decoder with its output layer."""

  bare: ClassVar[Any] = GPT2Model
  prefix: ClassVar[str] = "transformer"


class GPT2ForSequenceClassification(DecoderForSequenceClassification):
  """The decoder with a classifier on the last token."""

  bare: ClassVar[Any] = GPT2Model
  prefix: ClassVar[str] = "transformer"


TABLE = COMMON | Table(
  read={
    "vocab_size": Field(VOCABULARY, 50257),
    "n_positions": Field(POSITIONS, 1024),
    "n_embd": Field(FEATURES, 768),
    "n_layer": Field(LAYERS, 12),
    "n_head": Field(HEADS, 12),
    "n_inner": Field(FEATURES.or_null),
    "activation_function": Field(NAME, "gelu_new"),
    "resid_pdrop": Field(RATE, 0.1),
    "embd_pdrop": Field(RATE, 0.1),
    "attn_pdrop": Field(RATE, 0.1),
    "layer_norm_epsilon": Field(EPSILON, 1e-5),
    "scale_attn_weights": Field(FLAG, True),
    "scale_attn_by_inverse_layer_idx": Field(FLAG, False),
    "tie_word_embeddings": Field(FLAG, True),
    "bos_token_id": Field(IDS.or_null, 50256),
    "eos_token_id": Field(IDS.or_null, 50256),
  },
  refused={"add_cross_attention": Only((False,), "attention to an encoder")},
  ignored=frozenset(
    {
      "reorder_and_upcast_attn",  # attention is computed in float32 anyway
      "summary_type",  # of a head for multiple choice
      "summary_use_proj",
      "summary_activation",
      "summary_proj_to_labels",
      "summary_first_dropout",
    }
  ),
  spellings={
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
  },
)


def _parse(hf_config: Mapping[str, Any]) -> GPT2Config:
  config = GPT2Config(**fields_for(TABLE.values(hf_config), GPT2Config))
  check_heads(config.n_embd, config.n_head)
  activation(config.activation_function)
  return config


GPT2 = Family(
  model_types=("gpt2",),
  table=TABLE,
  parse=_parse,
  architectures=architectures(
    "GPT2", GPT2Model, GPT2LMHeadModel, GPT2ForSequenceClassification, "transformer", lm_name="GPT2LMHeadModel"
  ),
  stacks=lambda config: {"h": config.n_layer},
  inputs=lambda config: token_inputs(),
  unused=(r"lm_head\.weight", r"score\.weight", r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias"),
  untransposed=(r".*\.(c_attn|c_proj|c_fc)",),  # a Conv1D holds [in, out]
)
