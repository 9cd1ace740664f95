"""Whisper (Radford et al. 2022, arXiv 2212.04356): an encoder of log-mel frames and a decoder of text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.errors import UserError
from peftjax.kinds import FLAG, NAME, list_of
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
from peftjax.models.family import (
  AUDIO_CLASSIFICATION,
  ENCODER,
  SPEECH_RECOGNITION,
  Architecture,
  Family,
  check_heads,
)
from peftjax.models.kv_cache import check_positions, counted_positions, place
from peftjax.models.layers import Runtime, activation
from peftjax.models.t5 import shifted_right
from peftjax.models.token_loss import token_losses
from peftjax.models.whisper_layers import WhisperConfig, WhisperDecoder, WhisperEncoder
from peftjax.sites import HasSites, Stream

Outputs = dict[str, jax.Array]
FRAMES = Stream(outputs={"encoder_last_hidden_state": 1, "encoder_hidden_states": 2}, within="encoder")
_TOKENS = Stream(
  embeds="decoder_embeds",
  ids="decoder_input_ids",
  mask="decoder_attention_mask",
  positions="decoder_position_ids",
  outputs={"last_hidden_state": 1, "hidden_states": 2},
  within="decoder",
)


def check_features(input_features: Any, config: WhisperConfig) -> None:
  """Raises `UserError` unless features are [B, bins, frames] with an even number of frames that has positions."""
  shape, most = tuple(input_features.shape), 2 * config.max_source_positions
  if len(shape) != 3 or shape[1] != config.num_mel_bins or not 2 <= shape[2] <= most or shape[2] % 2:
    raise UserError(
      f"input_features: shape {list(shape)}; expected [batch, {config.num_mel_bins}, frames], an even number of "
      f"frames up to {most}"
    )


class WhisperModel(nn.Module, HasSites):
  """Encoder and decoder without an output layer.

  Inputs: input_features [B, bins, frames] as Whisper's processor gives them, frames of 10 ms; fewer than config.json's
  window are read with the first of its positions. decoder_input_ids int[B, L], which start with the start token;
  decoder_attention_mask int[B, L]; decoder_position_ids int[B, L], counted up from 0 where none are given.
  Outputs: "last_hidden_state" [B, L, d_model] of the decoder, "encoder_last_hidden_state" [B, frames / 2, d_model].
  """

  config: WhisperConfig
  runtime: Runtime
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (FRAMES, _TOKENS)

  def setup(self) -> None:
    self.encoder = WhisperEncoder(self.config, self.runtime)
    self.decoder = WhisperDecoder(self.config, self.runtime)

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the convolution that embeds frames stands in the tree."""
    return ("encoder", "conv2")

  def __call__(
    self,
    input_features: jax.Array,
    decoder_input_ids: jax.Array | None = None,
    decoder_attention_mask: jax.Array | None = None,
    decoder_position_ids: jax.Array | None = None,
  ) -> Outputs:
    decoder_embeds = self.embed_decoder(decoder_input_ids)
    return self.from_embeds(self.embed(input_features), decoder_embeds, decoder_attention_mask, decoder_position_ids)

  def embed(self, input_features: jax.Array) -> jax.Array:
    """[B, frames / 2, d_model]: the frames with their positions."""
    check_features(input_features, self.config)
    embedded: jax.Array = self.encoder.embed(input_features)
    return embedded

  def embed_decoder(self, decoder_input_ids: jax.Array | None) -> jax.Array:
    """Word embeddings of the decoder's tokens."""
    if decoder_input_ids is None:
      raise UserError("an encoder-decoder needs decoder_input_ids: the targets, moved right behind the start token")
    embedded: jax.Array = self.decoder.embed_tokens(decoder_input_ids)
    return embedded

  def from_embeds(
    self,
    embeds: jax.Array,
    decoder_embeds: jax.Array,
    decoder_attention_mask: jax.Array | None = None,
    decoder_position_ids: jax.Array | None = None,
  ) -> Outputs:
    """Encoder and decoder after their embeddings; a prompt enters before the frames, without a position."""
    encoded, encoder_layers = self.encoder(embeds)
    hidden, layers = self.decode(decoder_embeds, decoder_attention_mask, decoder_position_ids, encoded)
    outputs = {"last_hidden_state": hidden, "encoder_last_hidden_state": encoded}
    if layers is not None and encoder_layers is not None:
      outputs |= {"hidden_states": layers, "encoder_hidden_states": encoder_layers}
    return outputs

  def decode(
    self,
    embeds: jax.Array,
    attention_mask: jax.Array | None = None,
    position_ids: jax.Array | None = None,
    encoded: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array | None]:
    """The decoder's states, from the encoder's or, where `encoded` is None, from what the cache kept of them."""
    tokens = place(self, embeds, attention_mask, position_ids)
    check_positions(tokens, self.config.max_target_positions)
    found: tuple[jax.Array, jax.Array | None] = self.decoder(embeds, tokens, encoded)
    return found

  def default_positions(self, inputs: Mapping[str, Any]) -> jax.Array | None:
    """int[B, L] that the decoder counts for these inputs of `from_embeds`; None where they go on from the cache's."""
    return counted_positions(self, inputs["decoder_embeds"], inputs.get("decoder_attention_mask"))


