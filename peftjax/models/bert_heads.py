"""What BERT and RoBERTa compute from their encoder's states: classes, spans, masked tokens; and their checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.models.bert import BERT_TABLE, ROBERTA_TABLE, TOKENS, BertConfig, BertModel, parse
from peftjax.models.config_fields import Table
from peftjax.models.family import (
  ENCODER,
  MASKED_LM,
  QUESTION_ANSWERING,
  TEXT_CLASSIFICATION,
  TOKEN_CLASSIFICATION,
  Architecture,
  Family,
  token_inputs,
)
from peftjax.models.layers import Dropout, Runtime, activation
from peftjax.models.token_loss import token_losses
from peftjax.sites import HasSites


class RobertaClassificationHead(nn.Module):
  """Dense, tanh, projection of the first position."""

  config: BertConfig
  runtime: Runtime

  def setup(self) -> None:
    self.dense = self.runtime.dense(self.config.hidden_size)
    self.out_proj = self.runtime.dense(self.config.num_labels)
    self.dropout = Dropout(self.runtime.rate(self.config.head_dropout))

  def __call__(self, hidden: jax.Array) -> jax.Array:
    return self.out_proj(self.dropout(jnp.tanh(self.dense(self.dropout(hidden[:, 0])))))


class WithHead(nn.Module, HasSites):
  """An encoder under its Hugging Face name ("bert", "roberta") and what is computed from its outputs."""

  config: BertConfig
  runtime: Runtime
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (TOKENS,)
  pooled: ClassVar[bool] = False

  def setup(self) -> None:
    encoder = BertModel(self.config, self.runtime, add_pooling_layer=self.pooled and self.config.model_type == "bert")
    setattr(self, self.config.model_type, encoder)
    self.add_head()

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the word embeddings stand in the tree."""
    return (self.config.model_type, "embeddings", "word_embeddings")

  def default_positions(self, inputs: Mapping[str, Any]) -> jax.Array:
    """int[B, L]: the positions that the encoder counts where none are given."""
    return getattr(self, self.config.model_type).default_positions(inputs)

  @property
  def position_limit(self) -> int:
    """How many tokens have a learned position."""
    return self.config.max_position_embeddings - self.config.first_position

  def __call__(self, input_ids: jax.Array, **inputs: Any) -> dict[str, jax.Array]:
    encoder = getattr(self, self.config.model_type)
    if inputs.get("position_ids") is None:
      inputs["position_ids"] = encoder.positions(input_ids)
    return self.from_embeds(encoder.embed(input_ids), **inputs)

  def from_embeds(
    self,
    embeds: jax.Array,
    attention_mask: jax.Array | None = None,
    token_type_ids: jax.Array | None = None,
    position_ids: jax.Array | None = None,
  ) -> dict[str, jax.Array]:
    encoder = getattr(self, self.config.model_type)
    outputs = encoder.from_embeds(embeds, attention_mask, token_type_ids, position_ids)
    return {**outputs, "logits": self.head(outputs)}


class BertForSequenceClassification(WithHead):
  """One label a sequence: "logits" [B, labels]."""

  pooled: ClassVar[bool] = True

  def add_head(self) -> None:
    """Creates the classifier."""
    self.classifier: nn.Module
    if self.config.model_type == "bert":
      self.classifier = self.runtime.dense(self.config.num_labels)
      self.dropout = Dropout(self.runtime.rate(self.config.head_dropout))
    else:
      self.classifier = RobertaClassificationHead(self.config, self.runtime)

  def head(self, outputs: dict[str, jax.Array]) -> jax.Array:
    """Logits from the encoder's outputs."""
    if self.config.model_type == "bert":
      return self.classifier(self.dropout(outputs["pooler_output"]))
    return self.classifier(outputs["last_hidden_state"])


