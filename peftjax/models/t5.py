"""T5 (Raffel et al. 2019, arXiv 1910.10683), T5 v1.1, Flan-T5, T0, mT5 and mT0: an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from peftjax.errors import UserError
from peftjax.kinds import FLAG, NAME, shown, whole
from peftjax.models.config_fields import (
  ANY_ID,
  COMMON,
  EPSILON,
  FEATURES,
  HEADS,
  LAYERS,
  RATE,
  SPREAD,
  VOCABULARY,
  Field,
  Only,
  Table,
  fields_for,
)
from peftjax.models.family import ENCODER, SEQ2SEQ_LM, TEXT_CLASSIFICATION, Architecture, Family
from peftjax.models.kv_cache import frame_of, place
from peftjax.models.layers import CACHE, Dropout, Runtime, activation, padding_mask
from peftjax.models.t5_layers import T5Config, T5Stack
from peftjax.models.token_loss import token_losses
from peftjax.sites import HasSites, Stream

Outputs = dict[str, jax.Array]

_STREAMS = (
  Stream(
    ids="input_ids",
    mask="attention_mask",
    outputs={"encoder_last_hidden_state": 1, "encoder_hidden_states": 2},
    within="encoder",
  ),
  Stream(
    embeds="decoder_embeds",
    ids="decoder_input_ids",
    mask="decoder_attention_mask",
    outputs={"last_hidden_state": 1, "hidden_states": 2},
    within="decoder",
  ),
)


def encode(encoder: T5Stack, embeds: jax.Array, attention_mask: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
  """The encoder's states, and those of all layers if they are kept."""
  mask = jnp.ones(embeds.shape[:2], jnp.int32) if attention_mask is None else attention_mask
  return encoder(embeds, {"mask": padding_mask(mask)})


def shifted_right(tokens: jax.Array, start_id: int) -> jax.Array:
  """int[B, L]: the start token and all tokens but the last."""
  return jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=start_id)


class T5Model(nn.Module, HasSites):
  """Encoder and decoder without an output layer.

  Inputs: input_ids int[B, S]; attention_mask int[B, S], 1 for tokens; decoder_input_ids int[B, L], which start with the
  start token; decoder_attention_mask int[B, L].
  Outputs: "last_hidden_state" [B, L, d_model] of the decoder, "encoder_last_hidden_state" [B, S, d_model].
  """

  config: T5Config
  runtime: Runtime
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = _STREAMS

  def setup(self) -> None:
    self.add_parts()

  def add_parts(self) -> None:
    """Creates embeddings, encoder and decoder."""
    self.shared = self.runtime.embed(self.config.vocab_size, self.config.d_model)
    self.encoder = T5Stack(self.config, self.runtime, is_decoder=False)
    self.decoder = T5Stack(self.config, self.runtime, is_decoder=True)

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the word embeddings stand in the tree."""
    return ("shared",)

  def __call__(
    self,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    decoder_input_ids: jax.Array | None = None,
    decoder_attention_mask: jax.Array | None = None,
  ) -> Outputs:
    return self.from_embeds(
      self.shared(input_ids), attention_mask, self.embed_decoder(decoder_input_ids), decoder_attention_mask
    )

  def embed_decoder(self, decoder_input_ids: jax.Array | None) -> jax.Array:
    """Word embeddings of the decoder's tokens."""
    if decoder_input_ids is None:
      raise UserError("an encoder-decoder needs decoder_input_ids: the targets, moved right behind the start token")
    return self.shared(decoder_input_ids)

  def from_embeds(
    self,
    embeds: jax.Array,
    attention_mask: jax.Array | None = None,
    decoder_embeds: jax.Array | None = None,
    decoder_attention_mask: jax.Array | None = None,
    position_ids: jax.Array | None = None,
  ) -> Outputs:
    """Encoder and decoder after the word embeddings; there are no positions but relative ones."""
    encoded, encoder_layers = encode(self.encoder, embeds, attention_mask)
    mask = jnp.ones(embeds.shape[:2], jnp.int32) if attention_mask is None else attention_mask
    if self.is_mutable_collection(CACHE):
      self.put_variable(CACHE, "encoder_mask", mask)
    hidden, layers = self.decode(decoder_embeds, decoder_attention_mask, encoded, mask)
    outputs = {"last_hidden_state": hidden, "encoder_last_hidden_state": encoded}
    if layers is not None and encoder_layers is not None:
      outputs |= {"hidden_states": layers, "encoder_hidden_states": encoder_layers}
    return outputs

  def decode(
    self,
    embeds: Any,
    attention_mask: jax.Array | None,
    encoded: jax.Array | None,
    encoder_mask: jax.Array,
  ) -> tuple[jax.Array, jax.Array | None]:
    """The decoder's states, from the encoder's or, where `encoded` is None, from what the cache kept of them."""
    tokens = place(self, embeds, attention_mask, None)
    frame = {**frame_of(tokens), "cross_mask": padding_mask(encoder_mask)}
    if encoded is not None:
      frame["encoded"] = encoded
    return self.decoder(embeds, frame)


