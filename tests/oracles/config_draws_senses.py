"""Configs for `tests/oracles/random_configs.py` of the families that read pictures, sounds and latents, and these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.oracles.config_draws import Case, Draw, heads_of, respelled, unchanged

Inputs = dict[str, Any]
"""Arrays, or dicts of them."""


# Pictures ---------------------------------------------------------------------------------------------------------


def _patches(draw: Draw) -> dict[str, Any]:
  """What every transformer of patches has; a picture may hold no whole patch, and be no square."""
  hidden, heads = heads_of(draw)
  patch = draw.randint(1, 5)
  sides = [patch * draw.randint(1, 5) + draw.sometimes() * draw.randrange(patch) for _ in range(2)]
  if draw.sometimes(0.05):
    sides[0] = max(1, patch - 1)
  return {
    "hidden_size": hidden + draw.sometimes(0.05),  # which no heads divide
    "num_attention_heads": heads,
    "num_hidden_layers": draw.randint(1, 3),
    "intermediate_size": draw.randint(1, 40),
    "hidden_act": draw.activation(),
    "layer_norm_eps": draw.epsilon(),
    "image_size": tuple(sides) if draw.sometimes(0.1) else sides[0],
    "patch_size": (patch, draw.randint(1, 5)) if draw.sometimes(0.05) else patch,
    "num_channels": draw.randint(1, 4),
    "num_labels": draw.randint(1, 5),
    "is_decoder": draw.sometimes(0.05),
    "chunk_size_feed_forward": draw.choice([0, 0, 0, 1]),
  }


def _vit(draw: Draw, name: str) -> Case:
  given = {**_patches(draw), "qkv_bias": draw.sometimes(0.6)}
  if draw.sometimes(0.3):
    given |= {"pooler_output_size": draw.randint(1, 12), "pooler_act": draw.activation()}
  endings = ["Model", "ForImageClassification"] + ["ForImageClassificationWithTeacher"] * (name == "DeiT")
  return draw.choice(endings), given, unchanged


def _dinov2(draw: Draw, name: str) -> Case:
  given = {**_patches(draw), "qkv_bias": draw.sometimes(0.6), "mlp_ratio": draw.randint(1, 5)}
  given |= {"use_swiglu_ffn": draw.sometimes(0.4), "layerscale_value": draw.choice([1.0, 0.3])}
  given |= {"apply_layernorm": draw.sometimes(), "reshape_hidden_states": draw.sometimes()}
  if name == "Dinov2":
    given["use_mask_token"] = draw.sometimes(0.6)
  else:
    given["num_register_tokens"] = draw.randint(0, 4)
  return draw.choice(["Model", "ForImageClassification"]), given, unchanged


def _yolos(draw: Draw, name: str) -> Case:
  del name
  given = {**_patches(draw), "qkv_bias": draw.sometimes(0.6), "num_detection_tokens": draw.randint(1, 5)}
  if isinstance(given["image_size"], int):
    given["image_size"] = (given["image_size"], given["image_size"] + draw.randint(0, 4))
  given["use_mid_position_embeddings"] = draw.sometimes(0.6)
  given["num_hidden_layers"] = draw.choice([1, 2, 2, 2, 3, 3, 3])  # one has no place for those positions
  return draw.choice(["Model", "ForObjectDetection"]), given, unchanged


def _detr(draw: Draw, name: str) -> Case:
  del name
  stages = draw.randint(1, 4)
  backbone = {
    "model_type": "resnet",
    "num_channels": 3,
    "embedding_size": draw.randint(1, 8),
    "hidden_sizes": [4 * draw.randint(1, 4) for _ in range(stages)],
    "depths": [draw.randint(1, 2) for _ in range(stages)],
    "layer_type": draw.choice(["basic", "bottleneck"]),
    "hidden_act": draw.choice(["relu", "relu", "gelu", "silu"]),
    "downsample_in_first_stage": draw.sometimes(),
    "downsample_in_bottleneck": draw.sometimes(),
    "out_features": [f"stage{stages if draw.sometimes(0.9) else 1}"],
  }
  heads = [draw.choice([1, 2, 3, 4]) for _ in range(2)]
  given = {
    "use_timm_backbone": False,
    "backbone_config": backbone,
    "d_model": draw.choice([12, 24, 24, 24, 36, 18]),
    "encoder_layers": draw.randint(1, 2),
    "decoder_layers": draw.randint(1, 3),
    "encoder_attention_heads": heads[0],
    "decoder_attention_heads": heads[1],
    "encoder_ffn_dim": draw.randint(1, 30),
    "decoder_ffn_dim": draw.randint(1, 30),
    "num_queries": draw.randint(1, 6),
    "num_labels": draw.randint(1, 5),
    "activation_function": draw.activation(),
    "position_embedding_type": draw.choice(["sine", "sine", "learned"]),
    "auxiliary_loss": draw.sometimes(),
    "scale_embedding": draw.sometimes(),
    "dilation": draw.sometimes(0.05),
  }
  return draw.choice(["Model", "ForObjectDetection"]), given, respelled(draw, {"d_model": "hidden_size"})


def _clip(draw: Draw, name: str) -> Case:
  del name
  vision, projection = _patches(draw), draw.randint(1, 12)
  vision["image_size"] = vision["image_size"] if isinstance(vision["image_size"], int) else vision["image_size"][0]
  labels = vision.pop("num_labels")
  hidden, heads = heads_of(draw)
  text = {
    "vocab_size": draw.randint(31, 70),
    "hidden_size": hidden,
    "num_attention_heads": heads,
    "num_hidden_layers": draw.randint(1, 3),
    "intermediate_size": draw.randint(1, 40),
    "hidden_act": draw.activation(),
    "layer_norm_eps": draw.epsilon(),
    "max_position_embeddings": draw.randint(5, 20),
    "eos_token_id": draw.choice([2, 2, 30]),
    "bos_token_id": 1,
    "pad_token_id": draw.choice([0, 1, 30]),
  }
  towers = [f"{tower}Model{kind}" for tower in ("Vision", "Text") for kind in ("", "WithProjection")]
  ending = draw.choice(["Model", "Model", "ForImageClassification", *towers])
  if ending.startswith("Vision"):
    return ending, {**vision, "projection_dim": projection}, unchanged
  if ending.startswith("Text"):
    return ending, {**text, "projection_dim": projection}, unchanged
  given = {"vision_config": vision, "text_config": text, "projection_dim": projection, "num_labels": labels}
  return ending, given, unchanged


def _pixels(config: Any, ending: str, seed: int) -> Inputs:
  """Pictures of the size that positions were learned for, or another one."""
  del ending
  draw = Draw(f"pixels {seed}")
  sides = config.image_size if isinstance(config.image_size, tuple | list) else (config.image_size,) * 2
  if draw.sometimes(0.4):
    sides = [side + draw.randint(0, 9) for side in sides]
  shape = (draw.randint(1, 3), config.num_channels, *sides)
  return {"pixel_values": np.random.default_rng(seed).normal(size=shape).astype(np.float32)}


def _clip_inputs(config: Any, ending: str, seed: int) -> Inputs:
  """Texts that end with the end token, then are filled up; pictures; both."""
  draw, random = Draw(f"clip {seed}"), np.random.default_rng(seed)
  text = getattr(config, "text_config", config)
  found: Inputs = {}
  if ending == "Model" or ending.startswith("Text"):
    rows, length = draw.randint(1, 3), draw.randint(2, min(9, text.max_position_embeddings))
    ids = random.integers(3, 30, (rows, length))
    last = random.integers(1, length, rows)
    beyond = np.arange(length) > last[:, None]
    ids[np.arange(rows), last] = text.eos_token_id
    ids[beyond] = text.pad_token_id
    found["input_ids"] = ids
    if draw.sometimes(0.7):
      found["attention_mask"] = (~beyond).astype(np.int64)
  if not ending.startswith("Text"):
    found |= _pixels(getattr(config, "vision_config", config), ending, seed)
  return found


def _detr_pixels(config: Any, ending: str, seed: int) -> Inputs:
  """Pictures of any size, some filled up on two sides."""
  del config, ending
  draw = Draw(f"pixels {seed}")
  height, width = draw.randint(20, 70), draw.randint(20, 70)
  pixels = np.random.default_rng(seed).normal(size=(2, 3, height, width)).astype(np.float32)
  if draw.sometimes(0.4):
    return {"pixel_values": pixels}
  mask = np.ones((2, height, width), np.int64)
  mask[1, draw.randint(1, height) :], mask[1, :, draw.randint(1, width) :] = 0, 0
  return {"pixel_values": pixels * mask[:, None].astype(np.float32), "pixel_mask": mask}


# Sounds -----------------------------------------------------------------------------------------------------------


def _whisper(draw: Draw, name: str) -> Case:
  del name
  heads = draw.choice([1, 2, 3, 4]), draw.choice([1, 2, 3, 4])
  given = {
    "vocab_size": draw.randint(31, 70),
    "num_mel_bins": draw.randint(1, 12),
    "d_model": draw.choice([12, 24, 24, 24, 36, 18]),
    "encoder_layers": draw.randint(1, 3),
    "decoder_layers": draw.randint(1, 3),
    "encoder_attention_heads": heads[0],
    "decoder_attention_heads": heads[1],
    "encoder_ffn_dim": draw.randint(1, 40),
    "decoder_ffn_dim": draw.randint(1, 40),
    "activation_function": draw.activation(),
    "max_source_positions": draw.randint(2, 20),
    "max_target_positions": draw.randint(8, 30),
    "classifier_proj_size": draw.randint(1, 12),
    "num_labels": draw.randint(1, 5),
    "use_weighted_layer_sum": draw.sometimes(0.4),
    "tie_word_embeddings": draw.sometimes(0.8),
    "scale_embedding": draw.sometimes(0.3),
    "pad_token_id": draw.choice([0, 5]),
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "suppress_tokens": draw.choice([None, [], [7, 9]]),
    "begin_suppress_tokens": draw.choice([None, [8, 2]]),
  }
  endings = ["Model", "ForConditionalGeneration", "ForConditionalGeneration", "ForAudioClassification"]
  return draw.choice(endings), given, respelled(draw, {"d_model": "hidden_size"})


def _features(config: Any, ending: str, seed: int) -> Inputs:
  draw, random = Draw(f"features {seed}"), np.random.default_rng(seed)
  rows = draw.randint(1, 3)
  shape = (rows, config.num_mel_bins, 2 * config.max_source_positions)
  found: Inputs = {"input_features": random.normal(size=shape).astype(np.float32)}
  if ending != "ForAudioClassification":
    found["decoder_input_ids"] = random.integers(0, config.vocab_size, (rows, draw.randint(1, 7)))
  return found


def _wav2vec2(draw: Draw, name: str) -> Case:
  del name
  hidden, heads = heads_of(draw)
  layers = draw.randint(1, 3)
  kernels = [draw.randint(1, 7) for _ in range(layers)]
  given = {
    "vocab_size": draw.randint(5, 30),
    "hidden_size": hidden,
    "num_attention_heads": heads,
    "num_hidden_layers": draw.randint(1, 3),
    "intermediate_size": draw.randint(1, 40),
    "hidden_act": draw.activation(),
    "layer_norm_eps": draw.epsilon(),
    "feat_extract_norm": draw.choice(["group", "layer"]),
    "feat_extract_activation": draw.activation(),
    "conv_dim": [draw.randint(4, 12) for _ in range(layers)],
    "conv_kernel": kernels,
    "conv_stride": [draw.randint(1, min(4, kernel)) for kernel in kernels],
    "conv_bias": draw.sometimes(0.5),
    "num_conv_pos_embeddings": draw.randint(1, 9),
    "num_conv_pos_embedding_groups": draw.choice([1, heads, 2]),
    "do_stable_layer_norm": draw.sometimes(0.5),
    "mask_time_prob": draw.choice([0.0, 0.05]),
    "mask_feature_prob": draw.choice([0.0, 0.0, 0.1]),
    "add_adapter": draw.sometimes(0.05),
    "adapter_attn_dim": 3 if draw.sometimes(0.05) else None,
    "pad_token_id": 0,
  }
  return draw.choice(["Model", "ForCTC"]), given, unchanged


def _waves(config: Any, ending: str, seed: int) -> Inputs:
  del config, ending
  draw = Draw(f"waves {seed}")
  rows, samples = draw.randint(1, 3), draw.randint(200, 400)
  values = np.random.default_rng(seed).normal(size=(rows, samples)).astype(np.float32)
  if draw.sometimes(0.4):
    return {"input_values": values}
  mask = np.arange(samples) < np.array([samples - draw.randint(0, 99) * row for row in range(rows)])[:, None]
  return {"input_values": values * mask.astype(np.float32), "attention_mask": mask.astype(np.int64)}


# Diffusion --------------------------------------------------------------------------------------------------------


def _levels(draw: Draw) -> dict[str, Any]:
  """Channels of each level, which the groups of normalisation divide."""
  groups = draw.choice([1, 2, 3])
  return {
    "block_out_channels": [groups * draw.randint(1, 5) for _ in range(draw.randint(1, 3))],
    "norm_num_groups": groups if draw.sometimes(0.95) else groups + 1,
    "act_fn": draw.choice(["silu", "silu", "gelu", "relu", "mish"]),
    "sample_size": draw.choice([8, 8, (8, 6)]),
    "in_channels": draw.randint(1, 5),
    "out_channels": draw.randint(1, 5),
  }


def _unet(draw: Draw, name: str) -> Case:
  del name
  given = _levels(draw)
  channels = given["block_out_channels"]
  crossing = [draw.sometimes(0.6) for _ in channels]
  rising = crossing[::-1] if draw.sometimes(0.7) else [draw.sometimes() for _ in channels]
  heads = [draw.choice([one for one in range(1, 5) if not width % one]) for width in channels]
  given |= {
    "down_block_types": ["CrossAttnDownBlock2D" if one else "DownBlock2D" for one in crossing],
    "up_block_types": ["CrossAttnUpBlock2D" if one else "UpBlock2D" for one in rising],
    "mid_block_type": draw.choice(["UNetMidBlock2DCrossAttn", "UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None]),
    "attention_head_dim": heads if draw.sometimes(0.8) else 1,
    "layers_per_block": draw.choice([1, 2, [draw.randint(1, 2) for _ in channels]]),
    "transformer_layers_per_block": draw.choice([1, 1, 2, [draw.randint(1, 2) for _ in channels]]),
    "cross_attention_dim": draw.randint(1, 12),
    "center_input_sample": draw.sometimes(),
    "flip_sin_to_cos": draw.sometimes(0.7),
    "freq_shift": draw.choice([0, 0, 1]),
    "downsample_padding": draw.choice([1, 1, 0]),
    "mid_block_scale_factor": draw.choice([1, 1, 2.5]),
    "norm_eps": draw.choice([1e-5, 1e-3]),
    "use_linear_projection": draw.sometimes(0.5),
    "upcast_attention": draw.sometimes(),
    "resnet_time_scale_shift": draw.choice(["default", "default", "scale_shift"]),
    "time_embedding_dim": draw.choice([None, draw.randint(1, 12)]),
    "conv_in_kernel": draw.choice([3, 3, 1, 5]),
    "conv_out_kernel": draw.choice([3, 3, 1, 5]),
    "dual_cross_attention": draw.sometimes(0.03),
    "only_cross_attention": draw.sometimes(0.03),
    "class_embed_type": "timestep" if draw.sometimes(0.03) else None,
    "timestep_post_act": "silu" if draw.sometimes(0.03) else None,
    "resnet_skip_time_act": draw.sometimes(0.05),
    "resnet_out_scale_factor": draw.choice([1.0] * 19 + [2.0]),
  }
  if draw.sometimes(0.2):
    given |= {"addition_embed_type": "text_time", "addition_time_embed_dim": draw.randint(1, 3) * 2}
    given["projection_class_embeddings_input_dim"] = 6 * given["addition_time_embed_dim"] + 7
  return "", given, unchanged


def _vae(draw: Draw, name: str) -> Case:
  del name
  given = _levels(draw)
  levels = len(given["block_out_channels"])
  given |= {
    "down_block_types": ["DownEncoderBlock2D"] * levels,
    "up_block_types": ["UpDecoderBlock2D"] * levels,
    "layers_per_block": draw.randint(1, 2),
    "latent_channels": draw.randint(1, 4),
    "scaling_factor": draw.choice([0.18215, 0.5]),
    "use_quant_conv": draw.sometimes(0.8),
    "use_post_quant_conv": draw.sometimes(0.8),
    "mid_block_add_attention": draw.sometimes(0.7),
    "force_upcast": draw.sometimes(),
    "shift_factor": draw.choice([None] * 19 + [0.1]),
  }
  return "", given, unchanged


def _latents(config: Any, ending: str, seed: int) -> Inputs:
  del ending
  draw, random = Draw(f"latents {seed}"), np.random.default_rng(seed)
  rows, step = draw.randint(1, 2), 2 ** (len(config.block_out_channels) - 1)
  sides = [step * draw.randint(1, 4) + (0 if draw.sometimes(0.7) else draw.randrange(step)) for _ in range(2)]
  found: Inputs = {"sample": random.normal(size=(rows, config.in_channels, *sides)).astype(np.float32)}
  if "cross_attention_dim" not in config:
    return found
  states = random.normal(size=(rows, draw.randint(1, 5), config.cross_attention_dim)).astype(np.float32)
  found |= {"timestep": random.integers(0, 1000, rows), "encoder_hidden_states": states}
  if config.addition_embed_type:
    texts, sizes = random.normal(size=(rows, 7)).astype(np.float32), random.integers(0, 1024, (rows, 6))
    found["added_cond_kwargs"] = {"text_embeds": texts, "time_ids": sizes}
  return found


SENSES: dict[str, tuple[str, Callable[[Draw, str], Case], Callable[[Any, str, int], Inputs]]] = {
  "vit": ("ViT", _vit, _pixels),
  "deit": ("DeiT", _vit, _pixels),
  "dinov2": ("Dinov2", _dinov2, _pixels),
  "dinov2_with_registers": ("Dinov2WithRegisters", _dinov2, _pixels),
  "yolos": ("Yolos", _yolos, _pixels),
  "detr": ("Detr", _detr, _detr_pixels),
  "clip": ("CLIP", _clip, _clip_inputs),
  "whisper": ("Whisper", _whisper, _features),
  "wav2vec2": ("Wav2Vec2", _wav2vec2, _waves),
  "unet": ("UNet2DConditionModel", _unet, _latents),
  "vae": ("AutoencoderKL", _vae, _latents),
}
