"""What DETR and its ResNet read of config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from peftjax.errors import UserError
from peftjax.kinds import FLAG, NAME, SETTINGS, list_of, whole
from peftjax.models.config_fields import COMMON, FEATURES, HEADS, LAYERS, RATE, Field, Only, Table, fields_for
from peftjax.models.detection import LOSS_FIELDS
from peftjax.models.family import check_heads
from peftjax.models.layers import activation

SINE, LEARNED = "sine", "learned"
BASIC, BOTTLENECK = "basic", "bottleneck"


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
  """The fields of a ResNet's config; names and defaults are Hugging Face's."""

  num_channels: int = 3
  embedding_size: int = 64
  hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
  depths: tuple[int, ...] = (3, 4, 6, 3)
  layer_type: str = BOTTLENECK
  hidden_act: str = "relu"
  downsample_in_first_stage: bool = False
  downsample_in_bottleneck: bool = False


@dataclasses.dataclass(frozen=True)
class DetrConfig:
  """The fields of config.json that shape the model; names and defaults are Hugging Face's."""

  backbone: ResNetConfig = ResNetConfig()
  num_channels: int = 3
  num_queries: int = 100
  d_model: int = 256
  encoder_layers: int = 6
  encoder_ffn_dim: int = 2048
  encoder_attention_heads: int = 8
  decoder_layers: int = 6
  decoder_ffn_dim: int = 2048
  decoder_attention_heads: int = 8
  activation_function: str = "relu"
  dropout: float = 0.1
  attention_dropout: float = 0.0
  activation_dropout: float = 0.0
  auxiliary_loss: bool = False
  position_embedding_type: str = SINE
  num_labels: int = 2


RESNET_TABLE = COMMON | Table(
  read={
    "model_type": Field(NAME, ""),
    "num_channels": Field(whole(1, 4096), 3),
    "embedding_size": Field(FEATURES, 64),
    "hidden_sizes": Field(list_of(FEATURES, what="numbers of features"), (256, 512, 1024, 2048)),
    "depths": Field(list_of(LAYERS, what="numbers of layers"), (3, 4, 6, 3)),
    "layer_type": Field(NAME, BOTTLENECK),
    "hidden_act": Field(NAME, "relu"),
    "downsample_in_first_stage": Field(FLAG, False),
    "downsample_in_bottleneck": Field(FLAG, False),
    "out_features": Field(list_of(NAME, what="names of stages").or_null),
  },
  # The same as `out_features`, and what follows from `depths`.
  ignored=frozenset({"out_indices", "_out_features", "_out_indices", "stage_names", "is_encoder_decoder", "is_causal"}),
)
TABLE = COMMON | Table(
  read={
    "backbone_config": Field(SETTINGS.or_null),
    "num_channels": Field(whole(1, 4096), 3),
    "num_queries": Field(whole(1, 2**16), 100),
    "d_model": Field(FEATURES, 256),
    "encoder_layers": Field(LAYERS, 6),
    "encoder_ffn_dim": Field(FEATURES, 2048),
    "encoder_attention_heads": Field(HEADS, 8),
    "decoder_layers": Field(LAYERS, 6),
    "decoder_ffn_dim": Field(FEATURES, 2048),
    "decoder_attention_heads": Field(HEADS, 8),
    "activation_function": Field(NAME, "relu"),
    "dropout": Field(RATE, 0.1),
    "attention_dropout": Field(RATE, 0.0),
    "activation_dropout": Field(RATE, 0.0),
    "auxiliary_loss": Field(FLAG, False),
    "position_embedding_type": Field(NAME, SINE),
    "is_encoder_decoder": Field(FLAG, True),
  },
  refused={"dilation": Only((False,), "a last stage with dilation, which only timm's ResNets have")},
  # How transformers draws weights, what it leaves out while training and no longer does, and other spellings of the
  # backbone, which `backbone_config` says in full.
  ignored=LOSS_FIELDS
  | {"init_std", "init_xavier_std", "encoder_layerdrop", "decoder_layerdrop", "is_causal", "use_timm_backbone"}
  | {"backbone", "use_pretrained_backbone", "backbone_kwargs", "max_position_embeddings", "scale_embedding"}
  | {"classifier_dropout"},
  spellings={
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
  },
)


def parse(hf_config: Mapping[str, Any]) -> DetrConfig:
  """The config of a config.json.

  Raises:
    UserError: a field of another type or out of range, sizes that do not fit together, or another backbone.
  """
  given = TABLE.values(hf_config)
  config = DetrConfig(**fields_for(given, DetrConfig), backbone=_backbone(given["backbone_config"] or {}))
  check_heads(config.d_model, config.encoder_attention_heads)
  check_heads(config.d_model, config.decoder_attention_heads)
  activation(config.activation_function)
  kind, step = config.position_embedding_type, 4 if config.position_embedding_type == SINE else 2
  if kind not in (SINE, LEARNED):
    raise UserError(f"config.json: position_embedding_type={kind!r}: expected {SINE!r} or {LEARNED!r}")
  if config.d_model % step:
    raise UserError(f"config.json: d_model={config.d_model}: {kind} positions need a multiple of {step}")
  return config


def _backbone(hf_config: Mapping[str, Any]) -> ResNetConfig:
  found = hf_config.get("model_type")
  if found != "resnet":
    raise UserError(
      f"config.json: backbone_config: model_type={found!r}: expected 'resnet'; weights with timm's backbone are "
      "published a second time with this one, as the revision no_timm"
    )
  given = RESNET_TABLE.values(hf_config)
  given |= {name: tuple(given[name]) for name in ("hidden_sizes", "depths")}
  config = ResNetConfig(**fields_for(given, ResNetConfig))
  activation(config.hidden_act)
  if config.layer_type not in (BASIC, BOTTLENECK):
    raise UserError(f"config.json: backbone_config: layer_type={config.layer_type!r}: expected basic or bottleneck")
  if len(config.hidden_sizes) != len(config.depths) or not config.depths:
    raise UserError(
      f"config.json: backbone_config: {len(config.hidden_sizes)} hidden_sizes and {len(config.depths)} depths; "
      "expected one of each for every stage"
    )
  last = f"stage{len(config.depths)}"
  if (given["out_features"] or [last])[-1] != last:
    raise UserError(
      f"config.json: backbone_config: out_features={given['out_features']}: expected {last!r} as the last"
    )
  return config