class T5ForConditionalGeneration(T5Model):
  """Sequence to sequence.

  Inputs as `T5Model`'s, and targets int[B, L], the token after each of the decoder's, -100 for none; without
  decoder_input_ids these are the targets, moved right behind the start token.
  Outputs as `T5Model`'s, and "logits" [B, L, vocabulary], or with `targets` "token_losses" and "token_hits"
  float32[B, L] instead.
  """

  head_name: ClassVar[str] = "lm_head"
  tied_entries: ClassVar[tuple[str, ...]] = ("scale_decoder_outputs",)

  def setup(self) -> None:
    self.add_parts()
    if not self.config.tie_word_embeddings:
      self.lm_head = self.runtime.dense(self.config.vocab_size, use_bias=False)

  def __call__(
    self,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    decoder_input_ids: jax.Array | None = None,
    decoder_attention_mask: jax.Array | None = None,
    targets: jax.Array | None = None,
  ) -> Outputs:
    if decoder_input_ids is None and targets is not None:
      decoder_input_ids = shifted_right(
        jnp.maximum(targets, self.config.pad_token_id), self.config.decoder_start_token_id
      )
    decoder_embeds = self.embed_decoder(decoder_input_ids)
    outputs = self.from_embeds(self.shared(input_ids), attention_mask, decoder_embeds, decoder_attention_mask)
    hidden = outputs["last_hidden_state"]
    if targets is not None:
      return {**outputs, **token_losses(self, hidden, targets, self.config.vocab_size)}
    return {**outputs, "logits": self.head(hidden)}

  def head(self, hidden: jax.Array) -> jax.Array:
    """Logits [..., vocabulary] from decoder states [..., d_model]."""
    hidden = hidden * self.config.d_model**-0.5 if self.config.scale_decoder_outputs else hidden
    return self.shared.attend(hidden) if self.config.tie_word_embeddings else self.lm_head(hidden)

  def prefill(self, input_ids: jax.Array, attention_mask: jax.Array, decoder_input_ids: jax.Array) -> jax.Array:
    """Logits [B, vocabulary] after the decoder's first tokens; fills the cache."""
    outputs = self.from_embeds(self.shared(input_ids), attention_mask, self.shared(decoder_input_ids))
    return self.head(outputs["last_hidden_state"][:, -1])

  def step(self, input_ids: jax.Array) -> jax.Array:
    """Logits [B, vocabulary] after one more token a row, int[B, 1], from the cache. No prompt enters here."""
    hidden, _ = self.decode(self.shared(input_ids), None, None, self.get_variable(CACHE, "encoder_mask"))
    return self.head(hidden[:, -1])


class T5ClassificationHead(nn.Module):
  """Dense, tanh, projection."""

  config: T5Config
  runtime: Runtime

  def setup(self) -> None:
    self.dense = self.runtime.dense(self.config.d_model)
    self.out_proj = self.runtime.dense(self.config.num_labels)
    self.dropout = Dropout(self.runtime.rate(self.config.classifier_dropout))

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.out_proj(self.dropout(jnp.tanh(self.dense(self.dropout(x)))))