class BertForTokenClassification(WithHead):
  """One label a token: "logits" [B, L, labels]."""

  streams: ClassVar = (dataclasses.replace(TOKENS, outputs={**TOKENS.outputs, "logits": 1}),)

  def add_head(self) -> None:
    """Creates the classifier."""
    self.classifier = self.runtime.dense(self.config.num_labels)
    self.dropout = Dropout(self.runtime.rate(self.config.head_dropout))

  def head(self, outputs: dict[str, jax.Array]) -> jax.Array:
    """Logits from the encoder's outputs."""
    return self.classifier(self.dropout(outputs["last_hidden_state"]))


class BertForQuestionAnswering(WithHead):
  """Where an answer starts and ends: "start_logits", "end_logits" [B, L], and both as "logits" [B, L, 2]."""

  streams: ClassVar = (
    dataclasses.replace(TOKENS, outputs={**TOKENS.outputs, "logits": 1, "start_logits": 1, "end_logits": 1}),
  )

  def add_head(self) -> None:
    """Creates the layer over the states."""
    self.qa_outputs = self.runtime.dense(2)

  def head(self, outputs: dict[str, jax.Array]) -> jax.Array:
    """Logits from the encoder's outputs."""
    return self.qa_outputs(outputs["last_hidden_state"])

  def from_embeds(
    self,
    embeds: jax.Array,
    attention_mask: jax.Array | None = None,
    token_type_ids: jax.Array | None = None,
    position_ids: jax.Array | None = None,
  ) -> dict[str, jax.Array]:
    outputs = super().from_embeds(embeds, attention_mask, token_type_ids, position_ids)
    start, end = jnp.moveaxis(outputs["logits"], -1, 0)
    return {**outputs, "start_logits": start, "end_logits": end}


class BertTransform(nn.Module):
  """Dense, activation, normalisation before BERT's output layer."""

  config: BertConfig
  runtime: Runtime

  def setup(self) -> None:
    self.dense = self.runtime.dense(self.config.hidden_size)
    self.LayerNorm = self.runtime.layer_norm(self.config.layer_norm_eps)

  def __call__(self, hidden: jax.Array) -> jax.Array:
    return self.LayerNorm(activation(self.config.hidden_act)(self.dense(hidden)))


class Predictions(nn.Module):
  """States to what the output layer multiplies, and the output layer's bias or, where it is not tied, all of it."""

  config: BertConfig
  runtime: Runtime

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    if config.model_type == "bert":
      self.transform = BertTransform(config, runtime)
    else:
      self.dense = runtime.dense(config.hidden_size)
      self.layer_norm = runtime.layer_norm(config.layer_norm_eps)
    if config.tie_word_embeddings:
      self.bias = self.param("bias", nn.initializers.zeros, (config.vocab_size,), runtime.dtype)
    else:
      self.decoder = runtime.dense(config.vocab_size)

  def __call__(self, hidden: jax.Array, table: Any) -> jax.Array:
    """Logits [..., vocabulary]; `table` takes states times the word embeddings."""
    if self.config.model_type == "bert":
      hidden = self.transform(hidden)
    else:
      hidden = self.layer_norm(nn.gelu(self.dense(hidden), approximate=False))
    if not self.config.tie_word_embeddings:
      return self.decoder(hidden)
    products = table(hidden)
    return products + self.bias.astype(products.dtype)


class BertHead(nn.Module):
  """What BERT's checkpoints call `cls`."""

  config: BertConfig
  runtime: Runtime

  def setup(self) -> None:
    self.predictions = Predictions(self.config, self.runtime)

  def __call__(self, hidden: jax.Array, table: Any) -> jax.Array:
    return self.predictions(hidden, table)