class WhisperForConditionalGeneration(nn.Module, HasSites):
  """Speech to text.

  Inputs as `WhisperModel`'s, and targets int[B, L], the token after each of the decoder's, -100 for none; without
  decoder_input_ids these are the targets, moved right behind the start token.
  Outputs as `WhisperModel`'s, and "logits" [B, L, vocabulary], or with `targets` "token_losses" and "token_hits"
  float32[B, L] instead.
  """

  config: WhisperConfig
  runtime: Runtime
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (FRAMES, _TOKENS)
  head_name: ClassVar[str] = "proj_out"
  tied_entries: ClassVar[tuple[str, ...]] = ()
  words_path: ClassVar[tuple[str, ...]] = ("model", "decoder", "embed_tokens")

  def setup(self) -> None:
    self.model = WhisperModel(self.config, self.runtime)
    if not self.config.tie_word_embeddings:
      self.proj_out = self.runtime.dense(self.config.vocab_size, use_bias=False)

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the convolution that embeds frames stands in the tree."""
    return ("model", *self.model.embedding_path)

  def __call__(
    self,
    input_features: jax.Array,
    decoder_input_ids: jax.Array | None = None,
    decoder_attention_mask: jax.Array | None = None,
    decoder_position_ids: jax.Array | None = None,
    targets: jax.Array | None = None,
  ) -> Outputs:
    if decoder_input_ids is None and targets is not None:
      read = jnp.where(targets < 0, self.config.pad_token_id or 0, targets)
      decoder_input_ids = shifted_right(read, self.config.decoder_start_token_id)
    outputs = self.from_embeds(
      self.model.embed(input_features),
      self.model.embed_decoder(decoder_input_ids),
      decoder_attention_mask,
      decoder_position_ids,
    )
    hidden = outputs["last_hidden_state"]
    if targets is not None:
      return {**outputs, **token_losses(self, hidden, targets, self.config.vocab_size)}
    return {**outputs, "logits": self.head(hidden)}

  def from_embeds(
    self,
    embeds: jax.Array,
    decoder_embeds: jax.Array,
    decoder_attention_mask: jax.Array | None = None,
    decoder_position_ids: jax.Array | None = None,
  ) -> Outputs:
    """The bare model after its embeddings."""
    return self.model.from_embeds(embeds, decoder_embeds, decoder_attention_mask, decoder_position_ids)

  def default_positions(self, inputs: Mapping[str, Any]) -> jax.Array | None:
    """As `WhisperModel.default_positions`."""
    return self.model.default_positions(inputs)

  def head(self, hidden: jax.Array) -> jax.Array:
    """Logits [..., vocabulary] from decoder states [..., d_model]."""
    if self.config.tie_word_embeddings:
      return self.model.decoder.embed_tokens.attend(hidden)
    return self.proj_out(hidden)

  def prefill(self, input_features: jax.Array, decoder_input_ids: jax.Array) -> jax.Array:
    """Logits [B, vocabulary] after the decoder's first tokens; fills the cache."""
    embeds, decoder_embeds = self.model.embed(input_features), self.model.embed_decoder(decoder_input_ids)
    return self.head(self.from_embeds(embeds, decoder_embeds)["last_hidden_state"][:, -1])

  def step(self, input_ids: jax.Array) -> jax.Array:
    """Logits [B, vocabulary] after one more token a row, int[B, 1], from the cache. No prompt enters here."""
    hidden, _ = self.model.decode(self.model.embed_decoder(input_ids))
    return self.head(hidden[:, -1])


class LayerWeights(nn.Module):
  """How much each layer's states count in a sum: softmax of learned numbers."""

  count: int
  runtime: Runtime

  @nn.compact
  def __call__(self, layers: jax.Array) -> jax.Array:
    """[B, L, d_model] of [layers + 1, B, L, d_model]."""
    weights = self.param("scale", nn.initializers.ones, (self.count,), self.runtime.dtype)
    return jnp.tensordot(jax.nn.softmax(weights.astype(layers.dtype)), layers, axes=1)


