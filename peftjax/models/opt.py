"""OPT (Zhang et al. 2022, arXiv 2205.01068)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax import linen as nn

from peftjax.kinds import FLAG, NAME
from peftjax.models.config_fields import (
  ANY_ID,
  COMMON,
  FEATURES,
  HEADS,
  IDS,
  LAYERS,
  POSITIONS,
  RATE,
  SPREAD,
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
_FIRST_POSITION = 2  # the table's first two rows are never used


@dataclasses.dataclass(frozen=True)
class OPTConfig:
  """The fields of config.json that shape the model; names and defaults are Hugging Face's."""

  vocab_size: int = 50272
  hidden_size: int = 768
  num_hidden_layers: int = 12
  ffn_dim: int = 3072
  max_position_embeddings: int = 2048
  do_layer_norm_before: bool = True
  word_embed_proj_dim: int = 0
  dropout: float = 0.1
  attention_dropout: float = 0.0
  num_attention_heads: int = 12
  activation_function: str = "relu"
  enable_bias: bool = True
  layer_norm_elementwise_affine: bool = True
  tie_word_embeddings: bool = True
  final_norm: bool = True
  pad_token_id: int | None = 1
  num_labels: int = 2

  @property
  def position_rows(self) -> int:
    """The positions that may be given."""
    return self.position_limit

  @property
  def position_limit(self) -> int:
    """How many positions there are; they are learned."""
    return self.max_position_embeddings


def _norm(config: OPTConfig, runtime: Runtime) -> nn.LayerNorm:
  affine = config.layer_norm_elementwise_affine
  return runtime.layer_norm(1e-5, use_scale=affine, use_bias=affine)


class OPTAttention(nn.Module, HasSites):
  """Self-attention."""

  config: OPTConfig
  runtime: Runtime
  sites: ClassVar = {"attend": "attention"}

  def setup(self) -> None:
    size, bias = self.config.hidden_size, self.config.enable_bias
    self.q_proj, self.k_proj, self.v_proj, self.out_proj = (self.runtime.dense(size, bias) for _ in range(4))

  def __call__(self, x: jax.Array, frame: Frame) -> jax.Array:
    split = (*x.shape[:2], self.config.num_attention_heads, -1)
    q, k, v = (layer(x).reshape(split) for layer in (self.q_proj, self.k_proj, self.v_proj))
    k, v = remember(self, k, v, frame)
    return self.out_proj(self.attend(q, k, v, frame["mask"]).reshape(x.shape))

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, L, H, D] from queries [B, L, H, D], keys and values [B, S, H, D], mask [B, 1, L, S]."""
    return attend(self, q, k, v, mask, self.config.attention_dropout, causal=True)


class OPTDecoderLayer(nn.Module, HasSites):
  """x ← x + attention(LN(x)); x ← x + mlp(LN(x)); in the 350M model x ← LN(x + ...)."""

  config: OPTConfig
  runtime: Runtime
  sites: ClassVar = {"attention_branch": "sublayer", "mlp_branch": "sublayer", "__call__": "block"}

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.self_attn = OPTAttention(config, runtime)
    self.self_attn_layer_norm, self.final_layer_norm = _norm(config, runtime), _norm(config, runtime)
    self.fc1 = runtime.dense(config.ffn_dim, config.enable_bias)
    self.fc2 = runtime.dense(config.hidden_size, config.enable_bias)
    self.drop = Dropout(runtime.rate(config.dropout))

  def attention_branch(self, x: jax.Array, frame: Frame) -> jax.Array:
    """The attention sublayer without its residual sum."""
    x = self.self_attn_layer_norm(x) if self.config.do_layer_norm_before else x
    return self.drop(self.self_attn(x, frame))

  def mlp_branch(self, x: jax.Array) -> jax.Array:
    """The feed-forward sublayer without its residual sum."""
    x = self.final_layer_norm(x) if self.config.do_layer_norm_before else x
    return self.drop(self.fc2(activation(self.config.activation_function)(self.fc1(x))))

  def __call__(self, x: jax.Array, frame: Frame) -> tuple[jax.Array, jax.Array | None]:
    x = x + self.attention_branch(x, frame)
    x = x if self.config.do_layer_norm_before else self.self_attn_layer_norm(x)
    x = x + self.mlp_branch(x)
    x = x if self.config.do_layer_norm_before else self.final_layer_norm(x)
    return x, x if self.runtime.output_hidden_states else None


class OPTDecoder(nn.Module):
  """Embeddings, layers and final normalisation."""

  config: OPTConfig
  runtime: Runtime

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.embed_tokens = runtime.embed(config.vocab_size, config.word_embed_proj_dim)
    self.embed_positions = runtime.embed(config.max_position_embeddings + _FIRST_POSITION, config.hidden_size)
    self.projects = config.word_embed_proj_dim != config.hidden_size
    if self.projects:
      self.project_in = runtime.dense(config.hidden_size, use_bias=False)
      self.project_out = runtime.dense(config.word_embed_proj_dim, use_bias=False)
    self.layers = stack_of(OPTDecoderLayer, (config, runtime), config.num_hidden_layers, runtime)
    if config.final_norm:
      self.final_layer_norm = _norm(config, runtime)

  def __call__(self, embeds: jax.Array, positions: jax.Array, frame: Frame) -> Outputs:
    x = self.project_in(embeds) if self.projects else embeds
    x = x + self.embed_positions(positions + _FIRST_POSITION)
    hidden, layers = self.layers(x, frame)
    hidden = self.final_layer_norm(hidden) if self.config.final_norm else hidden
    outputs = outputs_of(x, layers, hidden)
    return {**outputs, "last_hidden_state": self.project_out(hidden)} if self.projects else outputs


class OPTModel(BareDecoder):
  """The decoder without an output layer."""

  config: OPTConfig
  runtime: Runtime
  skips_padding: ClassVar[bool] = True

  def setup(self) -> None:
    self.decoder = OPTDecoder(self.config, self.runtime)

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the word embeddings stand in the tree."""
    return ("decoder", "embed_tokens")

  def embed(self, input_ids: jax.Array) -> jax.Array:
    """Word embeddings alone, [B, L, hidden]."""
    return self.decoder.embed_tokens(input_ids)

  def attend_embedding(self, hidden: jax.Array) -> jax.Array:
    """Products with the word embeddings: a tied output layer."""
    return self.decoder.embed_tokens.attend(hidden)

  def run_layers(self, embeds: jax.Array, tokens: Tokens) -> Outputs:
    return self.decoder(embeds, tokens.positions, frame_of(tokens))


