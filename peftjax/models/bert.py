"""BERT (Devlin et al. 2018, arXiv 1810.04805) and RoBERTa (Liu et al. 2019, arXiv 1907.11692): the encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.errors import UserError
from peftjax.kinds import FLAG, NAME
from peftjax.models.concrete import check_length
from peftjax.models.config_fields import (
  ANY_ID,
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
from peftjax.models.family import check_heads
from peftjax.models.layers import Dropout, Runtime, activation, attention, padding_mask, stack_of
from peftjax.sites import HasSites, Stream


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """The fields of config.json that shape the model; names and defaults are Hugging Face's."""

  vocab_size: int = 30522
  hidden_size: int = 768
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  intermediate_size: int = 3072
  hidden_act: str = "gelu"
  hidden_dropout_prob: float = 0.1
  attention_probs_dropout_prob: float = 0.1
  max_position_embeddings: int = 512
  type_vocab_size: int = 2
  layer_norm_eps: float = 1e-12
  pad_token_id: int | None = 0
  classifier_dropout: float | None = None
  tie_word_embeddings: bool = True
  num_labels: int = 2
  model_type: str = "bert"
  """"bert", or "roberta", whose positions start after the padding id and whose sequence head has its own layer."""

  @property
  def head_dropout(self) -> float:
    """Dropout rate before the classifier."""
    return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

  @property
  def position_rows(self) -> int:
    """Rows of the table of positions."""
    return self.max_position_embeddings

  @property
  def first_position(self) -> int:
    """The first token's position; RoBERTa counts on from the padding id."""
    return 0 if self.model_type == "bert" else (self.pad_token_id or 0) + 1


def untaught(vectors: jax.Array, ids: jax.Array, pad: int | None) -> jax.Array:
  """Vectors [..., hidden] that were looked up; those of the padding id take no gradient, as in torch's tables."""
  return vectors if pad is None else jnp.where((ids == pad)[..., None], jax.lax.stop_gradient(vectors), vectors)


class BertEmbeddings(nn.Module):
  """Word, position and token-type embeddings, normalised."""

  config: BertConfig
  runtime: Runtime

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.word_embeddings = runtime.embed(config.vocab_size, config.hidden_size)
    self.position_embeddings = runtime.embed(config.max_position_embeddings, config.hidden_size)
    self.token_type_embeddings = runtime.embed(config.type_vocab_size, config.hidden_size)
    self.LayerNorm = runtime.layer_norm(config.layer_norm_eps)
    self.dropout = Dropout(runtime.rate(config.hidden_dropout_prob))

  def __call__(self, embeds: jax.Array, token_type_ids: jax.Array, position_ids: jax.Array) -> jax.Array:
    positions = self.position_embeddings(position_ids)
    if self.config.model_type != "bert":
      positions = untaught(positions, position_ids, self.config.pad_token_id)
    x = embeds + self.token_type_embeddings(token_type_ids) + positions
    return self.dropout(self.LayerNorm(x))


class BertSelfAttention(nn.Module, HasSites):
  """Multi-head self-attention, without the output projection."""

  config: BertConfig
  runtime: Runtime
  sites: ClassVar = {"attend": "attention"}

  def setup(self) -> None:
    size = self.config.hidden_size
    self.query, self.key, self.value = (self.runtime.dense(size) for _ in range(3))

  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    heads = self.config.num_attention_heads
    q, k, v = (layer(x).reshape(*x.shape[:2], heads, -1) for layer in (self.query, self.key, self.value))
    return self.attend(q, k, v, mask).reshape(x.shape)

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, L, H, D] from queries [B, L, H, D], keys and values [B, S, H, D], mask [B, 1, 1, S]."""
    rate = self.runtime.rate(self.config.attention_probs_dropout_prob)
    key = self.make_rng("dropout") if rate > 0.0 and self.has_rng("dropout") else None
    backend = self.runtime.attention
    return attention(q, k, v, mask, backend=backend, dropout_rate=rate, dropout_key=key)


class BertResidualOutput(nn.Module):
  """The projection that ends a sublayer, and the normalisation after its residual sum."""

  config: BertConfig
  runtime: Runtime

  def setup(self) -> None:
    self.dense = self.runtime.dense(self.config.hidden_size)
    self.LayerNorm = self.runtime.layer_norm(self.config.layer_norm_eps)
    self.dropout = Dropout(self.runtime.rate(self.config.hidden_dropout_prob))

  def project(self, x: jax.Array) -> jax.Array:
    """The residual branch's last linear layer."""
    return self.dropout(self.dense(x))

  def __call__(self, branch: jax.Array, residual: jax.Array) -> jax.Array:
    return self.LayerNorm(branch + residual)