class WhisperForAudioClassification(nn.Module, HasSites):
  """One label a recording: "logits" [B, labels], beside the encoder's outputs.

  The mean over all frames of a projection of the encoder's states, or of a weighted sum of all layers' states.
  """

  config: WhisperConfig
  runtime: Runtime
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (dataclasses.replace(FRAMES, outputs={"last_hidden_state": 1, "hidden_states": 2}),)

  def setup(self) -> None:
    runtime, config = self.runtime, self.config
    if config.use_weighted_layer_sum:
      self.layer_weights = LayerWeights(config.encoder_layers + 1, runtime)
      runtime = dataclasses.replace(runtime, output_hidden_states=True)
    self.encoder = WhisperEncoder(config, runtime)
    self.projector = runtime.dense(config.classifier_proj_size)
    self.classifier = runtime.dense(config.num_labels)

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the convolution that embeds frames stands in the tree."""
    return ("encoder", "conv2")

  def __call__(self, input_features: jax.Array) -> Outputs:
    check_features(input_features, self.config)
    outputs = self.from_embeds(self.encoder.embed(input_features))
    if self.config.use_weighted_layer_sum:
      read = self.layer_weights(outputs["hidden_states"])
    else:
      read = outputs["last_hidden_state"]
    logits = self.classifier(self.projector(read).mean(axis=1))
    if not self.runtime.output_hidden_states:
      outputs.pop("hidden_states", None)
    return {**outputs, "logits": logits}

  def from_embeds(self, embeds: jax.Array) -> Outputs:
    """The encoder after its embeddings; where a prompt enters, before the frames and without a position."""
    hidden, layers = self.encoder(embeds)
    return {"last_hidden_state": hidden} if layers is None else {"last_hidden_state": hidden, "hidden_states": layers}


# Checkpoints ------------------------------------------------------------------------------------------------------

TABLE = COMMON | Table(
  read={
    "vocab_size": Field(VOCABULARY, 51865),
    "num_mel_bins": Field(FEATURES, 80),
    "encoder_layers": Field(LAYERS, 4),
    "encoder_attention_heads": Field(HEADS, 6),
    "decoder_layers": Field(LAYERS, 4),
    "decoder_attention_heads": Field(HEADS, 6),
    "encoder_ffn_dim": Field(FEATURES, 1536),
    "decoder_ffn_dim": Field(FEATURES, 1536),
    "activation_function": Field(NAME, "gelu"),
    "d_model": Field(FEATURES, 384),
    "dropout": Field(RATE, 0.0),
    "attention_dropout": Field(RATE, 0.0),
    "activation_dropout": Field(RATE, 0.0),
    "init_std": Field(SPREAD, 0.02),
    "max_source_positions": Field(POSITIONS, 1500),
    "max_target_positions": Field(POSITIONS, 448),
    "pad_token_id": Field(ANY_ID.or_null, 50256),
    "bos_token_id": Field(IDS.or_null, 50256),
    "eos_token_id": Field(IDS.or_null, 50256),
    "decoder_start_token_id": Field(ANY_ID, 50257),
    "tie_word_embeddings": Field(FLAG, True),
    "use_weighted_layer_sum": Field(FLAG, False),
    "classifier_proj_size": Field(FEATURES, 256),
    "is_encoder_decoder": Field(FLAG, True),
    "suppress_tokens": Field(list_of(ANY_ID, what="token ids").or_null),
    "begin_suppress_tokens": Field(list_of(ANY_ID, what="token ids").or_null, (220, 50256)),
  },
  refused={
    "encoder_layerdrop": Only((0.0,), "layers that training leaves out"),
    "decoder_layerdrop": Only((0.0,), "layers that training leaves out"),
    "apply_spec_augment": Only((False,), "recordings are masked by input.time_masks and input.mel_masks"),
  },
  ignored=frozenset(
    {
      "scale_embedding",  # transformers reads it and multiplies by nothing
      "median_filter_width",
      "mask_time_prob",
      "mask_time_length",
      "mask_time_min_masks",
      "mask_feature_prob",
      "mask_feature_length",
      "mask_feature_min_masks",
      "forced_decoder_ids",  # transformers takes them from generation_config.json
      "max_length",
    }
  ),
  spellings={
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
    "num_key_value_heads": "encoder_attention_heads",
  },
)


def _parse(hf_config: Mapping[str, Any]) -> WhisperConfig:
  config = WhisperConfig(**fields_for(TABLE.values(hf_config), WhisperConfig))
  for heads in (config.encoder_attention_heads, config.decoder_attention_heads):
    check_heads(config.d_model, heads)
  if config.d_model < 4 or config.d_model % 2:
    raise UserError(f"config.json: d_model={config.d_model}: expected an even number from 4, half sines, half cosines")
  activation(config.activation_function)
  return config


def _stacks(config: WhisperConfig) -> dict[str, int]:
  return {"encoder.layers": config.encoder_layers, "decoder.layers": config.decoder_layers}


def _inputs(config: WhisperConfig) -> dict[str, jax.ShapeDtypeStruct]:
  features = jax.ShapeDtypeStruct((1, config.num_mel_bins, 2 * config.max_source_positions), jnp.float32)
  return {"input_features": features, "decoder_input_ids": jax.ShapeDtypeStruct((1, 3), jnp.int32)}


WHISPER = Family(
  model_types=("whisper",),
  table=TABLE,
  parse=_parse,
  architectures={
    "WhisperForConditionalGeneration": Architecture(WhisperForConditionalGeneration, SPEECH_RECOGNITION, "model"),
    "WhisperForAudioClassification": Architecture(
      WhisperForAudioClassification,
      AUDIO_CLASSIFICATION,
      "",
      ("layer_weights", "projector", "classifier"),
      ("input_features",),
    ),
    "WhisperModel": Architecture(WhisperModel, ENCODER),
  },
  stacks=_stacks,
  inputs=_inputs,
  rename=((r"layer_weights\.scale", "layer_weights"),),
  unused=(r"proj_out\.weight", r"(model\.)?decoder\..*", r"layer_weights", r"(projector|classifier)\..*"),
)