class OPTForCausalLM(CausalLM):
  """The decoder with its output layer."""

  bare: ClassVar[Any] = OPTModel


class OPTForSequenceClassification(DecoderForSequenceClassification):
  """The decoder with a classifier on the last token."""

  bare: ClassVar[Any] = OPTModel


TABLE = COMMON | Table(
  read={
    "vocab_size": Field(VOCABULARY, 50272),
    "hidden_size": Field(FEATURES, 768),
    "num_hidden_layers": Field(LAYERS, 12),
    "ffn_dim": Field(FEATURES, 3072),
    "max_position_embeddings": Field(POSITIONS, 2048),
    "do_layer_norm_before": Field(FLAG, True),
    "_remove_final_layer_norm": Field(FLAG, False),
    "word_embed_proj_dim": Field(FEATURES.or_null),
    "dropout": Field(RATE, 0.1),
    "attention_dropout": Field(RATE, 0.0),
    "num_attention_heads": Field(HEADS, 12),
    "activation_function": Field(NAME, "relu"),
    "enable_bias": Field(FLAG, True),
    "layer_norm_elementwise_affine": Field(FLAG, True),
    "tie_word_embeddings": Field(FLAG, True),
    "init_std": Field(SPREAD, 0.02),
    "bos_token_id": Field(IDS.or_null, 2),
    "eos_token_id": Field(IDS.or_null, 2),
    "pad_token_id": Field(ANY_ID.or_null, 1),
  },
  refused={"layerdrop": Only((0.0,), "layers that training leaves out")},
)


def _parse(hf_config: Mapping[str, Any]) -> OPTConfig:
  given = TABLE.values(hf_config)
  given["word_embed_proj_dim"] = given["word_embed_proj_dim"] or given["hidden_size"]
  given["final_norm"] = given["do_layer_norm_before"] and not given["_remove_final_layer_norm"]
  config = OPTConfig(**fields_for(given, OPTConfig))
  check_heads(config.hidden_size, config.num_attention_heads)
  activation(config.activation_function)
  return config


OPT = Family(
  model_types=("opt",),
  table=TABLE,
  parse=_parse,
  architectures=architectures("OPT", OPTModel, OPTForCausalLM, OPTForSequenceClassification, "model"),
  stacks=lambda config: {"decoder.layers": config.num_hidden_layers},
  inputs=lambda config: token_inputs(),
  unused=(r"lm_head\.weight", r"score\.weight"),
)