class T5ForSequenceClassification(nn.Module, HasSites):
  """One label a sequence: "logits" [B, labels].

  The sequence, behind the start token, is the decoder's input too unless `decoder_input_ids` are given; the state at
  its last end-of-sequence token is classified, as Hugging Face does it.
  """

  config: T5Config
  runtime: Runtime
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = _STREAMS

  def setup(self) -> None:
    self.transformer = T5Model(self.config, self.runtime)
    self.classification_head = T5ClassificationHead(self.config, self.runtime)

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the word embeddings stand in the tree."""
    return ("transformer", "shared")

  def __call__(
    self,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    decoder_input_ids: jax.Array | None = None,
    decoder_attention_mask: jax.Array | None = None,
  ) -> Outputs:
    shared = self.transformer.shared
    if decoder_input_ids is None:
      decoder_input_ids = shifted_right(input_ids, self.config.decoder_start_token_id)
    decoder_embeds = shared(decoder_input_ids)
    outputs = self.from_embeds(shared(input_ids), attention_mask, decoder_embeds, decoder_attention_mask)
    last = (jnp.arange(input_ids.shape[1]) * (input_ids == self.config.eos_token_id)).argmax(axis=1)
    pooled = jnp.take_along_axis(outputs["last_hidden_state"], last[:, None, None], axis=1)[:, 0]
    return {**outputs, "logits": self.classification_head(pooled)}

  def from_embeds(
    self,
    embeds: jax.Array,
    attention_mask: jax.Array | None = None,
    decoder_embeds: jax.Array | None = None,
    decoder_attention_mask: jax.Array | None = None,
    position_ids: jax.Array | None = None,
  ) -> Outputs:
    """The bare model after the word embeddings."""
    return self.transformer.from_embeds(embeds, attention_mask, decoder_embeds, decoder_attention_mask)


# Checkpoints ------------------------------------------------------------------------------------------------------

TABLE = COMMON | Table(
  read={
    "vocab_size": Field(VOCABULARY, 32128),
    "d_model": Field(FEATURES, 512),
    "d_kv": Field(HEADS, 64),
    "d_ff": Field(FEATURES, 2048),
    "num_layers": Field(LAYERS, 6),
    "num_decoder_layers": Field(LAYERS.or_null),
    "num_heads": Field(HEADS, 8),
    "relative_attention_num_buckets": Field(whole(4, 2**16), 32),
    "relative_attention_max_distance": Field(whole(2, 2**24), 128),
    "dropout_rate": Field(RATE, 0.1),
    "classifier_dropout": Field(RATE, 0.0),
    "layer_norm_epsilon": Field(EPSILON, 1e-6),
    "feed_forward_proj": Field(NAME, "relu"),
    "dense_act_fn": Field(NAME.or_null),
    "is_gated_act": Field(FLAG.or_null),
    "tie_word_embeddings": Field(FLAG, True),
    "scale_decoder_outputs": Field(FLAG.or_null),
    "pad_token_id": Field(ANY_ID.or_null, 0),
    "eos_token_id": Field(ANY_ID.or_null, 1),
    "decoder_start_token_id": Field(ANY_ID.or_null),
    "initializer_factor": Field(SPREAD, 1.0),
  },
  refused={"is_encoder_decoder": Only((True,), "one half alone, as transformers computes it")},
  ignored=frozenset({"is_decoder"}),  # of either half, which says so itself
  spellings={
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
  },
)
MT5_TABLE = TABLE | Table(
  read={
    "vocab_size": Field(VOCABULARY, 250112),
    "d_ff": Field(FEATURES, 1024),
    "num_layers": Field(LAYERS, 8),
    "num_heads": Field(HEADS, 6),
    "feed_forward_proj": Field(NAME, "gated-gelu"),
    "decoder_start_token_id": Field(ANY_ID.or_null, 0),
  },
  refused={"scale_decoder_outputs": Only((False, None), "this model's decoder states are not scaled")},
)


def _parse(hf_config: Mapping[str, Any]) -> T5Config:
  is_mt5 = hf_config["model_type"] == "mt5"
  given = (MT5_TABLE if is_mt5 else TABLE).values(hf_config)
  given["num_decoder_layers"] = given["num_decoder_layers"] or given["num_layers"]
  for name, otherwise in (("pad_token_id", 0), ("decoder_start_token_id", given["pad_token_id"] or 0)):
    given[name] = otherwise if given[name] is None else given[name]
    if not 0 <= given[name] < given["vocab_size"]:
      raise UserError(
        f"config.json: {name}={given[name]}: the decoder reads it, and there are {given['vocab_size']} tokens"
      )
  if is_mt5:
    given["scale_decoder_outputs"] = False
  elif given["scale_decoder_outputs"] is None:
    given["scale_decoder_outputs"] = given["tie_word_embeddings"]
  if given["relative_attention_max_distance"] <= given["relative_attention_num_buckets"] // 2:
    raise UserError(
      f"config.json: relative_attention_max_distance={given['relative_attention_max_distance']}: expected more than "
      f"half of relative_attention_num_buckets, {given['relative_attention_num_buckets']}"
    )
  parts = given["feed_forward_proj"].split("-")
  if len(parts) > 2 or (len(parts) == 2 and parts[0] != "gated"):
    raise UserError(f"config.json: feed_forward_proj={given['feed_forward_proj']!r}: expected ACT or gated-ACT")
  config = T5Config(**fields_for(given, T5Config))
  activation(config.hidden_act)
  for name, meant in (("dense_act_fn", config.hidden_act), ("is_gated_act", config.is_gated)):
    if given[name] not in (None, meant):  # transformers takes these, where they are written
      raise UserError(f"config.json: {name}={shown(given[name])}: feed_forward_proj says {shown(meant)}")
  return config


def _saved(
  config: T5Config, hf_config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[Mapping[str, Any], Mapping[str, np.ndarray]]:
  """With the scale of the decoder's outputs in an output layer of its own: old readers scale only where it is tied."""
  if "lm_head.weight" not in tensors or not config.scale_decoder_outputs:
    return hf_config, tensors
  scaled = (tensors["lm_head.weight"] * config.d_model**-0.5).astype(tensors["lm_head.weight"].dtype)
  return {**hf_config, "scale_decoder_outputs": False}, {**tensors, "lm_head.weight": scaled}