class BertForMaskedLM(WithHead):
  """The tokens that stand where they are hidden.

  Inputs as the encoder's, and targets int[B, L], the token of each position, -100 where it is not asked for.
  Outputs: the encoder's, and "logits" [B, L, vocabulary], or with `targets` "token_losses" and "token_hits"
  float32[B, L] instead, and then the logits never exist as a whole.
  """

  head_name: ClassVar[str] = "cls.predictions.decoder"
  tied_bias: ClassVar[str] = "cls.predictions.bias"
  tied_entries: ClassVar[tuple[str, ...]] = ()

  def add_head(self) -> None:
    """Creates the output layer."""
    self.cls = BertHead(self.config, self.runtime)

  def head(self, hidden: Any) -> jax.Array:
    """Logits [..., vocabulary] from states [..., hidden]."""
    return self.cls(hidden, getattr(self, self.config.model_type).embeddings.word_embeddings.attend)

  def __call__(self, input_ids: jax.Array, targets: jax.Array | None = None, **inputs: Any) -> dict[str, jax.Array]:
    outputs = super().__call__(input_ids, **inputs)
    hidden = outputs["last_hidden_state"]
    if targets is not None:
      return {**outputs, **token_losses(self, hidden, targets, self.config.vocab_size)}
    return {**outputs, "logits": self.head(hidden)}

  def from_embeds(
    self,
    embeds: jax.Array,
    attention_mask: jax.Array | None = None,
    token_type_ids: jax.Array | None = None,
    position_ids: jax.Array | None = None,
  ) -> dict[str, jax.Array]:
    """The encoder after its word embeddings; where a prompt enters."""
    encoder = getattr(self, self.config.model_type)
    outputs: dict[str, jax.Array] = encoder.from_embeds(embeds, attention_mask, token_type_ids, position_ids)
    return outputs


class RobertaForMaskedLM(BertForMaskedLM):
  """The same with RoBERTa's names."""

  head_name: ClassVar[str] = "lm_head.decoder"
  tied_bias: ClassVar[str] = "lm_head.bias"

  def add_head(self) -> None:
    """Creates the output layer."""
    self.lm_head = Predictions(self.config, self.runtime)

  def head(self, hidden: Any) -> jax.Array:
    """Logits [..., vocabulary] from states [..., hidden]."""
    return self.lm_head(hidden, getattr(self, self.config.model_type).embeddings.word_embeddings.attend)


# Checkpoints ------------------------------------------------------------------------------------------------------


def _architectures(name: str, prefix: str) -> dict[str, Architecture]:
  masked = BertForMaskedLM if prefix == "bert" else RobertaForMaskedLM
  may_lack = ("bert.pooler.dense",) if prefix == "bert" else ()  # which is saved without heads, and by this class alone
  return {
    f"{name}Model": Architecture(BertModel, ENCODER),
    f"{name}ForSequenceClassification": Architecture(
      BertForSequenceClassification, TEXT_CLASSIFICATION, prefix, ("classifier",), may_lack=may_lack
    ),
    f"{name}ForTokenClassification": Architecture(
      BertForTokenClassification, TOKEN_CLASSIFICATION, prefix, ("classifier",)
    ),
    f"{name}ForQuestionAnswering": Architecture(BertForQuestionAnswering, QUESTION_ANSWERING, prefix, ("qa_outputs",)),
    f"{name}ForMaskedLM": Architecture(masked, MASKED_LM, prefix),
  }


def _family(name: str, model_type: str, table: Table, unused: tuple[str, ...]) -> Family:
  return Family(
    model_types=(model_type,),
    table=table,
    parse=parse,
    architectures=_architectures(name, model_type),
    stacks=lambda config: {"encoder.layer": config.num_hidden_layers},
    inputs=lambda config: token_inputs(),
    unused=(
      *unused,
      r"(.*\.)?embeddings\.position_ids",
      r"(.*\.)?pooler\.dense\.(weight|bias)",
      r"classifier\..*",
      r"qa_outputs\..*",
    ),
  )


BERT = _family("Bert", "bert", BERT_TABLE, (r"cls\..*",))
ROBERTA = _family("Roberta", "roberta", ROBERTA_TABLE, (r"lm_head\..*",))
