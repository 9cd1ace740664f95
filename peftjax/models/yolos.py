"""YOLOS (Fang et al. 2021, arXiv 2106.00666): a ViT whose last tokens, one an object, become classes and boxes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.errors import UserError
from peftjax.kinds import FLAG, whole
from peftjax.models import vit_config
from peftjax.models.config_fields import Field, fields_for
from peftjax.models.detection import LOSS_FIELDS, BoxHead
from peftjax.models.family import ENCODER, OBJECT_DETECTION, Architecture, Family, check_heads
from peftjax.models.layers import Runtime, activation, stack_of
from peftjax.models.resampling import bicubic
from peftjax.models.vit import PATCHES, Embeddings, Pooler, ViTLayer, check_pixels
from peftjax.models.vit_config import PIXELS, VIT_TABLE, ViTConfig, check_grid
from peftjax.sites import HasSites


@dataclasses.dataclass(frozen=True)
class YolosConfig(ViTConfig):
  """A ViT's config; `num_detection_tokens` objects at most are found in an image."""

  num_detection_tokens: int = 100
  use_mid_position_embeddings: bool = True

  @property
  def positions(self) -> int:
    """Tokens of an image of `image_size`: the class's, the patches and those of detection."""
    rows, columns = self.grid
    return 1 + rows * columns + self.num_detection_tokens


def resampled(table: jax.Array, config: YolosConfig, rows: int, columns: int) -> jax.Array:
  """Positions [..., tokens, hidden] of class, patches and detection tokens, those of patches resampled to a grid."""
  if (rows, columns) == config.grid:
    return table
  last = table.shape[-2] - config.num_detection_tokens
  grids = jnp.moveaxis(table[..., 1:last, :].reshape(-1, *config.grid, table.shape[-1]), 0, -1)
  patches = bicubic(grids.reshape(*config.grid, -1), rows, columns).reshape(rows * columns, *grids.shape[-2:])
  patches = jnp.moveaxis(patches, -1, 0).reshape(*table.shape[:-2], rows * columns, -1).astype(table.dtype)
  return jnp.concatenate([table[..., :1, :], patches, table[..., last:, :]], axis=-2)


class YolosEmbeddings(Embeddings):
  """Patches between a class token and the detection tokens, with their positions."""

  config: YolosConfig

  def add_tokens(self) -> None:
    """Creates the class token, the detection tokens and the positions of both and of the patches."""
    self.cls_token = self.vectors("cls_token", 1)
    self.detection_tokens = self.vectors("detection_tokens", self.config.num_detection_tokens)
    self.position_embeddings = self.vectors("position_embeddings", self.config.positions)

  def __call__(self, pixel_values: jax.Array, bool_masked_pos: jax.Array | None = None) -> jax.Array:
    del bool_masked_pos  # there is no mask token
    x = self.patch_embeddings(pixel_values)
    batch, rows, columns, hidden = x.shape
    x = x.reshape(batch, rows * columns, hidden)
    x = jnp.concatenate([self.spread(self.cls_token, x), x, self.spread(self.detection_tokens, x)], axis=1)
    return self.dropout(x + resampled(self.position_embeddings, self.config, rows, columns).astype(x.dtype))


class YolosLayer(ViTLayer):
  """A ViT's layer, behind which the positions are added again."""

  def __call__(  # type: ignore[override]
    self, x: jax.Array, middle: jax.Array, _: None = None
  ) -> tuple[jax.Array, jax.Array | None]:
    """The next states and this layer's own; `middle` [tokens, hidden] is 0 in the last layer.

    A prompt behind the class token has no position here either.
    """
    x = x + self.attention_branch(self.layernorm_before(x))
    own = x = x + self.mlp_branch(self.layernorm_after(x))
    prompts = x.shape[1] - middle.shape[0]
    middle = jnp.concatenate([middle[:1], jnp.zeros((prompts, middle.shape[1]), middle.dtype), middle[1:]])
    return x + middle.astype(x.dtype), own if self.runtime.output_hidden_states else None


class YolosEncoder(nn.Module):
  """The stack of layers; where the config asks for it, behind every one but the last stand positions of its own."""

  config: YolosConfig
  runtime: Runtime

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    middle = config.use_mid_position_embeddings
    block = YolosLayer if middle else ViTLayer
    self.layer = stack_of(block, (config, runtime), config.num_hidden_layers, runtime, per_layer=middle)
    if middle:
      shape = (config.num_hidden_layers - 1, 1, config.positions, config.hidden_size)
      self.mid_position_embeddings = self.param(
        "mid_position_embeddings", nn.initializers.normal(0.02), shape, runtime.dtype
      )

  def __call__(self, x: jax.Array, grid: tuple[int, int]) -> tuple[jax.Array, jax.Array | None]:
    if not self.config.use_mid_position_embeddings:
      return self.layer(x)
    middle = resampled(self.mid_position_embeddings[:, 0], self.config, *grid)
    return self.layer(x, jnp.pad(middle, ((0, 1), (0, 0), (0, 0))), None)