def _stacks(config: T5Config) -> dict[str, int]:
  return {"encoder.block": config.num_layers, "decoder.block": config.num_decoder_layers}


def _inputs(config: T5Config) -> dict[str, jax.ShapeDtypeStruct]:
  source, target = (jax.ShapeDtypeStruct((1, length), jnp.int32) for length in (4, 3))
  return {"input_ids": source, "attention_mask": source, "decoder_input_ids": target}


def _family(name: str, model_type: str, table: Table) -> Family:
  return Family(
    model_types=(model_type,),
    table=table,
    parse=_parse,
    architectures={
      f"{name}ForConditionalGeneration": Architecture(T5ForConditionalGeneration, SEQ2SEQ_LM),
      f"{name}ForSequenceClassification": Architecture(
        T5ForSequenceClassification, TEXT_CLASSIFICATION, "transformer", ("classification_head",)
      ),
      f"{name}Model": Architecture(T5Model, ENCODER),
    },
    stacks=_stacks,
    inputs=_inputs,
    unused=(
      r"lm_head\.weight",
      r"classification_head\..*",
      r"(transformer\.)?(en|de)coder\.embed_tokens\.weight",
      r"(transformer\.)?decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    ),
    rename=((r"(en|de)coder\.relative", r"\1coder.block.0.layer.0.SelfAttention.relative"),),
    copies={"shared.weight": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")},
    always_tied=True,
    saved=_saved,
  )


T5 = _family("T5", "t5", TABLE)
MT5 = _family("MT5", "mt5", MT5_TABLE)
