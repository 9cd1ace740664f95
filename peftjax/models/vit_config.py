"""What ViT, DeiT and DINOv2 read of config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from peftjax.errors import UserError
from peftjax.kinds import FLAG, NAME, Kind, Unfit, number, whole
from peftjax.models.config_fields import (
  COMMON,
  EPSILON,
  FEATURES,
  HEADS,
  LAYERS,
  RATE,
  REAL,
  Field,
  Table,
  fields_for,
)
from peftjax.models.layers import activation

MOST_PIXELS = 2**14
MOST_PATCHES = 2**20  # in an image
Size = tuple[int, int]
VIT, DEIT, DINOV2, REGISTERS = "vit", "deit", "dinov2", "dinov2_with_registers"


def _sides(value: Any) -> Size:
  sides = tuple(value) if isinstance(value, list | tuple) else (value, value)
  if len(sides) != 2 or not all(isinstance(one, int) and not isinstance(one, bool) for one in sides):
    raise Unfit("a whole number of pixels, or two")
  if not all(1 <= one <= MOST_PIXELS for one in sides):
    raise Unfit(f"1 to {MOST_PIXELS} pixels")
  return sides


PIXELS = Kind(_sides)


@dataclasses.dataclass(frozen=True)
class ViTConfig:
  """The fields of config.json that shape the model; names and defaults are Hugging Face's.

  `image_size` and `patch_size` are (height, width) in pixels.
  """

  hidden_size: int = 768
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  intermediate_size: int = 3072
  hidden_act: str = "gelu"
  hidden_dropout_prob: float = 0.0
  attention_probs_dropout_prob: float = 0.0
  layer_norm_eps: float = 1e-12
  image_size: Size = (224, 224)
  patch_size: Size = (16, 16)
  num_channels: int = 3
  qkv_bias: bool = True
  head_dim: int = 64
  pooler_output_size: int = 768
  pooler_act: str = "tanh"
  drop_path_rate: float = 0.0
  use_swiglu_ffn: bool = False
  use_mask_token: bool = False
  num_register_tokens: int = 0
  num_labels: int = 2
  model_type: str = VIT

  @property
  def is_dinov2(self) -> bool:
    """Whether residual branches are scaled and the head reads the mean of the patches, too."""
    return self.model_type in (DINOV2, REGISTERS)

  @property
  def grid(self) -> Size:
    """Patches along the height and the width of an image of the size that positions were learned for."""
    return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

  @property
  def class_tokens(self) -> int:
    """Tokens with a position before the patches': the class's and, in DeiT, that of distillation."""
    return 2 if self.model_type == DEIT else 1

  @property
  def swiglu_features(self) -> int:
    """Two thirds of the feed-forward network's features, up to a multiple of 8."""
    return (int(self.intermediate_size * 2 / 3) + 7) // 8 * 8


# What only other uses of the same config read: dense prediction by feature maps, masked image modelling.
_ELSEWHERE = frozenset({"out_features", "out_indices", "_out_features", "_out_indices", "stage_names",
                        "apply_layernorm", "reshape_hidden_states", "encoder_stride"})  # fmt: skip

VIT_TABLE = COMMON | Table(
  read={
    "hidden_size": Field(FEATURES, 768),
    "num_hidden_layers": Field(LAYERS, 12),
    "num_attention_heads": Field(HEADS, 12),
    "intermediate_size": Field(FEATURES, 3072),
    "hidden_act": Field(NAME, "gelu"),
    "hidden_dropout_prob": Field(RATE, 0.0),
    "attention_probs_dropout_prob": Field(RATE, 0.0),
    "layer_norm_eps": Field(EPSILON, 1e-12),
    "image_size": Field(PIXELS, 224),
    "patch_size": Field(PIXELS, 16),
    "num_channels": Field(whole(1, 4096), 3),
    "qkv_bias": Field(FLAG, True),
    "head_dim": Field(FEATURES.or_null),
    "pooler_output_size": Field(FEATURES.or_null),
    "pooler_act": Field(NAME, "tanh"),
  },
  ignored=frozenset({"encoder_stride", "is_causal"}),  # an encoder's masks are never
)
_DINO_READ = {name: field for name, field in VIT_TABLE.read.items()
              if name not in ("intermediate_size", "pooler_output_size", "pooler_act")}  # fmt: skip
DINOV2_TABLE = dataclasses.replace(
  VIT_TABLE,
  read={
    **_DINO_READ,
    "patch_size": Field(PIXELS, 14),
    "layer_norm_eps": Field(EPSILON, 1e-6),
    "mlp_ratio": Field(number(above=0.0, most=1024.0), 4),
    "layerscale_value": Field(REAL, 1.0),
    "drop_path_rate": Field(RATE, 0.0),
    "use_swiglu_ffn": Field(FLAG, False),
    "use_mask_token": Field(FLAG, True),
  },
  ignored=VIT_TABLE.ignored - {"encoder_stride"} | (_ELSEWHERE - {"encoder_stride"}),
)
REGISTERS_TABLE = dataclasses.replace(
  DINOV2_TABLE,
  read={
    **{name: field for name, field in DINOV2_TABLE.read.items() if name != "use_mask_token"},
    "patch_size": Field(PIXELS, 16),
    "num_register_tokens": Field(whole(0, 4096), 4),
  },
)
TABLES = {VIT: VIT_TABLE, DEIT: VIT_TABLE, DINOV2: DINOV2_TABLE, REGISTERS: REGISTERS_TABLE}


def parse(hf_config: Mapping[str, Any]) -> ViTConfig:
  """The config of a config.json.

  Raises:
    UserError: a field of another type or out of range, or sizes that do not fit together.
  """
  model_type = str(hf_config["model_type"])
  given = TABLES[model_type].values(hf_config)
  # Defaults are as config.json would write them; a number of pixels stands for both sides.
  given |= {name: PIXELS(given[name]) for name in ("image_size", "patch_size")}
  if "mlp_ratio" in given:
    given["intermediate_size"] = int(given["hidden_size"] * given["mlp_ratio"])
  if model_type == REGISTERS:
    given["use_mask_token"] = True  # its checkpoints always hold one
  if "pooler_output_size" in given:
    given["pooler_output_size"] = given["pooler_output_size"] or given["hidden_size"]
  given["head_dim"] = given["head_dim"] or given["hidden_size"] // given["num_attention_heads"]
  if not given["head_dim"]:
    raise UserError(
      f"config.json: {given['hidden_size']} hidden features are too few for {given['num_attention_heads']} heads"
    )
  config = ViTConfig(**fields_for(given, ViTConfig), model_type=model_type)
  if config.use_swiglu_ffn and not config.swiglu_features:
    raise UserError(
      f"config.json: {config.intermediate_size} features are too few for use_swiglu_ffn, which takes two thirds of them"
    )
  activation(config.hidden_act)
  activation(config.pooler_act)
  check_grid(config.image_size, config.patch_size)
  return config


def check_grid(image: Size, patch: Size) -> None:
  """Raises a `UserError` unless an image holds a number of patches that can be."""
  rows, columns = image[0] // patch[0], image[1] // patch[1]
  if not 1 <= rows * columns <= MOST_PATCHES:
    raise UserError(
      f"config.json: image_size={list(image)} holds {rows} x {columns} patches of {list(patch)} pixels; "
      f"expected 1 to {MOST_PATCHES}"
    )