class YolosModel(nn.Module, HasSites):
  """The encoder.

  Inputs: pixel_values [B, channels, H, W], of any size: positions are resampled for another than `image_size`.
  Outputs: "last_hidden_state" [B, 1 + patches + detection tokens, hidden], normalised; "pooler_output" [B, hidden].
  """

  config: YolosConfig
  runtime: Runtime
  add_pooling_layer: bool = True
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (PATCHES,)

  def setup(self) -> None:
    self.embeddings = YolosEmbeddings(self.config, self.runtime)
    self.encoder = YolosEncoder(self.config, self.runtime)
    self.layernorm = self.runtime.layer_norm(self.config.layer_norm_eps)
    if self.add_pooling_layer:
      self.pooler = Pooler(self.config, self.runtime)

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the matrix that embeds patches stands in the tree."""
    return ("embeddings", "patch_embeddings", "projection")

  def __call__(self, pixel_values: jax.Array) -> dict[str, jax.Array]:
    outputs = self.from_embeds(*self.embed(pixel_values))
    return {**outputs, "pooler_output": self.pooler(outputs["last_hidden_state"])}

  def embed(self, pixel_values: jax.Array) -> tuple[jax.Array, tuple[int, int]]:
    """[B, tokens, hidden] with positions, and the numbers of patches along height and width."""
    check_pixels(pixel_values, self.config)
    (rows, columns), (height, width) = self.config.patch_size, pixel_values.shape[2:]
    return self.embeddings(pixel_values), (height // rows, width // columns)

  def from_embeds(self, embeds: jax.Array, grid: tuple[int, int]) -> dict[str, jax.Array]:
    """The model after its embeddings; where a prompt enters, behind the class token."""
    hidden, layers = self.encoder(embeds, grid)
    outputs = {"last_hidden_state": self.layernorm(hidden)}
    return outputs if layers is None else {**outputs, "hidden_states": jnp.concatenate([embeds[None], layers])}


class YolosForObjectDetection(nn.Module, HasSites):
  """Objects of images, one for each of n detection tokens: "logits" [B, n, labels + 1], the last for none, and
  "pred_boxes" [B, n, 4] (see `BoxHead`), beside the encoder's outputs."""

  config: YolosConfig
  runtime: Runtime
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (PATCHES,)

  def setup(self) -> None:
    config = self.config
    self.vit = YolosModel(config, self.runtime, add_pooling_layer=False)
    self.class_labels_classifier = BoxHead(config.hidden_size, config.num_labels + 1, self.runtime)
    self.bbox_predictor = BoxHead(config.hidden_size, 4, self.runtime)

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the matrix that embeds patches stands in the tree."""
    return ("vit", "embeddings", "patch_embeddings", "projection")

  def __call__(self, pixel_values: jax.Array) -> dict[str, jax.Array]:
    outputs = self.from_embeds(*self.vit.embed(pixel_values))
    hidden = outputs["last_hidden_state"][:, -self.config.num_detection_tokens :]
    boxes = nn.sigmoid(self.bbox_predictor(hidden).astype(jnp.float32))
    return {**outputs, "logits": self.class_labels_classifier(hidden), "pred_boxes": boxes}

  def from_embeds(self, embeds: jax.Array, grid: tuple[int, int]) -> dict[str, jax.Array]:
    """The encoder after its embeddings; where a prompt enters."""
    return self.vit.from_embeds(embeds, grid)


# Checkpoints ------------------------------------------------------------------------------------------------------

_OF_VIT = ("head_dim", "pooler_output_size", "pooler_act")
TABLE = dataclasses.replace(
  VIT_TABLE,
  read={
    **{name: field for name, field in VIT_TABLE.read.items() if name not in _OF_VIT},
    "image_size": Field(PIXELS, (512, 864)),
    "num_detection_tokens": Field(whole(1, vit_config.MOST_PATCHES), 100),
    "use_mid_position_embeddings": Field(FLAG, True),
  },
  ignored=VIT_TABLE.ignored | LOSS_FIELDS | {"auxiliary_loss"},  # transformers computes no auxiliary loss of this one
)  # fmt: skip


def parse(hf_config: Mapping[str, Any]) -> YolosConfig:
  """The config of a config.json.

  Raises:
    UserError: a field of another type or out of range, or sizes that do not fit together.
  """
  given = TABLE.values(hf_config)
  given |= {name: PIXELS(given[name]) for name in ("image_size", "patch_size")}
  check_heads(given["hidden_size"], given["num_attention_heads"])
  given["head_dim"] = given["hidden_size"] // given["num_attention_heads"]
  config = YolosConfig(**fields_for(given, YolosConfig), model_type="yolos", pooler_output_size=given["hidden_size"])
  activation(config.hidden_act)
  check_grid(config.image_size, config.patch_size)
  height, width = config.image_size
  rows, columns = config.patch_size
  if config.use_mid_position_embeddings and (height % rows or width % columns or config.num_hidden_layers < 2):
    raise UserError(
      f"config.json: use_mid_position_embeddings=true: image_size={[height, width]} in patches of {[rows, columns]}, "
      f"{config.num_hidden_layers} layers; expected whole patches and at least 2 layers"
    )
  return config


YOLOS = Family(
  model_types=("yolos",),
  table=TABLE,
  parse=parse,
  architectures={
    "YolosModel": Architecture(YolosModel, ENCODER),
    "YolosForObjectDetection": Architecture(
      YolosForObjectDetection, OBJECT_DETECTION, "vit", ("class_labels_classifier", "bbox_predictor")
    ),
  },
  stacks=lambda config: {"encoder.layer": config.num_hidden_layers},
  inputs=lambda config: {
    "pixel_values": jax.ShapeDtypeStruct((1, config.num_channels, *config.image_size), jnp.float32)
  },
  unused=(
    r"(.*\.)?pooler\.dense\.(weight|bias)",
    r"(class_labels_classifier|bbox_predictor)\..*",
    r"(.*\.)?mid_position_embeddings",
  ),
)
