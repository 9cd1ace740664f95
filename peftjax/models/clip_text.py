"""CLIP's text tower (Radford et al. 2021, arXiv 2103.00020): what Stable Diffusion's images are conditioned on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.kinds import NAME
from peftjax.models.clip_layers import ClipEncoder
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
  Table,
  fields_for,
)
from peftjax.models.family import ENCODER, Architecture, Family, check_heads, token_inputs
from peftjax.models.layers import Runtime, activation, padding_mask
from peftjax.sites import HasSites, Stream

_LEGACY_END = 2
"""What config.json called the end of a text before it was corrected; the end is then the largest id of a sequence."""


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
  """The fields of config.json, or of its `text_config`, that shape the tower."""

  vocab_size: int = 49408
  hidden_size: int = 512
  intermediate_size: int = 2048
  projection_dim: int = 512
  num_hidden_layers: int = 12
  num_attention_heads: int = 8
  max_position_embeddings: int = 77
  hidden_act: str = "quick_gelu"
  layer_norm_eps: float = 1e-5
  attention_dropout: float = 0.0
  eos_token_id: int = 49407
  is_causal: ClassVar[bool] = True

  @property
  def position_rows(self) -> int:
    """The positions that may be given."""
    return self.max_position_embeddings


class ClipTextEmbeddings(nn.Module):
  """Tokens with their positions."""

  config: ClipTextConfig
  runtime: Runtime

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.token_embedding = runtime.embed(config.vocab_size, config.hidden_size)
    self.position_embedding = runtime.embed(config.max_position_embeddings, config.hidden_size)

  def __call__(self, embeds: jax.Array, position_ids: jax.Array) -> jax.Array:
    return embeds + self.position_embedding(position_ids)


TOKENS = Stream(
  ids="input_ids",
  mask="attention_mask",
  positions="position_ids",
  outputs={"last_hidden_state": 1, "hidden_states": 2},
)


class ClipTextModel(nn.Module, HasSites):
  """The tower; a token sees itself and those before it.

  Inputs: input_ids int[B, L]; attention_mask int[B, L], 1 for tokens, which Stable Diffusion leaves out;
  position_ids int[B, L].
  Outputs: "last_hidden_state" [B, L, hidden], normalised; "pooler_output" [B, hidden], that at the text's end;
  "hidden_states" are not normalised.
  """

  config: ClipTextConfig
  runtime: Runtime
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (TOKENS,)

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.embeddings, self.encoder = ClipTextEmbeddings(config, runtime), ClipEncoder(config, runtime)
    self.final_layer_norm = runtime.layer_norm(config.layer_norm_eps)

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the word embeddings stand in the tree."""
    return ("embeddings", "token_embedding")

  @property
  def position_limit(self) -> int:
    """How many tokens have a learned position."""
    return self.config.max_position_embeddings

  def __call__(
    self, input_ids: jax.Array, attention_mask: jax.Array | None = None, position_ids: jax.Array | None = None
  ) -> dict[str, jax.Array]:
    return self.pooled(self.from_embeds(self.embed(input_ids), attention_mask, position_ids), input_ids)

  def embed(self, input_ids: jax.Array) -> jax.Array:
    """Word embeddings alone, [B, L, hidden]."""
    return self.embeddings.token_embedding(input_ids)

  def default_positions(self, inputs: Mapping[str, Any]) -> jax.Array:
    """int[B, L] that `from_embeds` counts for these inputs of its own."""
    batch, length = inputs["embeds"].shape[:2]
    check_length(length, self.position_limit)
    return jnp.broadcast_to(jnp.arange(length), (batch, length))

  def from_embeds(
    self, embeds: jax.Array, attention_mask: jax.Array | None = None, position_ids: jax.Array | None = None
  ) -> dict[str, jax.Array]:
    """The model after its word embeddings; without `position_ids` they follow the sequence."""
    length = embeds.shape[1]
    if position_ids is None:
      position_ids = self.default_positions({"embeds": embeds})
    mask = jnp.tril(jnp.ones((length, length), bool))[None, None]
    if attention_mask is not None:
      mask = mask & padding_mask(attention_mask)
    embedded = self.embeddings(embeds, position_ids)
    hidden, layers = self.encoder(embedded, mask)
    outputs = {"last_hidden_state": self.final_layer_norm(hidden)}
    if layers is not None:
      outputs["hidden_states"] = jnp.concatenate([embedded[None], layers])
    return outputs

  def pooled(self, outputs: dict[str, jax.Array], input_ids: jax.Array) -> dict[str, jax.Array]:
    """The outputs with "pooler_output"."""
    end = self.config.eos_token_id
    at = jnp.argmax(input_ids if end == _LEGACY_END else input_ids == end, axis=1)
    read = jnp.take_along_axis(outputs["last_hidden_state"], at[:, None, None], axis=1)
    return {**outputs, "pooler_output": read[:, 0]}


