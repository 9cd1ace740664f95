"""What diffusers' UNet2DConditionModel reads of config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from peftjax.errors import UserError
from peftjax.kinds import FLAG, NAME, Kind, list_of, number, whole
from peftjax.models.config_fields import EPSILON, FEATURES, POSITIVE, RATE, Field, Only, Table, fields_for
from peftjax.models.diffusion_config import (
  CHANNELS,
  FEATURES_EACH,
  HEADS_EACH,
  LAYERS_EACH,
  MOST_IN_BLOCK,
  TABLE,
  TYPES,
  WIDTHS,
  WINDOW,
  check_groups,
  check_types,
  each,
  spread,
)
from peftjax.models.layers import activation
from peftjax.models.vit_config import Size

CROSS_DOWN, DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, UP = "CrossAttnUpBlock2D", "UpBlock2D"
CROSS_MID, MID = "UNetMidBlock2DCrossAttn", "UNetMidBlock2D"
_NUMBER = whole(1, MOST_IN_BLOCK)
_LIST = list_of(_NUMBER, MOST_IN_BLOCK, "numbers of layers")
_IN_BLOCK = Kind(lambda value: _LIST(value) if isinstance(value, list | tuple) else _NUMBER(value))
_TRANSFORMERS = each(_IN_BLOCK, "numbers of layers")
Layers = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class UNetConfig:
  """The fields of config.json that shape the model; where diffusers takes one value for all blocks, one for each.

  `attention_head_dim` counts heads: diffusers calls it so because checkpoints do. `transformers_down` and
  `transformers_up` are the transformer blocks of each layer of each block, `transformers_mid` those of the middle.
  """

  sample_size: Size | None
  in_channels: int
  out_channels: int
  center_input_sample: bool
  flip_sin_to_cos: bool
  freq_shift: float
  down_block_types: tuple[str, ...]
  mid_block_type: str | None
  up_block_types: tuple[str, ...]
  block_out_channels: tuple[int, ...]
  layers_per_block: tuple[int, ...]
  downsample_padding: int
  mid_block_scale_factor: float
  dropout: float
  act_fn: str
  norm_num_groups: int
  norm_eps: float
  cross_attention_dim: int
  attention_head_dim: tuple[int, ...]
  transformers_down: Layers
  transformers_mid: int
  transformers_up: Layers
  use_linear_projection: bool
  upcast_attention: bool
  resnet_time_scale_shift: str
  time_embedding_dim: int
  conv_in_kernel: int
  conv_out_kernel: int
  addition_embed_type: str | None
  addition_time_embed_dim: int | None
  projection_class_embeddings_input_dim: int | None


UNET_TABLE = TABLE | Table(
  read={
    "in_channels": Field(CHANNELS, 4),
    "out_channels": Field(CHANNELS, 4),
    "center_input_sample": Field(FLAG, False),
    "flip_sin_to_cos": Field(FLAG, True),
    "freq_shift": Field(number(-1e6, 1e6), 0),
    "down_block_types": Field(TYPES, (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN)),
    "mid_block_type": Field(NAME.or_null, CROSS_MID),
    "up_block_types": Field(TYPES, (UP, CROSS_UP, CROSS_UP, CROSS_UP)),
    "block_out_channels": Field(WIDTHS, (320, 640, 1280, 1280)),
    "layers_per_block": Field(LAYERS_EACH, 2),
    "downsample_padding": Field(whole(0, 64), 1),
    "mid_block_scale_factor": Field(POSITIVE, 1),
    "dropout": Field(RATE, 0.0),
    "act_fn": Field(NAME, "silu"),
    "norm_num_groups": Field(FEATURES, 32),
    "norm_eps": Field(EPSILON, 1e-5),
    "cross_attention_dim": Field(FEATURES_EACH, 1280),
    "transformer_layers_per_block": Field(_TRANSFORMERS, 1),
    "reverse_transformer_layers_per_block": Field(_TRANSFORMERS.or_null),
    "attention_head_dim": Field(HEADS_EACH, 8),
    "use_linear_projection": Field(FLAG, False),
    "upcast_attention": Field(FLAG.or_null, False),
    "resnet_time_scale_shift": Field(NAME, "default"),
    "time_embedding_dim": Field(FEATURES.or_null),
    "conv_in_kernel": Field(WINDOW, 3),
    "conv_out_kernel": Field(WINDOW, 3),
    "addition_embed_type": Field(NAME.or_null),
    "addition_time_embed_dim": Field(FEATURES.or_null),
    "projection_class_embeddings_input_dim": Field(FEATURES.or_null),
  },
  refused={
    "num_attention_heads": Only((None,), "attention_head_dim counts the heads"),
    "dual_cross_attention": Only((False,), "two transformers at each place"),
    "only_cross_attention": Only((False,), "transformers without self-attention"),
    "mid_block_only_cross_attention": Only((None, False), "the same in the middle"),
    "encoder_hid_dim": Only((None,), "a projection of the conditions"),
    "encoder_hid_dim_type": Only((None,), "a projection of the conditions"),
    "class_embed_type": Only((None,), "classes as conditions"),
    "num_class_embeds": Only((None,), "classes as conditions"),
    "class_embeddings_concat": Only((False,), "classes as conditions"),
    "time_embedding_type": Only(("positional",), "random frequencies of time"),
    "time_embedding_act_fn": Only((None,), "another function of time"),
    "timestep_post_act": Only((None,), "another function of time"),
    "time_cond_proj_dim": Only((None,), "a guidance scale as condition"),
    "attention_type": Only(("default",), "gated attention to boxes"),
  },
  # Of blocks that are not computed here, and of "text" as an added embedding.
  ignored=frozenset(
    {"resnet_skip_time_act", "resnet_out_scale_factor", "cross_attention_norm", "addition_embed_type_num_heads"}
  ),
)


def parse(hf_config: Mapping[str, Any]) -> UNetConfig:
  """The config of a config.json.

  Raises:
    UserError: a field of another type or out of range, one that asks for what is not computed here, or numbers of
      channels, groups, heads and blocks that do not fit together.
  """
  given = UNET_TABLE.values(hf_config)
  channels = given["block_out_channels"]
  blocks = len(channels)
  for name in ("layers_per_block", "attention_head_dim", "cross_attention_dim"):
    given[name] = spread(name, given[name], blocks)
  check_types("down_block_types", given["down_block_types"], (CROSS_DOWN, DOWN), blocks)
  check_types("up_block_types", given["up_block_types"], (CROSS_UP, UP), blocks)
  check_types("mid_block_type", (given["mid_block_type"] or MID,), (CROSS_MID, MID), 1)
  check_groups(channels, given["norm_num_groups"])
  _check_heads(given)
  features = set(given["cross_attention_dim"])
  if len(features) > 1:
    raise UserError(f"config.json: cross_attention_dim={sorted(features)}: one encoder's states have one number")
  given["cross_attention_dim"] = given["cross_attention_dim"][0]
  given["time_embedding_dim"] = given["time_embedding_dim"] or 4 * channels[0]
  if given["resnet_time_scale_shift"] not in ("default", "scale_shift"):
    raise UserError(f"config.json: resnet_time_scale_shift={given['resnet_time_scale_shift']!r}: "
                    "expected 'default' or 'scale_shift'")  # fmt: skip
  activation(given["act_fn"])
  _check_added(given)
  given["upcast_attention"] = bool(given["upcast_attention"])
  return UNetConfig(**fields_for(given, UNetConfig), **_transformers(given))


def _check_heads(given: Mapping[str, Any]) -> None:
  """Where there are transformers, the channels must divide among the heads."""
  channels, heads = given["block_out_channels"], given["attention_head_dim"]
  middle = [None] * (len(channels) - 1) + [given["mid_block_type"]]
  kinds = zip(given["down_block_types"], reversed(given["up_block_types"]), middle)
  for width, count, types in zip(channels, heads, kinds):
    if width % count and {CROSS_DOWN, CROSS_UP, CROSS_MID} & set(types):
      raise UserError(f"config.json: attention_head_dim={count} heads, among which {width} channels do not divide")


def _check_added(given: Mapping[str, Any]) -> None:
  kind = given["addition_embed_type"]
  if kind not in (None, "text_time"):
    raise UserError(f"config.json: addition_embed_type={kind!r} is not computed here; expected null or 'text_time'")
  for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
    if kind and not given[name]:
      raise UserError(f"config.json: addition_embed_type={kind!r} needs {name}")


def _transformers(given: Mapping[str, Any]) -> dict[str, Any]:
  """Transformer blocks of every layer on the way down, in the middle, and on the way up, which has a layer more."""
  layers, name = given["layers_per_block"], "transformer_layers_per_block"
  down = spread(name, given[name], len(layers))
  up = given[f"reverse_{name}"]
  if up is None and any(isinstance(one, tuple) for one in down):
    raise UserError(f"config.json: {name} differs within a block: reverse_{name} must say the way up")
  up = tuple(reversed(down)) if up is None else spread(f"reverse_{name}", up, len(layers))
  return {
    "transformers_down": tuple(spread(name, one, count) for one, count in zip(down, layers)),
    "transformers_mid": down[-1][0] if isinstance(down[-1], tuple) else down[-1],
    "transformers_up": tuple(spread(name, one, count + 1) for one, count in zip(up, reversed(layers))),
  }
