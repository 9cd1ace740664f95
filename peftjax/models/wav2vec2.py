"""Wav2Vec2 (Baevski et al. 2020, arXiv 2006.11477): convolutions over samples, an encoder, and letters by CTC."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.errors import UserError
from peftjax.kinds import FLAG, NAME, list_of, whole
from peftjax.models.config_fields import (
  ANY_ID,
  COMMON,
  EPSILON,
  FEATURES,
  HEADS,
  IDS,
  LAYERS,
  RATE,
  SHARE,
  VOCABULARY,
  Field,
  Only,
  Table,
  fields_for,
)
from peftjax.models.family import CTC, ENCODER, Architecture, Family, check_heads
from peftjax.models.layers import Dropout, Runtime, activation, attend, padding_mask, stack_of
from peftjax.models.resnet import Numbered
from peftjax.sites import HasSites, Stream

Outputs = dict[str, jax.Array]
GROUP, LAYER = "group", "layer"
FRAMES = Stream(mask="attention_mask", outputs={"last_hidden_state": 1, "hidden_states": 2})


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config:
  """The fields of config.json that shape the model; names and defaults are Hugging Face's."""

  vocab_size: int = 32
  hidden_size: int = 768
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  intermediate_size: int = 3072
  hidden_act: str = "gelu"
  hidden_dropout: float = 0.1
  activation_dropout: float = 0.1
  attention_dropout: float = 0.1
  feat_proj_dropout: float = 0.0
  final_dropout: float = 0.1
  layer_norm_eps: float = 1e-5
  feat_extract_norm: str = GROUP
  feat_extract_activation: str = "gelu"
  conv_dim: tuple[int, ...] = (512,) * 7
  conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
  conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
  conv_bias: bool = False
  num_conv_pos_embeddings: int = 128
  num_conv_pos_embedding_groups: int = 16
  do_stable_layer_norm: bool = False
  mask_time_prob: float = 0.05
  mask_feature_prob: float = 0.0
  pad_token_id: int | None = 0

  def frames(self, samples: Any) -> Any:
    """How many frames the convolutions make of so many samples, int or int[...]."""
    for window, stride in zip(self.conv_kernel, self.conv_stride):
      samples = (samples - window) // stride + 1
    return samples

  @property
  def least_samples(self) -> int:
    """The fewest that make a frame."""
    samples = 1
    for window, stride in zip(reversed(self.conv_kernel), reversed(self.conv_stride)):
      samples = (samples - 1) * stride + window
    return samples


class ConvLayer(nn.Module):
  """A convolution over time; the first, or all, are normalised."""

  config: Wav2Vec2Config
  runtime: Runtime
  index: int

  def setup(self) -> None:
    config, runtime, at = self.config, self.runtime, self.index
    self.conv = nn.Conv(
      config.conv_dim[at],
      (config.conv_kernel[at],),
      strides=config.conv_stride[at],
      padding="VALID",
      use_bias=config.conv_bias,
      dtype=runtime.compute_dtype,
      param_dtype=runtime.dtype,
    )
    per_frame = config.feat_extract_norm == LAYER
    if per_frame or at == 0:  # or of every channel over time
      norm: nn.Module = runtime.layer_norm(1e-5) if per_frame else runtime.group_norm(config.conv_dim[0], 1e-5)
      self.layer_norm = norm

  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv(x)
    if self.config.feat_extract_norm == LAYER or self.index == 0:
      x = self.layer_norm(x)
    found: jax.Array = activation(self.config.feat_extract_activation)(x)
    return found


class FeatureEncoder(nn.Module):
  """[B, frames, features] from samples [B, N]."""

  config: Wav2Vec2Config
  runtime: Runtime

  def setup(self) -> None:
    args = tuple((self.config, self.runtime, index) for index in range(len(self.config.conv_dim)))
    self.conv_layers = Numbered(ConvLayer, args)

  def __call__(self, input_values: jax.Array) -> jax.Array:
    return self.conv_layers(input_values[..., None])


