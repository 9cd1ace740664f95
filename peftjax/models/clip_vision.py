"""CLIP's image tower (Radford et al. 2021, arXiv 2103.00020): features, image embeddings, classes of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.errors import UserError
from peftjax.kinds import NAME, whole
from peftjax.models.clip_layers import ClipEncoder
from peftjax.models.config_fields import COMMON, EPSILON, FEATURES, HEADS, LAYERS, RATE, Field, Table, fields_for
from peftjax.models.family import ENCODER, IMAGE_CLASSIFICATION, Architecture, Family, check_heads
from peftjax.models.layers import Runtime, activation
from peftjax.models.resampling import bicubic
from peftjax.models.vit import PATCHES, check_pixels
from peftjax.models.vit_config import PIXELS, Size, check_grid
from peftjax.sites import HasSites


@dataclasses.dataclass(frozen=True)
class ClipVisionConfig:
  """The fields of config.json, or of its `vision_config`, that shape the tower; sizes are (height, width) in pixels."""

  hidden_size: int = 768
  intermediate_size: int = 3072
  projection_dim: int = 512
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  num_channels: int = 3
  image_size: Size = (224, 224)
  patch_size: Size = (32, 32)
  hidden_act: str = "quick_gelu"
  layer_norm_eps: float = 1e-5
  attention_dropout: float = 0.0
  num_labels: int = 2
  is_causal: ClassVar[bool] = False

  @property
  def grid(self) -> Size:
    """Patches along the height and the width of an image of the size that positions were learned for."""
    return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]


class ClipEmbeddings(nn.Module):
  """The class's vector and the patches', with their positions."""

  config: ClipVisionConfig
  runtime: Runtime

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    dtypes = {"dtype": runtime.compute_dtype, "param_dtype": runtime.dtype}
    strides = config.patch_size
    self.patch_embedding = nn.Conv(
      config.hidden_size, strides, strides=strides, padding="VALID", use_bias=False, **dtypes
    )
    self.class_embedding = self.param(
      "class_embedding", nn.initializers.normal(0.02), (config.hidden_size,), runtime.dtype
    )
    rows, columns = config.grid
    self.position_embedding = runtime.embed(rows * columns + 1, config.hidden_size)

  def __call__(self, pixel_values: jax.Array) -> jax.Array:
    x = self.patch_embedding(pixel_values.transpose(0, 2, 3, 1))
    batch, rows, columns, hidden = x.shape
    first = jnp.broadcast_to(self.class_embedding.astype(x.dtype), (batch, 1, hidden))
    x = jnp.concatenate([first, x.reshape(batch, rows * columns, hidden)], axis=1)
    places = self.position_embedding(jnp.arange(self.position_embedding.num_embeddings))
    if (rows, columns) != self.config.grid:
      patches = bicubic(places[1:].reshape(*self.config.grid, hidden), rows, columns).reshape(-1, hidden)
      places = jnp.concatenate([places[:1], patches.astype(places.dtype)])
    return x + places[None].astype(x.dtype)


class ClipVisionModel(nn.Module, HasSites):
  """The tower.

  Inputs: pixel_values [B, channels, H, W], of any size: positions are resampled for another than `image_size`.
  Outputs: "last_hidden_state" [B, tokens, hidden], the class token first; "pooler_output" [B, hidden], that token
  normalised.
  """

  config: ClipVisionConfig
  runtime: Runtime
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (PATCHES,)

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.embeddings, self.encoder = ClipEmbeddings(config, runtime), ClipEncoder(config, runtime)
    self.pre_layrnorm, self.post_layernorm = (runtime.layer_norm(config.layer_norm_eps) for _ in range(2))

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the matrix that embeds patches stands in the tree."""
    return ("embeddings", "patch_embedding")

  def __call__(self, pixel_values: jax.Array) -> dict[str, jax.Array]:
    return self.pooled(self.from_embeds(self.embed(pixel_values)))

  def embed(self, pixel_values: jax.Array) -> jax.Array:
    """[B, tokens, hidden]: what the first layer reads."""
    check_pixels(pixel_values, self.config)
    embedded: jax.Array = self.pre_layrnorm(self.embeddings(pixel_values))
    return embedded

  def from_embeds(self, embeds: jax.Array) -> dict[str, jax.Array]:
    """The layers; where a prompt enters, behind the class token, without a position."""
    hidden, layers = self.encoder(embeds)
    outputs = {"last_hidden_state": hidden}
    if layers is not None:
      outputs["hidden_states"] = jnp.concatenate([embeds[None], layers])
    return outputs

  def pooled(self, outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The outputs with "pooler_output"."""
    return {**outputs, "pooler_output": self.post_layernorm(outputs["last_hidden_state"][:, 0])}


class ClipWithHead(nn.Module, HasSites):
  """The tower under its Hugging Face name and what is computed from its outputs."""

  config: ClipVisionConfig
  runtime: Runtime
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (PATCHES,)

  def setup(self) -> None:
    self.vision_model = ClipVisionModel(self.config, self.runtime)
    self.add_head()

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the matrix that embeds patches stands in the tree."""
    return ("vision_model", "embeddings", "patch_embedding")

  def __call__(self, pixel_values: jax.Array) -> dict[str, jax.Array]:
    outputs = self.vision_model.pooled(self.from_embeds(self.vision_model.embed(pixel_values)))
    return {**outputs, **self.head(outputs)}

  def from_embeds(self, embeds: jax.Array) -> dict[str, jax.Array]:
    """The tower's layers; where a prompt enters."""
    return self.vision_model.from_embeds(embeds)


class ClipVisionModelWithProjection(ClipWithHead):
  """ "image_embeds" [B, projection_dim], which CLIP compares with those of texts."""

  def add_head(self) -> None:
    """Creates the projection."""
    self.visual_projection = self.runtime.dense(self.config.projection_dim, use_bias=False)

  def head(self, outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The projected class token."""
    return {"image_embeds": self.visual_projection(outputs["pooler_output"])}


class ClipForImageClassification(ClipWithHead):
  """One label an image: "logits" [B, labels], from the mean of the patches."""

  def add_head(self) -> None:
    """Creates the classifier."""
    self.classifier = self.runtime.dense(self.config.num_labels)

  def head(self, outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """{"logits": [B, labels]}, of the mean over the patches' last hidden states, without the class embedding."""
    return {"logits": self.classifier(outputs["last_hidden_state"][:, 1:].mean(axis=1))}


# Checkpoints ------------------------------------------------------------------------------------------------------

VISION_TABLE = COMMON | Table(
  read={
    "hidden_size": Field(FEATURES, 768),
    "intermediate_size": Field(FEATURES, 3072),
    "projection_dim": Field(FEATURES, 512),
    "num_hidden_layers": Field(LAYERS, 12),
    "num_attention_heads": Field(HEADS, 12),
    "num_channels": Field(whole(1, 4096), 3),
    "image_size": Field(PIXELS, 224),
    "patch_size": Field(PIXELS, 32),
    "hidden_act": Field(NAME, "quick_gelu"),
    "layer_norm_eps": Field(EPSILON, 1e-5),
    "attention_dropout": Field(RATE, 0.0),
  },
  # Of how transformers draws weights, of the other tower, and of masks, which an encoder of patches has none of.
  ignored=frozenset(
    {
      "initializer_factor",
      "is_causal",
      "vocab_size",
      "max_position_embeddings",
      "text_config",
      "vision_config",
      "logit_scale_init_value",
    }
  ),
)


def parse(hf_config: Mapping[str, Any]) -> ClipVisionConfig:
  """The config of a config.json of the tower.

  Raises:
    UserError: a field of another type or out of range, or sizes that do not fit together.
  """
  given = VISION_TABLE.values(hf_config)
  given |= {name: PIXELS(given[name]) for name in ("image_size", "patch_size")}
  config = ClipVisionConfig(**fields_for(given, ClipVisionConfig))
  check_heads(config.hidden_size, config.num_attention_heads)
  activation(config.hidden_act)
  check_grid(config.image_size, config.patch_size)
  if config.image_size[0] != config.image_size[1]:
    raise UserError(f"config.json: image_size={list(config.image_size)}: CLIP's pictures are squares")
  return config


def inputs(config: ClipVisionConfig) -> dict[str, Any]:
  """Example inputs: a picture of the size that positions were learned for."""
  return {"pixel_values": jax.ShapeDtypeStruct((1, config.num_channels, *config.image_size), jnp.float32)}


_READS = ("pixel_values",)
CLASSES = {
  "CLIPVisionModelWithProjection": Architecture(ClipVisionModelWithProjection, ENCODER, "vision_model", reads=_READS),
  "CLIPForImageClassification": Architecture(
    ClipForImageClassification, IMAGE_CLASSIFICATION, "vision_model", ("classifier",), _READS
  ),
}
UNUSED = (
  r"text_model\..*",
  r"text_projection\.weight",
  r"visual_projection\.weight",
  r"logit_scale",
  r"classifier\..*",
  r"(.*\.)?position_ids",
)


def stacks(config: ClipVisionConfig) -> dict[str, int]:
  """The tower's layers, below it."""
  return {"encoder.layers": config.num_hidden_layers}


CLIP_VISION = Family(
  model_types=("clip_vision_model",),
  table=VISION_TABLE,
  parse=parse,
  architectures={"CLIPVisionModel": Architecture(ClipVisionModel, ENCODER), **CLASSES},
  stacks=stacks,
  inputs=inputs,
  unused=UNUSED,
)
