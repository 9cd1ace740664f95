"""DETR (Carion et al. 2020, arXiv 2005.12872): a ResNet's features go through an encoder; of a decoder's queries, which
see them, every one becomes a class and a box.

Names are those of the checkpoints, which transformers' modules had until version 5.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from peftjax.errors import UserError
from peftjax.models.detection import BoxHead
from peftjax.models.detr_config import SINE, TABLE, DetrConfig, parse
from peftjax.models.family import ENCODER, OBJECT_DETECTION, Architecture, Family
from peftjax.models.layers import Dropout, Runtime, activation, attend, padding_mask, stack_of
from peftjax.models.resnet import ResNet
from peftjax.sites import HasSites, Stream

_EPSILON = 1e-5
_LEARNED = 50  # rows and columns of features that learned positions reach
FEATURES = Stream(
  mask="attention_mask",
  along={"places": 0},
  outputs={"encoder_last_hidden_state": 1, "encoder_hidden_states": 2},
  within="encoder",
)
QUERIES = Stream(embeds="queries", outputs={"last_hidden_state": 1, "hidden_states": 2}, within="decoder")


class SinePositions(nn.Module):
  """Sines and cosines of the place along height and width, each as a share of the picture's (section A.4)."""

  features: int

  def __call__(self, mask: jax.Array) -> jax.Array:
    """[B, h, w, 2 features] from the mask bool[B, h, w] of features in the picture."""
    shares = [jnp.cumsum(mask.astype(jnp.float32), axis=axis) for axis in (1, 2)]
    ends = (shares[0][:, -1:], shares[1][:, :, -1:])
    scale = 10000.0 ** (2 * (np.arange(self.features) // 2) / self.features)
    angles = [share[..., None] / (end[..., None] + 1e-6) * 2 * math.pi / scale for share, end in zip(shares, ends)]
    waves = [jnp.stack([jnp.sin(one[..., 0::2]), jnp.cos(one[..., 1::2])], axis=-1) for one in angles]
    return jnp.concatenate([one.reshape(*mask.shape, -1) for one in waves], axis=-1)


class LearnedPositions(nn.Module):
  """A vector for every row and every column of features."""

  features: int
  runtime: Runtime

  def setup(self) -> None:
    self.row_embeddings = self.runtime.embed(_LEARNED, self.features)
    self.column_embeddings = self.runtime.embed(_LEARNED, self.features)

  def __call__(self, mask: jax.Array) -> jax.Array:
    """[B, h, w, 2 features]."""
    rows, columns = mask.shape[1:]
    if max(rows, columns) > _LEARNED:
      raise UserError(f"pixel_values: {rows} x {columns} features; learned positions reach {_LEARNED}")
    across = jnp.broadcast_to(self.column_embeddings(jnp.arange(columns))[None], (rows, columns, self.features))
    down = jnp.broadcast_to(self.row_embeddings(jnp.arange(rows))[:, None], (rows, columns, self.features))
    return jnp.broadcast_to(jnp.concatenate([across, down], axis=-1), (*mask.shape, 2 * self.features))


class Attention(nn.Module, HasSites):
  """Multi-head attention whose queries and keys know their places, and whose values do not."""

  config: DetrConfig
  runtime: Runtime
  heads: int
  sites: ClassVar = {"attend": "attention"}

  def setup(self) -> None:
    self.q_proj, self.k_proj, self.v_proj, self.out_proj = (self.runtime.dense(self.config.d_model) for _ in range(4))

  def __call__(self, queries: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array | None) -> jax.Array:
    q, k, v = (
      layer(x).reshape(*x.shape[:2], self.heads, -1)
      for layer, x in ((self.q_proj, queries), (self.k_proj, keys), (self.v_proj, values))
    )
    return self.out_proj(self.attend(q, k, v, mask).reshape(*queries.shape[:2], -1))

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """[B, L, H, D] from queries [B, L, H, D], keys and values [B, S, H, D]."""
    return attend(self, q, k, v, mask, self.config.attention_dropout)


class SharedNorm(nn.Module, HasSites):
  """Layer normalisation whose leaves other modules may read: what stands behind the decoder, and between its layers."""

  features: int
  runtime: Runtime
  sites: ClassVar = {"__call__": "norm"}

  def setup(self) -> None:
    self.scale = self.param("scale", nn.initializers.ones, (self.features,), self.runtime.dtype)
    self.bias = self.param("bias", nn.initializers.zeros, (self.features,), self.runtime.dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    return normalised(x, self.scale, self.bias)


def normalised(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
  """Layer normalisation with statistics in float32, in x's dtype."""
  wide = x.astype(jnp.float32)
  centred = wide - wide.mean(axis=-1, keepdims=True)
  unit = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + _EPSILON)
  return (unit * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


class EncoderLayer(nn.Module, HasSites):
  """x ← LN(x + attention(x)); x ← LN(x + mlp(x))."""

  config: DetrConfig
  runtime: Runtime
  sites: ClassVar = {"attention_branch": "sublayer", "mlp_branch": "sublayer", "__call__": "block"}

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.self_attn = Attention(config, runtime, config.encoder_attention_heads)
    self.self_attn_layer_norm, self.final_layer_norm = (runtime.layer_norm(_EPSILON) for _ in range(2))
    self.fc1, self.fc2 = runtime.dense(config.encoder_ffn_dim), runtime.dense(config.d_model)
    self.dropout = Dropout(runtime.rate(config.dropout))
    self.activation_dropout = Dropout(runtime.rate(config.activation_dropout))

  def attention_branch(self, x: jax.Array, frame: dict[str, Any]) -> jax.Array:
    """The attention sublayer, without its residual sum."""
    placed = x + frame["places"].astype(x.dtype)
    return self.dropout(self.self_attn(placed, placed, x, frame["mask"]))

  def mlp_branch(self, x: jax.Array) -> jax.Array:
    """The feed-forward sublayer, without its residual sum."""
    inner = self.activation_dropout(activation(self.config.activation_function)(self.fc1(x)))
    return self.dropout(self.fc2(inner))

  def __call__(self, x: jax.Array, frame: dict[str, Any]) -> tuple[jax.Array, jax.Array | None]:
    x = self.self_attn_layer_norm(x + self.attention_branch(x, frame))
    x = self.final_layer_norm(x + self.mlp_branch(x))
    return x, x if self.runtime.output_hidden_states else None


class DecoderLayer(nn.Module, HasSites):
  """Queries attend to each other, then to the encoder's states; each sublayer is followed by its sum and its LN."""

  config: DetrConfig
  runtime: Runtime
  sites: ClassVar = {
    "attention_branch": "sublayer",
    "cross_branch": "sublayer",
    "mlp_branch": "sublayer",
    "__call__": "block",
  }

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    heads = config.decoder_attention_heads
    self.self_attn, self.encoder_attn = Attention(config, runtime, heads), Attention(config, runtime, heads)
    self.self_attn_layer_norm, self.encoder_attn_layer_norm = (runtime.layer_norm(_EPSILON) for _ in range(2))
    self.final_layer_norm = runtime.layer_norm(_EPSILON)
    self.fc1, self.fc2 = runtime.dense(config.decoder_ffn_dim), runtime.dense(config.d_model)
    self.dropout = Dropout(runtime.rate(config.dropout))
    self.activation_dropout = Dropout(runtime.rate(config.activation_dropout))

  def attention_branch(self, x: jax.Array, frame: dict[str, Any]) -> jax.Array:
    """Attention of the queries to each other, without its residual sum."""
    placed = x + frame["query_places"].astype(x.dtype)
    return self.dropout(self.self_attn(placed, placed, x, None))

  def cross_branch(self, x: jax.Array, frame: dict[str, Any]) -> jax.Array:
    """Attention of the queries to the encoder's states, without its residual sum."""
    encoded = frame["encoded"]
    placed = x + frame["query_places"].astype(x.dtype), encoded + frame["places"].astype(x.dtype)
    return self.dropout(self.encoder_attn(*placed, encoded, frame["mask"]))

  def mlp_branch(self, x: jax.Array) -> jax.Array:
    """The feed-forward sublayer, without its residual sum."""
    inner = self.activation_dropout(activation(self.config.activation_function)(self.fc1(x)))
    return self.dropout(self.fc2(inner))

  def __call__(self, x: jax.Array, frame: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array] | None]:
    x = self.self_attn_layer_norm(x + self.attention_branch(x, frame))
    x = self.encoder_attn_layer_norm(x + self.cross_branch(x, frame))
    x = self.final_layer_norm(x + self.mlp_branch(x))
    kept = {"own": x} if self.runtime.output_hidden_states else {}
    if "norm" in frame:  # what earlier layers predict from is also what the next layer reads, as in transformers
      x = normalised(x, *frame["norm"])
      kept["normalised"] = x
    return x, kept or None


class Encoder(nn.Module):
  """The encoder's layers."""

  config: DetrConfig
  runtime: Runtime

  def setup(self) -> None:
    self.layers = stack_of(EncoderLayer, (self.config, self.runtime), self.config.encoder_layers, self.runtime)
    self.dropout = Dropout(self.runtime.rate(self.config.dropout))

  def __call__(self, x: jax.Array, frame: dict[str, Any]) -> tuple[jax.Array, jax.Array | None]:
    return self.layers(self.dropout(x), frame)


class Decoder(nn.Module):
  """The decoder's layers and a normalisation behind the last; with auxiliary losses, behind each."""

  config: DetrConfig
  runtime: Runtime

  def setup(self) -> None:
    self.layers = stack_of(DecoderLayer, (self.config, self.runtime), self.config.decoder_layers, self.runtime)
    self.layernorm = SharedNorm(self.config.d_model, self.runtime)

  def __call__(self, x: jax.Array, frame: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    if self.config.auxiliary_loss:
      frame = {**frame, "norm": (self.layernorm.scale, self.layernorm.bias)}
    x, kept = self.layers(x, frame)
    return self.layernorm(x), kept or {}


class Backbone(nn.Module):
  """The ResNet under its name in checkpoints, conv_encoder.model."""

  config: DetrConfig
  runtime: Runtime

  def setup(self) -> None:
    self.conv_encoder = _Model(self.config, self.runtime)

  def __call__(self, pixel_values: jax.Array) -> jax.Array:
    return self.conv_encoder(pixel_values)


class _Model(nn.Module):
  config: DetrConfig
  runtime: Runtime

  def setup(self) -> None:
    self.model = ResNet(self.config.backbone, self.runtime)

  def __call__(self, pixel_values: jax.Array) -> jax.Array:
    return self.model(pixel_values)


class DetrModel(nn.Module, HasSites):
  """Backbone, encoder and decoder.

  Inputs: pixel_values [B, channels, H, W] as a processor gives them, of any size; pixel_mask [B, H, W], 1 in the
  picture and 0 where it is filled up, all 1 without.
  Outputs: "last_hidden_state" [B, queries, d_model] of the decoder, "encoder_last_hidden_state" [B, h w, d_model].
  """

  config: DetrConfig
  runtime: Runtime
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (FEATURES, QUERIES)

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    half = config.d_model // 2
    self.backbone = Backbone(config, runtime)
    is_sine = config.position_embedding_type == SINE
    self.position_embedding = SinePositions(half) if is_sine else LearnedPositions(half, runtime)
    self.query_position_embeddings = runtime.embed(config.num_queries, config.d_model)
    self.input_projection = nn.Conv(
      config.d_model, (1, 1), dtype=runtime.compute_dtype, param_dtype=runtime.dtype
    )  # fmt: skip
    self.encoder, self.decoder = Encoder(config, runtime), Decoder(config, runtime)

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the matrix that embeds features stands in the tree."""
    return ("input_projection",)

  def __call__(self, pixel_values: jax.Array, pixel_mask: jax.Array | None = None) -> dict[str, jax.Array]:
    return self.from_embeds(**self.embed(pixel_values, pixel_mask))

  def embed(self, pixel_values: jax.Array, pixel_mask: jax.Array | None = None) -> dict[str, jax.Array]:
    """The arguments of `from_embeds`."""
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != self.config.num_channels:
      expected = f"[batch, {self.config.num_channels}, height, width]"
      raise UserError(f"pixel_values: shape {list(shape)}; expected {expected}")
    found = self.backbone(pixel_values)
    batch, rows, columns, _ = found.shape
    if pixel_mask is None:
      mask = jnp.ones((batch, rows, columns), bool)
    else:
      at = [nearest(old, new) for old, new in zip(shape[2:], (rows, columns))]
      mask = pixel_mask[:, at[0]][:, :, at[1]].astype(bool)
    embeds = self.input_projection(found).reshape(batch, rows * columns, -1)
    places = self.position_embedding(mask).reshape(batch, rows * columns, -1)
    queries = jnp.zeros((batch, self.config.num_queries, self.config.d_model), embeds.dtype)
    return {
      "embeds": embeds,
      "attention_mask": mask.reshape(batch, -1).astype(jnp.int32),
      "places": places.astype(embeds.dtype),
      "queries": queries,
    }

  def from_embeds(
    self, embeds: jax.Array, attention_mask: jax.Array, places: jax.Array, queries: jax.Array
  ) -> dict[str, jax.Array]:
    """Encoder and decoder after the backbone; where a prompt enters, before the features, without a place.

    Args:
      embeds: [B, S, d_model], features.
      attention_mask: [B, S], 1 for features in the picture.
      places: [B, S, d_model], their positions.
      queries: [B, queries, d_model], zeros.
    """
    frame = {"places": places, "mask": padding_mask(attention_mask)}
    encoded, encoder_layers = self.encoder(embeds, frame)
    table = self.query_position_embeddings(jnp.arange(self.config.num_queries))
    frame |= {"encoded": encoded, "query_places": jnp.broadcast_to(table, (len(embeds), *table.shape))}
    hidden, kept = self.decoder(queries, frame)
    outputs = {"last_hidden_state": hidden, "encoder_last_hidden_state": encoded}
    if encoder_layers is not None:
      outputs["encoder_hidden_states"] = jnp.concatenate([embeds[None], encoder_layers])
      outputs["hidden_states"] = jnp.concatenate([queries[None], kept["own"][:-1], hidden[None]])
    if "normalised" in kept:
      outputs["intermediate_hidden_states"] = kept["normalised"]
    return outputs


def nearest(old: int, new: int) -> np.ndarray:
  """int[new]: which of `old` places each of `new` takes, as torch's nearest interpolation does."""
  scale = np.float32(old) / np.float32(new)
  return np.minimum(np.floor(np.arange(new, dtype=np.float32) * scale).astype(int), old - 1)


class DetrForObjectDetection(nn.Module, HasSites):
  """Objects of images, one for each query: "logits" [B, queries, labels + 1], the last for none, and "pred_boxes"
  [B, queries, 4] (see `BoxHead`), beside the model's outputs.

  With config.json's `auxiliary_loss` those of the decoder's earlier layers, too: "auxiliary_logits" and
  "auxiliary_boxes" [layers - 1, B, queries, ...].
  """

  config: DetrConfig
  runtime: Runtime
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (FEATURES, QUERIES)

  def setup(self) -> None:
    self.model = DetrModel(self.config, self.runtime)
    self.class_labels_classifier = self.runtime.dense(self.config.num_labels + 1)
    self.bbox_predictor = BoxHead(self.config.d_model, 4, self.runtime)

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the matrix that embeds features stands in the tree."""
    return ("model", "input_projection")

  def __call__(self, pixel_values: jax.Array, pixel_mask: jax.Array | None = None) -> dict[str, jax.Array]:
    outputs = self.from_embeds(**self.model.embed(pixel_values, pixel_mask))
    logits, boxes = self.objects(outputs["last_hidden_state"])
    outputs |= {"logits": logits, "pred_boxes": boxes}
    if "intermediate_hidden_states" in outputs:
      logits, boxes = self.objects(outputs["intermediate_hidden_states"][:-1])
      outputs |= {"auxiliary_logits": logits, "auxiliary_boxes": boxes}
    return outputs

  def objects(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits and boxes of states [..., d_model]."""
    return self.class_labels_classifier(hidden), nn.sigmoid(self.bbox_predictor(hidden).astype(jnp.float32))

  def from_embeds(
    self, embeds: jax.Array, attention_mask: jax.Array, places: jax.Array, queries: jax.Array
  ) -> dict[str, jax.Array]:
    """Encoder and decoder after the backbone; where a prompt enters."""
    return self.model.from_embeds(embeds, attention_mask, places, queries)


# Checkpoints ------------------------------------------------------------------------------------------------------

_SIDE = 64  # pixels of the example that a model is traced with


def _inputs(config: DetrConfig) -> dict[str, Any]:
  pixels = jax.ShapeDtypeStruct((1, config.num_channels, _SIDE, _SIDE), jnp.float32)
  return {"pixel_values": pixels, "pixel_mask": jax.ShapeDtypeStruct((1, _SIDE, _SIDE), jnp.int32)}


DETR = Family(
  model_types=("detr",),
  table=TABLE,
  parse=parse,
  architectures={
    "DetrModel": Architecture(DetrModel, ENCODER),
    "DetrForObjectDetection": Architecture(
      DetrForObjectDetection, OBJECT_DETECTION, "model", ("class_labels_classifier", "bbox_predictor")
    ),
  },
  stacks=lambda config: {"encoder.layers": config.encoder_layers, "decoder.layers": config.decoder_layers},
  inputs=_inputs,
  renamed_modules=(
    (r"(.*)\bbackbone\.conv_encoder\b(.*)", r"\1backbone\2"),
    (r"(.*)\bout_proj\b(.*)", r"\1o_proj\2"),
    (r"(.*\.\d+)\.(fc\d)\b(.*)", r"\1.mlp.\2\3"),
  ),
  unused=(r"(class_labels_classifier|bbox_predictor)\..*",),
)
