"""CLIP (Radford et al. 2021, arXiv 2103.00020): pictures and texts compared, from both towers or one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.errors import UserError
from peftjax.kinds import SETTINGS
from peftjax.models import clip_text, clip_vision
from peftjax.models.clip_text import ClipTextConfig, ClipTextModel
from peftjax.models.clip_vision import VISION_TABLE, ClipVisionConfig, ClipVisionModel
from peftjax.models.config_fields import COMMON, FEATURES, REAL, Field, Table, fields_for
from peftjax.models.family import Architecture, Family, token_inputs
from peftjax.models.layers import Runtime

IMAGE_TEXT = "image_text"


@dataclasses.dataclass(frozen=True)
class ClipConfig(ClipVisionConfig):
  """The image tower's config, and beside it the text tower's."""

  text: ClipTextConfig = dataclasses.field(default_factory=ClipTextConfig)

  @property
  def vocab_size(self) -> int:
    """The ids that the text tower embeds."""
    return self.text.vocab_size

  @property
  def position_rows(self) -> int:
    """The positions that may be given."""
    return self.text.position_rows


class ClipModel(nn.Module):
  """Both towers.

  Inputs: input_ids int[N, L], attention_mask, position_ids; pixel_values [M, channels, H, W]; or those of one tower.
  Outputs: float32 "text_embeds" [N, projection_dim] and "image_embeds" [M, projection_dim], each of length 1; of both
  towers "logits_per_image" [M, N], their products times the learned scale, and its transpose "logits_per_text".
  """

  config: ClipConfig
  runtime: Runtime

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.text_model, self.vision_model = ClipTextModel(config.text, runtime), ClipVisionModel(config, runtime)
    self.text_projection, self.visual_projection = (
      runtime.dense(config.projection_dim, use_bias=False),
      runtime.dense(config.projection_dim, use_bias=False),
    )
    self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), (), runtime.dtype)

  def __call__(
    self,
    input_ids: jax.Array | None = None,
    pixel_values: jax.Array | None = None,
    attention_mask: jax.Array | None = None,
    position_ids: jax.Array | None = None,
  ) -> dict[str, jax.Array]:
    if input_ids is None and pixel_values is None:
      raise UserError("CLIP takes input_ids, pixel_values, or both")
    outputs = {}
    if input_ids is not None:
      pooled = self.text_model(input_ids, attention_mask, position_ids)["pooler_output"]
      outputs["text_embeds"] = _of_length_1(self.text_projection(pooled))
    if pixel_values is not None:
      outputs["image_embeds"] = _of_length_1(self.visual_projection(self.vision_model(pixel_values)["pooler_output"]))
    if len(outputs) == 2:
      scale = jnp.exp(self.logit_scale.astype(jnp.float32))
      outputs["logits_per_text"] = scale * (outputs["text_embeds"] @ outputs["image_embeds"].T)
      outputs["logits_per_image"] = outputs["logits_per_text"].T
    return outputs


def _of_length_1(vectors: jax.Array) -> jax.Array:
  wide = vectors.astype(jnp.float32)
  return wide / jnp.linalg.norm(wide, axis=-1, keepdims=True)  # whose products a scale of up to 100 multiplies


# Checkpoints ------------------------------------------------------------------------------------------------------

_TOWERS = ("text_config", "vision_config")
CLIP_TABLE = COMMON | Table(
  read={
    **dict.fromkeys(_TOWERS, Field(SETTINGS.or_null)),
    "projection_dim": Field(FEATURES, 512),
    "initializer_factor": Field(REAL, 1.0),
  },
  ignored=(VISION_TABLE.ignored | VISION_TABLE.read.keys())
  - COMMON.read.keys()
  - {*_TOWERS, "projection_dim", "initializer_factor"},
)


def parse(hf_config: Mapping[str, Any]) -> ClipConfig:
  """The config of a config.json of both towers.

  Raises:
    UserError: a field of another type or out of range, or sizes that do not fit together.
  """
  both = CLIP_TABLE.values(hf_config)
  text, vision = (both[name] or {} for name in _TOWERS)
  towers = {"text": clip_text.parse({"model_type": "clip_text_model", **text}),
            "vision": clip_vision.parse({"model_type": "clip_vision_model", **vision})}  # fmt: skip
  own = {"projection_dim": both["projection_dim"], "num_labels": both["num_labels"], "text": towers["text"]}
  given = {field.name: getattr(towers["vision"], field.name) for field in dataclasses.fields(ClipVisionConfig)}
  return ClipConfig(**fields_for({**given, **own}, ClipConfig))


def _inputs(config: ClipConfig) -> dict[str, Any]:
  return {**token_inputs(min(4, config.text.max_position_embeddings)), **clip_vision.inputs(config)}


def _stacks(config: ClipConfig) -> dict[str, int]:
  return {
    "text_model.encoder.layers": config.text.num_hidden_layers,
    "vision_model.encoder.layers": config.num_hidden_layers,
  }


CLIP = Family(
  model_types=("clip",),
  table=CLIP_TABLE,
  parse=parse,
  architectures={
    **clip_vision.CLASSES,
    "CLIPModel": Architecture(ClipModel, IMAGE_TEXT, stacks=_stacks),
  },
  stacks=clip_vision.stacks,
  inputs=_inputs,
  unused=clip_vision.UNUSED,
)
