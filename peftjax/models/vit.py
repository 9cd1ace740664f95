"""Vision transformers: ViT (Dosovitskiy et al. 2020, arXiv 2010.11929), DeiT (Touvron et al. 2020, arXiv 2012.12877),
DINOv2 (Oquab et al. 2023, arXiv 2304.07193), with and without registers (Darcet et al. 2023, arXiv 2309.16588).

Names are those of the checkpoints, which transformers' modules had until version 5.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.draws import bernoulli
from peftjax.errors import UserError
from peftjax.models.layers import Dropout, Runtime, activation, attend, stack_of
from peftjax.models.resampling import bicubic
from peftjax.models.vit_config import REGISTERS, ViTConfig
from peftjax.sites import HasSites, Stream

PATCHES = Stream(outputs={"last_hidden_state": 1, "hidden_states": 2}, start=1)


class PatchEmbeddings(nn.Module):
  """Every patch of pixels times one matrix: a convolution whose window is its stride."""

  config: ViTConfig
  runtime: Runtime

  def setup(self) -> None:
    self.projection = nn.Conv(
      self.config.hidden_size,
      self.config.patch_size,
      strides=self.config.patch_size,
      padding="VALID",
      dtype=self.runtime.compute_dtype,
      param_dtype=self.runtime.dtype,
    )

  def __call__(self, pixel_values: jax.Array) -> jax.Array:
    """[B, rows, columns, hidden] from [B, C, H, W]; what is left beside the last whole patch is not read."""
    return self.projection(pixel_values.transpose(0, 2, 3, 1))


class Embeddings(nn.Module):
  """Patches behind a class token, with their positions; DeiT's distillation token; DINOv2's registers."""

  config: ViTConfig
  runtime: Runtime

  def setup(self) -> None:
    self.patch_embeddings = PatchEmbeddings(self.config, self.runtime)
    self.add_tokens()
    self.dropout = Dropout(self.runtime.rate(self.config.hidden_dropout_prob))

  def add_tokens(self) -> None:
    """Creates the tokens beside the patches, and all positions."""
    config = self.config
    self.cls_token = self.vectors("cls_token", 1)
    if config.class_tokens == 2:
      self.distillation_token = self.vectors("distillation_token", 1)
    if config.use_mask_token:
      self.mask_token = self.param("mask_token", nn.initializers.zeros, (1, config.hidden_size), self.runtime.dtype)
    if config.model_type == REGISTERS:
      self.register_tokens = self.vectors("register_tokens", config.num_register_tokens)
    rows, columns = config.grid
    self.position_embeddings = self.vectors("position_embeddings", rows * columns + config.class_tokens)

  def vectors(self, name: str, count: int) -> jax.Array:
    """A leaf [1, count, hidden]."""
    shape = (1, count, self.config.hidden_size)
    found: jax.Array = self.param(name, nn.initializers.normal(0.02), shape, self.runtime.dtype)
    return found

  def __call__(self, pixel_values: jax.Array, bool_masked_pos: jax.Array | None = None) -> jax.Array:
    config = self.config
    x = self.patch_embeddings(pixel_values)
    batch, rows, columns, hidden = x.shape
    x = x.reshape(batch, rows * columns, hidden)
    if bool_masked_pos is not None:
      x = jnp.where(bool_masked_pos.astype(bool)[..., None], self.mask_token.astype(x.dtype), x)
    first = [self.cls_token] + ([self.distillation_token] if config.class_tokens == 2 else [])
    x = jnp.concatenate([*(self.spread(one, x) for one in first), x], axis=1)
    x = x + self.positions(rows, columns).astype(x.dtype)
    if config.model_type == REGISTERS:
      x = jnp.concatenate([x[:, :1], self.spread(self.register_tokens, x), x[:, 1:]], axis=1)
    return self.dropout(x)

  def spread(self, token: jax.Array, x: jax.Array) -> jax.Array:
    """A leaf [1, n, hidden] for every image of a batch, in its dtype."""
    return jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], *token.shape[1:]))

  def positions(self, rows: int, columns: int) -> jax.Array:
    """[1, tokens, hidden]: the positions as learned, or, for another number of patches, resampled between them.

    transformers takes them for those of a square where it resamples, and of DINOv2 it resamples all but a square's.
    """
    grid, table, first = self.config.grid, self.position_embeddings, self.config.class_tokens
    is_square = grid[0] == grid[1]
    if (rows, columns) == grid and (is_square or not self.config.is_dinov2):
      return table
    if not is_square:
      raise UserError(
        f"a picture of {rows} x {columns} patches: positions for {grid[0]} x {grid[1]} cannot be resampled, as "
        "transformers has them of squares alone; expected an image_size of equal sides in config.json"
      )
    antialias = self.config.model_type == REGISTERS
    patches = bicubic(table[0, first:].reshape(*grid, -1), rows, columns, antialias=antialias)
    return jnp.concatenate([table[:, :first], patches.reshape(1, rows * columns, -1).astype(table.dtype)], axis=1)


class SelfAttention(nn.Module, HasSites):
  """Multi-head self-attention, without the output projection."""

  config: ViTConfig
  runtime: Runtime
  sites: ClassVar = {"attend": "attention"}

  def setup(self) -> None:
    config = self.config
    features = config.num_attention_heads * config.head_dim
    self.query, self.key, self.value = (self.runtime.dense(features, config.qkv_bias) for _ in range(3))

  def __call__(self, x: jax.Array) -> jax.Array:
    heads = self.config.num_attention_heads
    q, k, v = (layer(x).reshape(*x.shape[:2], heads, -1) for layer in (self.query, self.key, self.value))
    return self.attend(q, k, v, None).reshape(*x.shape[:2], -1)

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """[B, L, H, D] from queries [B, L, H, D], keys and values [B, S, H, D]; every patch sees all."""
    return attend(self, q, k, v, mask, self.config.attention_probs_dropout_prob)


class Projection(nn.Module):
  """The linear layer that ends a sublayer."""

  config: ViTConfig
  runtime: Runtime

  def setup(self) -> None:
    self.dense = self.runtime.dense(self.config.hidden_size)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.dense(x)


class Attention(nn.Module):
  """Self-attention with its output projection."""

  config: ViTConfig
  runtime: Runtime

  def setup(self) -> None:
    self.attention = SelfAttention(self.config, self.runtime)
    self.output = Projection(self.config, self.runtime)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.output(self.attention(x))


class Intermediate(nn.Module):
  """The widening half of the feed-forward sublayer."""

  config: ViTConfig
  runtime: Runtime

  def setup(self) -> None:
    self.dense = self.runtime.dense(self.config.intermediate_size)

  def __call__(self, x: jax.Array) -> jax.Array:
    return activation(self.config.hidden_act)(self.dense(x))


class ViTLayer(nn.Module, HasSites):
  """x ← x + attention(LN(x)); x ← x + mlp(LN(x))."""

  config: ViTConfig
  runtime: Runtime
  sites: ClassVar = {"attention_branch": "sublayer", "mlp_branch": "sublayer", "__call__": "block"}

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.attention, self.intermediate = Attention(config, runtime), Intermediate(config, runtime)
    self.output = Projection(config, runtime)
    self.layernorm_before, self.layernorm_after = (runtime.layer_norm(config.layer_norm_eps) for _ in range(2))
    self.dropout = Dropout(runtime.rate(config.hidden_dropout_prob))

  def attention_branch(self, x: jax.Array) -> jax.Array:
    """The attention sublayer on normalised states, without its residual sum."""
    return self.dropout(self.attention(x))

  def mlp_branch(self, x: jax.Array) -> jax.Array:
    """The feed-forward sublayer on normalised states, without its residual sum."""
    return self.dropout(self.output(self.intermediate(x)))

  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    x = x + self.attention_branch(self.layernorm_before(x))
    x = x + self.mlp_branch(self.layernorm_after(x))
    return x, x if self.runtime.output_hidden_states else None


class LayerScale(nn.Module):
  """One learned factor for each feature of a residual branch (Touvron et al. 2021, arXiv 2103.17239)."""

  runtime: Runtime

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.runtime.dtype)
    return x * scale.astype(x.dtype)


class DropPath(nn.Module):
  """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): leaves out a residual branch for some of the examples."""

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.rate == 0.0 or not self.has_rng("dropout"):
      return x
    keep = bernoulli(self.make_rng("dropout"), 1.0 - self.rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros_like(x))


class MLP(nn.Module):
  """Two linear layers with an activation between them."""

  config: ViTConfig
  runtime: Runtime

  def setup(self) -> None:
    self.fc1 = self.runtime.dense(self.config.intermediate_size)
    self.fc2 = self.runtime.dense(self.config.hidden_size)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.fc2(activation(self.config.hidden_act)(self.fc1(x)))


class SwiGLU(nn.Module):
  """silu(x W₁) · (x W₂) W₃; the checkpoints hold W₁ and W₂ as one matrix (Shazeer 2020, arXiv 2002.05202)."""

  config: ViTConfig
  runtime: Runtime

  def setup(self) -> None:
    self.weights_in = self.runtime.dense(2 * self.config.swiglu_features)
    self.weights_out = self.runtime.dense(self.config.hidden_size)

  def __call__(self, x: jax.Array) -> jax.Array:
    gate, values = jnp.split(self.weights_in(x), 2, axis=-1)
    return self.weights_out(nn.silu(gate) * values)


class Dinov2Layer(nn.Module, HasSites):
  """x ← x + λ₁ attention(LN(x)); x ← x + λ₂ mlp(LN(x))."""

  config: ViTConfig
  runtime: Runtime
  sites: ClassVar = ViTLayer.sites

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.attention = Attention(config, runtime)
    self.mlp = (SwiGLU if config.use_swiglu_ffn else MLP)(config, runtime)
    self.norm1, self.norm2 = (runtime.layer_norm(config.layer_norm_eps) for _ in range(2))
    self.layer_scale1, self.layer_scale2 = LayerScale(runtime), LayerScale(runtime)
    self.drop_path = DropPath(runtime.rate(config.drop_path_rate) if config.drop_path_rate else 0.0)

  def attention_branch(self, x: jax.Array) -> jax.Array:
    """The attention sublayer on normalised states, without its residual sum."""
    return self.layer_scale1(self.attention(x))

  def mlp_branch(self, x: jax.Array) -> jax.Array:
    """The feed-forward sublayer on normalised states, without its residual sum."""
    return self.layer_scale2(self.mlp(x))

  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    x = x + self.drop_path(self.attention_branch(self.norm1(x)))
    x = x + self.drop_path(self.mlp_branch(self.norm2(x)))
    return x, x if self.runtime.output_hidden_states else None


class Encoder(nn.Module):
  """The stack of layers."""

  config: ViTConfig
  runtime: Runtime

  def setup(self) -> None:
    block = Dinov2Layer if self.config.is_dinov2 else ViTLayer
    self.layer = stack_of(block, (self.config, self.runtime), self.config.num_hidden_layers, self.runtime)

  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    return self.layer(x)


class Pooler(nn.Module):
  """An activation of a linear map of the class token."""

  config: ViTConfig
  runtime: Runtime

  def setup(self) -> None:
    self.dense = self.runtime.dense(self.config.pooler_output_size)

  def __call__(self, hidden: jax.Array) -> jax.Array:
    return activation(self.config.pooler_act)(self.dense(hidden[:, 0]))


class ViTModel(nn.Module, HasSites):
  """The encoder.

  Inputs: pixel_values [B, channels, H, W] as a processor gives them, of any size: positions are resampled for another
  than config.json's `image_size`; of models with a mask token, bool_masked_pos [B, patches] says where it stands.
  Outputs: "last_hidden_state" [B, tokens, hidden], normalised, the class token first; "pooler_output" [B, features],
  from a pooler where the architecture has one and the class token itself in DINOv2.
  """

  config: ViTConfig
  runtime: Runtime
  add_pooling_layer: bool = True
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (PATCHES,)

  def setup(self) -> None:
    self.embeddings = Embeddings(self.config, self.runtime)
    self.encoder = Encoder(self.config, self.runtime)
    self.layernorm = self.runtime.layer_norm(self.config.layer_norm_eps)
    if self.add_pooling_layer and not self.config.is_dinov2:
      self.pooler = Pooler(self.config, self.runtime)

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the matrix that embeds patches stands in the tree."""
    return ("embeddings", "patch_embeddings", "projection")

  def __call__(self, pixel_values: jax.Array, bool_masked_pos: jax.Array | None = None) -> dict[str, jax.Array]:
    return self.pooled(self.from_embeds(self.embed(pixel_values, bool_masked_pos)))

  def embed(self, pixel_values: jax.Array, bool_masked_pos: jax.Array | None = None) -> jax.Array:
    """[B, tokens, hidden]: the class token and the patches with their positions."""
    check_pixels(pixel_values, self.config)
    if bool_masked_pos is not None and not self.config.use_mask_token:
      raise UserError("bool_masked_pos: the model has no mask token")
    embedded: jax.Array = self.embeddings(pixel_values, bool_masked_pos)
    return embedded

  def from_embeds(self, embeds: jax.Array) -> dict[str, jax.Array]:
    """The model after its embeddings; where a prompt enters, behind the class token, without a position."""
    hidden, layers = self.encoder(embeds)
    outputs = {"last_hidden_state": self.layernorm(hidden)}
    if layers is not None:
      outputs["hidden_states"] = jnp.concatenate([embeds[None], layers])
    return outputs

  def pooled(self, outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The outputs with "pooler_output"."""
    hidden = outputs["last_hidden_state"]
    if self.config.is_dinov2:
      return {**outputs, "pooler_output": hidden[:, 0]}
    return {**outputs, "pooler_output": self.pooler(hidden)} if self.add_pooling_layer else outputs


def check_pixels(pixel_values: Any, config: Any) -> None:
  """Raises `UserError` unless images are [B, channels, H, W] and hold a patch."""
  shape = tuple(pixel_values.shape)
  rows, columns = config.patch_size
  if len(shape) != 4 or shape[1] != config.num_channels or shape[2] < rows or shape[3] < columns:
    raise UserError(
      f"pixel_values: shape {list(shape)}; expected [batch, {config.num_channels}, height, width] of at least "
      f"{rows} x {columns} pixels"
    )