class ClipTextModelWithProjection(nn.Module, HasSites):
  """The tower with "text_embeds" [B, projection_dim], which CLIP compares with those of images."""

  config: ClipTextConfig
  runtime: Runtime
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (TOKENS,)

  def setup(self) -> None:
    self.text_model = ClipTextModel(self.config, self.runtime)
    self.text_projection = self.runtime.dense(self.config.projection_dim, use_bias=False)

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the word embeddings stand in the tree."""
    return ("text_model", "embeddings", "token_embedding")

  @property
  def position_limit(self) -> int:
    """How many tokens have a learned position."""
    return self.config.max_position_embeddings

  def __call__(
    self, input_ids: jax.Array, attention_mask: jax.Array | None = None, position_ids: jax.Array | None = None
  ) -> dict[str, jax.Array]:
    outputs = self.from_embeds(self.text_model.embed(input_ids), attention_mask, position_ids)
    outputs = self.text_model.pooled(outputs, input_ids)
    return {**outputs, "text_embeds": self.text_projection(outputs["pooler_output"])}

  def default_positions(self, inputs: Mapping[str, Any]) -> jax.Array:
    """int[B, L] that `from_embeds` counts for these inputs of its own."""
    return self.text_model.default_positions(inputs)

  def from_embeds(
    self, embeds: jax.Array, attention_mask: jax.Array | None = None, position_ids: jax.Array | None = None
  ) -> dict[str, jax.Array]:
    """The tower after its word embeddings; where a prompt enters."""
    return self.text_model.from_embeds(embeds, attention_mask, position_ids)


# Checkpoints ------------------------------------------------------------------------------------------------------

TEXT_TABLE = COMMON | Table(
  read={
    "vocab_size": Field(VOCABULARY, 49408),
    "hidden_size": Field(FEATURES, 512),
    "intermediate_size": Field(FEATURES, 2048),
    "projection_dim": Field(FEATURES, 512),
    "num_hidden_layers": Field(LAYERS, 12),
    "num_attention_heads": Field(HEADS, 8),
    "max_position_embeddings": Field(POSITIONS, 77),
    "hidden_act": Field(NAME, "quick_gelu"),
    "layer_norm_eps": Field(EPSILON, 1e-5),
    "attention_dropout": Field(RATE, 0.0),
    "pad_token_id": Field(ANY_ID.or_null, 1),
    "bos_token_id": Field(IDS.or_null, 49406),
    "eos_token_id": Field(ANY_ID, 49407),
  },
  # Of how transformers draws weights, and of the other tower.
  ignored=frozenset(
    {
      "initializer_factor",
      "num_channels",
      "image_size",
      "patch_size",
      "text_config",
      "vision_config",
      "logit_scale_init_value",
    }
  ),
)


def parse(hf_config: Mapping[str, Any]) -> ClipTextConfig:
  """The config of a config.json of the tower.

  Raises:
    UserError: a field of another type or out of range, or sizes that do not fit together.
  """
  config = ClipTextConfig(**fields_for(TEXT_TABLE.values(hf_config), ClipTextConfig))
  check_heads(config.hidden_size, config.num_attention_heads)
  activation(config.hidden_act)
  return config


CLIP_TEXT = Family(
  model_types=("clip_text_model",),
  table=TEXT_TABLE,
  parse=parse,
  architectures={
    "CLIPTextModel": Architecture(ClipTextModel, ENCODER),
    "CLIPTextModelWithProjection": Architecture(ClipTextModelWithProjection, ENCODER, "text_model"),
  },
  stacks=lambda config: {"encoder.layers": config.num_hidden_layers},
  inputs=lambda config: token_inputs(min(4, config.max_position_embeddings)),
  unused=(r"vision_model\..*", r"visual_projection\.weight", r"text_projection\.weight", r"logit_scale",
          r"(.*\.)?position_ids"),
)  # fmt: skip