class FeatureProjection(nn.Module):
  """The frames, normalised and in the encoder's size."""

  config: Wav2Vec2Config
  runtime: Runtime

  def setup(self) -> None:
    self.layer_norm = self.runtime.layer_norm(self.config.layer_norm_eps)
    self.projection = self.runtime.dense(self.config.hidden_size)
    self.drop = Dropout(self.runtime.rate(self.config.feat_proj_dropout))

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.drop(self.projection(self.layer_norm(x)))


class NormedConv(nn.Module):
  """A grouped convolution over time with kernel g · v / |v|, the norm over all but time (Salimans and Kingma 2016)."""

  config: Wav2Vec2Config
  runtime: Runtime

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    config, runtime = self.config, self.runtime
    size, window, groups = config.hidden_size, config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
    draw = nn.initializers.normal(0.02)
    g = self.param("weight_g", nn.initializers.ones, (1, 1, window), runtime.dtype)
    v = self.param("weight_v", draw, (size, size // groups, window), runtime.dtype)
    bias = self.param("bias", nn.initializers.zeros, (size,), runtime.dtype)
    wide = v.astype(jnp.float32)
    kernel = g.astype(jnp.float32) * wide / jnp.linalg.norm(wide, axis=(0, 1), keepdims=True)
    half = window // 2
    y = jax.lax.conv_general_dilated(
      x,
      kernel.astype(x.dtype),
      window_strides=(1,),
      padding=[(half, half - (window % 2 == 0))],  # of an even window the last place is left out
      dimension_numbers=("NHC", "OIH", "NHC"),
      feature_group_count=groups,
    )
    return y + bias.astype(x.dtype)


class PositionalConv(nn.Module):
  """Where a frame stands, by what is around it."""

  config: Wav2Vec2Config
  runtime: Runtime

  def setup(self) -> None:
    self.conv = NormedConv(self.config, self.runtime)

  def __call__(self, x: jax.Array) -> jax.Array:
    found: jax.Array = activation(self.config.feat_extract_activation)(self.conv(x))
    return found


class Wav2Vec2Attention(nn.Module, HasSites):
  """Multi-head self-attention with its output projection."""

  config: Wav2Vec2Config
  runtime: Runtime
  sites: ClassVar = {"attend": "attention"}

  def setup(self) -> None:
    size = self.config.hidden_size
    self.q_proj, self.k_proj, self.v_proj, self.out_proj = (self.runtime.dense(size) for _ in range(4))

  def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
    heads = self.config.num_attention_heads
    q, k, v = (layer(x).reshape(*x.shape[:2], heads, -1) for layer in (self.q_proj, self.k_proj, self.v_proj))
    return self.out_proj(self.attend(q, k, v, mask).reshape(x.shape))

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """[B, L, H, D] from queries [B, L, H, D], keys and values [B, S, H, D], mask [B, 1, 1, S] or None."""
    return attend(self, q, k, v, mask, self.config.attention_dropout)


class FeedForward(nn.Module):
  """Two linear layers."""

  config: Wav2Vec2Config
  runtime: Runtime

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.intermediate_dense, self.output_dense = (
      runtime.dense(config.intermediate_size),
      runtime.dense(config.hidden_size),
    )
    self.drop_inside = Dropout(runtime.rate(config.activation_dropout))

  def __call__(self, x: jax.Array) -> jax.Array:
    hidden = activation(self.config.hidden_act)(self.intermediate_dense(x))
    return self.output_dense(self.drop_inside(hidden))


class Wav2Vec2Layer(nn.Module, HasSites):
  """x ← LN(x + attention(x)), x ← LN(x + mlp(x)); where `do_stable_layer_norm` each LN stands before its sublayer."""

  config: Wav2Vec2Config
  runtime: Runtime
  sites: ClassVar = {"attention_branch": "sublayer", "mlp_branch": "sublayer", "__call__": "block"}

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.attention, self.feed_forward = Wav2Vec2Attention(config, runtime), FeedForward(config, runtime)
    self.layer_norm, self.final_layer_norm = (runtime.layer_norm(config.layer_norm_eps) for _ in range(2))
    self.drop = Dropout(runtime.rate(config.hidden_dropout))

  def attention_branch(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The attention sublayer, without its residual sum."""
    return self.drop(self.attention(x, mask))

  def mlp_branch(self, x: jax.Array) -> jax.Array:
    """The feed-forward sublayer, without its residual sum."""
    return self.drop(self.feed_forward(x))

  def __call__(self, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    if self.config.do_stable_layer_norm:
      x = x + self.attention_branch(self.layer_norm(x), mask)
      x = x + self.mlp_branch(self.final_layer_norm(x))
    else:
      x = self.layer_norm(x + self.attention_branch(x, mask))
      x = self.final_layer_norm(x + self.mlp_branch(x))
    return x, x if self.runtime.output_hidden_states else None


class Wav2Vec2Encoder(nn.Module):
  """Frames with their positions, and the layers."""

  config: Wav2Vec2Config
  runtime: Runtime

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.pos_conv_embed = PositionalConv(config, runtime)
    self.layer_norm = runtime.layer_norm(config.layer_norm_eps)
    self.layers = stack_of(Wav2Vec2Layer, (config, runtime), config.num_hidden_layers, runtime)
    self.drop = Dropout(runtime.rate(config.hidden_dropout))

  def embed(self, x: jax.Array) -> jax.Array:
    """What the first layer reads."""
    x = x + self.pos_conv_embed(x)
    return self.drop(x if self.config.do_stable_layer_norm else self.layer_norm(x))

  def __call__(self, embeds: jax.Array, attention_mask: jax.Array | None) -> Outputs:
    hidden, layers = self.layers(embeds, None if attention_mask is None else padding_mask(attention_mask))
    outputs = {"last_hidden_state": self.layer_norm(hidden) if self.config.do_stable_layer_norm else hidden}
    return outputs if layers is None else {**outputs, "hidden_states": jnp.concatenate([embeds[None], layers])}


class Wav2Vec2Model(nn.Module, HasSites):
  """The encoder.

  Inputs: input_values [B, N], samples as the processor scales them; attention_mask int[B, N], 1 for samples, which
  models with group normalisation were trained without; mask_time_indices bool[B, frames], what training hides.
  Outputs: "last_hidden_state" [B, frames, hidden].
  """

  config: Wav2Vec2Config
  runtime: Runtime
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (FRAMES,)

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.feature_extractor = FeatureEncoder(config, runtime)
    self.feature_projection = FeatureProjection(config, runtime)
    self.encoder = Wav2Vec2Encoder(config, runtime)
    if config.mask_time_prob or config.mask_feature_prob:
      draw = nn.initializers.uniform(1.0)
      self.masked_spec_embed = self.param("masked_spec_embed", draw, (config.hidden_size,), runtime.dtype)

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the matrix that embeds frames stands in the tree."""
    return ("feature_projection", "projection")

  def __call__(
    self,
    input_values: jax.Array,
    attention_mask: jax.Array | None = None,
    mask_time_indices: jax.Array | None = None,
  ) -> Outputs:
    return self.from_embeds(*self.embed(input_values, attention_mask, mask_time_indices))

  def embed(
    self, input_values: jax.Array, attention_mask: jax.Array | None, mask_time_indices: jax.Array | None
  ) -> tuple[jax.Array, jax.Array | None]:
    """([B, frames, hidden], int[B, frames] or None): what the layers read, and which frames are of the recording."""
    check_samples(input_values, self.config)
    x = self.feature_projection(self.feature_extractor(input_values))
    if mask_time_indices is not None:
      if not (self.config.mask_time_prob or self.config.mask_feature_prob):
        raise UserError("mask_time_indices: this model has no vector for what is hidden (mask_time_prob=0)")
      x = jnp.where(mask_time_indices[..., None] > 0, self.masked_spec_embed.astype(x.dtype), x)
    frames = None
    if attention_mask is not None:
      lengths = self.config.frames(attention_mask.sum(axis=1))
      frames = (jnp.arange(x.shape[1]) < lengths[:, None]).astype(jnp.int32)
      x = x * frames[..., None].astype(x.dtype)
    return self.encoder.embed(x), frames

  def from_embeds(self, embeds: jax.Array, attention_mask: jax.Array | None = None) -> Outputs:
    """The layers; where a prompt enters, before the frames, without a position."""
    found: Outputs = self.encoder(embeds, attention_mask)
    return found


class Wav2Vec2ForCTC(nn.Module, HasSites):
  """Letters of each frame: "logits" [B, frames, vocabulary], and "frame_lengths" int[B], how many of them are of the
  recording, beside the encoder's outputs."""

  config: Wav2Vec2Config
  runtime: Runtime
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (FRAMES,)

  def setup(self) -> None:
    self.wav2vec2 = Wav2Vec2Model(self.config, self.runtime)
    self.lm_head = self.runtime.dense(self.config.vocab_size)
    self.drop = Dropout(self.runtime.rate(self.config.final_dropout))

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the matrix that embeds frames stands in the tree."""
    return ("wav2vec2", *self.wav2vec2.embedding_path)

  def __call__(
    self,
    input_values: jax.Array,
    attention_mask: jax.Array | None = None,
    mask_time_indices: jax.Array | None = None,
  ) -> Outputs:
    embeds, frames = self.wav2vec2.embed(input_values, attention_mask, mask_time_indices)
    outputs = self.from_embeds(embeds, frames)
    lengths = jnp.full(len(embeds), embeds.shape[1]) if frames is None else frames.sum(axis=1)
    logits = self.lm_head(self.drop(outputs["last_hidden_state"]))
    return {**outputs, "logits": logits, "frame_lengths": lengths}

  def from_embeds(self, embeds: jax.Array, attention_mask: jax.Array | None = None) -> Outputs:
    """The encoder's layers; where a prompt enters."""
    return self.wav2vec2.from_embeds(embeds, attention_mask)


def check_samples(input_values: Any, config: Wav2Vec2Config) -> None:
  """Raises `UserError` unless samples are [B, N], enough of them for one frame."""
  shape = tuple(input_values.shape)
  if len(shape) != 2 or shape[1] < config.least_samples:
    raise UserError(f"input_values: shape {list(shape)}; expected [batch, samples], at least {config.least_samples}")


# Checkpoints ------------------------------------------------------------------------------------------------------

_SIZES = list_of(whole(1, 2**20), 64, "sizes")
TABLE = COMMON | Table(
  read={
    "vocab_size": Field(VOCABULARY, 32),
    "hidden_size": Field(FEATURES, 768),
    "num_hidden_layers": Field(LAYERS, 12),
    "num_attention_heads": Field(HEADS, 12),
    "intermediate_size": Field(FEATURES, 3072),
    "hidden_act": Field(NAME, "gelu"),
    "hidden_dropout": Field(RATE, 0.1),
    "activation_dropout": Field(RATE, 0.1),
    "attention_dropout": Field(RATE, 0.1),
    "feat_proj_dropout": Field(RATE, 0.0),
    "final_dropout": Field(RATE, 0.1),
    "layer_norm_eps": Field(EPSILON, 1e-5),
    "feat_extract_norm": Field(NAME, GROUP),
    "feat_extract_activation": Field(NAME, "gelu"),
    "conv_dim": Field(_SIZES, (512,) * 7),
    "conv_stride": Field(_SIZES, (5, 2, 2, 2, 2, 2, 2)),
    "conv_kernel": Field(_SIZES, (10, 3, 3, 3, 3, 2, 2)),
    "conv_bias": Field(FLAG, False),
    "num_conv_pos_embeddings": Field(whole(1, 2**16), 128),
    "num_conv_pos_embedding_groups": Field(whole(1, 2**16), 16),
    "do_stable_layer_norm": Field(FLAG, False),
    "mask_time_prob": Field(SHARE, 0.05),
    "mask_feature_prob": Field(SHARE, 0.0),
    "pad_token_id": Field(ANY_ID.or_null, 0),
    "bos_token_id": Field(IDS.or_null, 1),
    "eos_token_id": Field(IDS.or_null, 2),
  },
  refused={
    "add_adapter": Only((False,), "convolutions behind the encoder are not computed here"),
    "adapter_attn_dim": Only((None,), "adapters of languages are not computed here"),
  },
  # Of pretraining and of other heads; of what training leaves out or hides, which config.input says; of the loss.
  ignored=frozenset(
    {
      "layerdrop", "apply_spec_augment", "mask_time_length", "mask_time_min_masks", "mask_feature_length",
      "mask_feature_min_masks", "num_codevectors_per_group", "num_codevector_groups", "contrastive_logits_temperature",
      "num_negatives", "codevector_dim", "proj_codevector_dim", "diversity_loss_weight", "feat_quantizer_dropout",
      "ctc_loss_reduction", "ctc_zero_infinity", "use_weighted_layer_sum", "classifier_proj_size", "tdnn_dim",
      "tdnn_kernel", "tdnn_dilation", "xvector_output_dim", "adapter_kernel_size", "adapter_stride",
      "num_adapter_layers", "output_hidden_size", "num_feat_extract_layers", "gradient_checkpointing", "is_causal",
      "_name_or_path",
    }
  ),
)  # fmt: skip


def _parse(hf_config: Mapping[str, Any]) -> Wav2Vec2Config:
  config = Wav2Vec2Config(**fields_for(TABLE.values(hf_config), Wav2Vec2Config))
  check_heads(config.hidden_size, config.num_attention_heads)
  activation(config.hidden_act), activation(config.feat_extract_activation)
  sizes = [len(one) for one in (config.conv_dim, config.conv_stride, config.conv_kernel)]
  if not sizes[0] or len(set(sizes)) > 1:
    raise UserError(f"config.json: conv_dim, conv_stride and conv_kernel have {sizes} entries; expected one a layer")
  if config.feat_extract_norm not in (GROUP, LAYER):
    raise UserError(f"config.json: feat_extract_norm={config.feat_extract_norm!r}: expected {GROUP!r} or {LAYER!r}")
  if config.hidden_size % config.num_conv_pos_embedding_groups:
    raise UserError(f"config.json: num_conv_pos_embedding_groups={config.num_conv_pos_embedding_groups} "
                    f"does not divide hidden_size={config.hidden_size}")  # fmt: skip
  return config


_CONV = "encoder.pos_conv_embed.conv"
WAV2VEC2 = Family(
  model_types=("wav2vec2",),
  table=TABLE,
  parse=_parse,
  architectures={
    "Wav2Vec2ForCTC": Architecture(Wav2Vec2ForCTC, CTC, "wav2vec2", ("lm_head",)),
    "Wav2Vec2Model": Architecture(Wav2Vec2Model, ENCODER),
  },
  stacks=lambda config: {"encoder.layers": config.num_hidden_layers},
  inputs=lambda config: {
    "input_values": jax.ShapeDtypeStruct((1, max(config.least_samples, 3200)), jnp.float32),
  },
  rename=(
    (r"^(.*conv)\.weight_g$", r"\1.parametrizations.weight.original0"),
    (r"^(.*conv)\.weight_v$", r"\1.parametrizations.weight.original1"),
  ),
  copies={  # how the files were called before torch renamed what its weight normalisation holds
    f"{_CONV}.parametrizations.weight.original0": (f"{_CONV}.weight_g",),
    f"{_CONV}.parametrizations.weight.original1": (f"{_CONV}.weight_v",),
  },
  unused=(r"lm_head\..*", r"quantizer\..*", r"project_(hid|q)\..*", r"(.*\.)?masked_spec_embed"),
)