class BertAttention(nn.Module):
  """Self-attention with its output projection."""

  config: BertConfig
  runtime: Runtime

  def setup(self) -> None:
    self.self = BertSelfAttention(self.config, self.runtime)
    self.output = BertResidualOutput(self.config, self.runtime)

  def branch(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """What is added to the residual."""
    return self.output.project(self.self(x, mask))

  def __call__(self, branch: jax.Array, residual: jax.Array) -> jax.Array:
    return self.output(branch, residual)


class BertIntermediate(nn.Module):
  """The widening half of the feed-forward sublayer."""

  config: BertConfig
  runtime: Runtime

  def setup(self) -> None:
    self.dense = self.runtime.dense(self.config.intermediate_size)

  def __call__(self, x: jax.Array) -> jax.Array:
    return activation(self.config.hidden_act)(self.dense(x))


class BertLayer(nn.Module, HasSites):
  """x ← LN(x + attention(x)); x ← LN(x + mlp(x))."""

  config: BertConfig
  runtime: Runtime
  sites: ClassVar = {"attention_branch": "sublayer", "mlp_branch": "sublayer", "__call__": "block"}

  def setup(self) -> None:
    self.attention = BertAttention(self.config, self.runtime)
    self.intermediate = BertIntermediate(self.config, self.runtime)
    self.output = BertResidualOutput(self.config, self.runtime)

  def attention_branch(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """The attention sublayer without its residual sum."""
    return self.attention.branch(x, mask)

  def mlp_branch(self, x: jax.Array) -> jax.Array:
    """The feed-forward sublayer without its residual sum."""
    return self.output.project(self.intermediate(x))

  def __call__(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    x = self.attention(self.attention_branch(x, mask), x)
    x = self.output(self.mlp_branch(x), x)
    return x, x if self.runtime.output_hidden_states else None


class BertEncoder(nn.Module):
  """The stack of layers: hidden states [B, L, hidden] to the same."""

  config: BertConfig
  runtime: Runtime

  def setup(self) -> None:
    self.layer = stack_of(BertLayer, (self.config, self.runtime), self.config.num_hidden_layers, self.runtime)

  def __call__(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    return self.layer(x, mask)


class BertPooler(nn.Module):
  """tanh of a linear map of the first position."""

  config: BertConfig
  runtime: Runtime

  def setup(self) -> None:
    self.dense = self.runtime.dense(self.config.hidden_size)

  def __call__(self, hidden: jax.Array) -> jax.Array:
    return jnp.tanh(self.dense(hidden[:, 0]))


TOKENS = Stream(
  ids="input_ids",
  mask="attention_mask",
  positions="position_ids",
  along={"token_type_ids": 0},
  outputs={"last_hidden_state": 1, "hidden_states": 2},
)


class BertModel(nn.Module, HasSites):
  """The encoder.

  Inputs: input_ids int[B, L]; attention_mask int[B, L], 1 for tokens; token_type_ids, position_ids int[B, L].
  Outputs: "last_hidden_state" [B, L, hidden] and, with a pooler, "pooler_output" [B, hidden].
  """

  config: BertConfig
  runtime: Runtime
  add_pooling_layer: bool = True
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (TOKENS,)

  def setup(self) -> None:
    self.embeddings = BertEmbeddings(self.config, self.runtime)
    self.encoder = BertEncoder(self.config, self.runtime)
    if self.add_pooling_layer:
      self.pooler = BertPooler(self.config, self.runtime)

  def __call__(
    self,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    token_type_ids: jax.Array | None = None,
    position_ids: jax.Array | None = None,
  ) -> dict[str, jax.Array]:
    position_ids = self.positions(input_ids) if position_ids is None else position_ids
    return self.from_embeds(self.embed(input_ids), attention_mask, token_type_ids, position_ids)

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the word embeddings stand in the tree."""
    return ("embeddings", "word_embeddings")

  def embed(self, input_ids: jax.Array) -> jax.Array:
    """Word embeddings alone, [B, L, hidden]."""
    return untaught(self.embeddings.word_embeddings(input_ids), input_ids, self.config.pad_token_id)

  def positions(self, input_ids: jax.Array) -> jax.Array | None:
    """RoBERTa counts tokens that are no padding, from the padding id on; BERT counts all from 0 (None)."""
    check_length(input_ids.shape[1], self.position_limit)
    if self.config.model_type == "bert":
      return None
    pad = self.config.first_position - 1
    is_token = (input_ids != pad).astype(jnp.int32)
    return jnp.cumsum(is_token, axis=1) * is_token + pad

  def default_positions(self, inputs: Mapping[str, Any]) -> jax.Array:
    """int[B, L] that `from_embeds` counts for these inputs of its own."""
    batch, length = inputs["embeds"].shape[:2]
    check_length(length, self.position_limit)
    return jnp.broadcast_to(jnp.arange(length) + self.config.first_position, (batch, length))

  @property
  def position_limit(self) -> int:
    """How many tokens have a learned position."""
    return self.config.max_position_embeddings - self.config.first_position

  def from_embeds(
    self,
    embeds: jax.Array,
    attention_mask: jax.Array | None = None,
    token_type_ids: jax.Array | None = None,
    position_ids: jax.Array | None = None,
  ) -> dict[str, jax.Array]:
    """The model after its word embeddings; without `position_ids` they follow the sequence."""
    batch, length = embeds.shape[:2]
    if attention_mask is None:
      attention_mask = jnp.ones((batch, length), jnp.int32)
    if token_type_ids is None:
      token_type_ids = jnp.zeros((batch, length), jnp.int32)
    if position_ids is None:
      position_ids = self.default_positions({"embeds": embeds})
    embedded = self.embeddings(embeds, token_type_ids, position_ids)
    hidden, layers = self.encoder(embedded, padding_mask(attention_mask))
    outputs = {"last_hidden_state": hidden}
    if self.add_pooling_layer:
      outputs["pooler_output"] = self.pooler(hidden)
    if layers is not None:
      outputs["hidden_states"] = jnp.concatenate([embedded[None], layers])
    return outputs


# Checkpoints ------------------------------------------------------------------------------------------------------


BERT_TABLE = COMMON | Table(
  read={
    "vocab_size": Field(VOCABULARY, 30522),
    "hidden_size": Field(FEATURES, 768),
    "num_hidden_layers": Field(LAYERS, 12),
    "num_attention_heads": Field(HEADS, 12),
    "intermediate_size": Field(FEATURES, 3072),
    "hidden_act": Field(NAME, "gelu"),
    "hidden_dropout_prob": Field(RATE, 0.1),
    "attention_probs_dropout_prob": Field(RATE, 0.1),
    "max_position_embeddings": Field(POSITIONS, 512),
    "type_vocab_size": Field(VOCABULARY, 2),
    "layer_norm_eps": Field(EPSILON, 1e-12),
    "classifier_dropout": Field(RATE.or_null),
    "pad_token_id": Field(ANY_ID.or_null, 0),
    "tie_word_embeddings": Field(FLAG, True),
  },
  refused={
    "is_decoder": Only((False,), "layers that see earlier tokens alone"),
    "add_cross_attention": Only((False,), "attention to an encoder"),
    "position_embedding_type": Only(("absolute", None), "relative positions"),
  },
  ignored=frozenset({"is_causal"}),  # an encoder's masks are never
)
ROBERTA_TABLE = BERT_TABLE | Table(
  read={
    "vocab_size": Field(VOCABULARY, 50265),
    "pad_token_id": Field(ANY_ID, 1),
    "bos_token_id": Field(IDS.or_null, 0),
    "eos_token_id": Field(IDS.or_null, 2),
  },
)


def parse(hf_config: Mapping[str, Any]) -> BertConfig:
  """The config of a config.json.

  Raises:
    UserError: a field of another type or out of range, or one that asks for what is not computed here.
  """
  model_type = str(hf_config["model_type"])
  given = (BERT_TABLE if model_type == "bert" else ROBERTA_TABLE).values(hf_config)
  config = BertConfig(**fields_for(given, BertConfig), model_type=model_type)
  check_heads(config.hidden_size, config.num_attention_heads)
  activation(config.hidden_act)
  if model_type == "roberta" and not 0 <= given["pad_token_id"] < config.max_position_embeddings - 1:
    raise UserError(
      f"config.json: pad_token_id={given['pad_token_id']}: positions start behind it, and there are "
      f"{config.max_position_embeddings}"
    )
  return config
