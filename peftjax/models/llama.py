"""The LLaMA family (Touvron et al. 2023, arXiv 2302.13971), whose members differ in fields of `LlamaConfig`.

LLaMA 1 to 3, SmolLM2, Mistral, Mixtral, Qwen 2 and 3, Qwen3-MoE, Gemma 1 to 3 (text), Granite, DeciLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.models.decoder import (
  BareDecoder,
  CausalLM,
  DecoderForSequenceClassification,
  Outputs,
  architectures,
  outputs_of,
)
from peftjax.models.family import Family, token_inputs
from peftjax.models.kv_cache import Tokens, frame_of, remember
from peftjax.models.layers import Runtime, activation, attend, stack_of
from peftjax.models.llama_config import MODEL_TYPES, SLIDING, LlamaConfig, parse
from peftjax.models.llama_fields import TABLES
from peftjax.models.moe import Experts
from peftjax.models.rope import rotate, rotations
from peftjax.sites import HasSites

Frame = dict[str, jax.Array]
"""What all layers of a call share: "mask" bool[kinds, B, 1, L, S], "rotations" f32[kinds, 2, B, L, D/2], "slot"."""


class LlamaAttention(nn.Module, HasSites):
  """Grouped-query attention with rotary positions."""

  config: LlamaConfig
  runtime: Runtime
  kv_heads: int
  sites: ClassVar = {"attend": "attention"}

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    size = config.head_dim
    self.q_proj = runtime.dense(config.num_attention_heads * size, config.attention_bias)
    self.k_proj = runtime.dense(self.kv_heads * size, config.attention_bias)
    self.v_proj = runtime.dense(self.kv_heads * size, config.attention_bias)
    self.o_proj = runtime.dense(config.hidden_size, config.output_bias)
    if config.qk_norm:
      self.q_norm = runtime.rms_norm(config.rms_norm_eps, config.norm_offset)
      self.k_norm = runtime.rms_norm(config.rms_norm_eps, config.norm_offset)

  def __call__(self, x: jax.Array, frame: Frame) -> jax.Array:
    split = (*x.shape[:2], -1, self.config.head_dim)
    q, k, v = (layer(x).reshape(split) for layer in (self.q_proj, self.k_proj, self.v_proj))
    if self.config.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)
    q, k = rotate(q, frame["rotations"]), rotate(k, frame["rotations"])
    k, v = remember(self, k, v, frame)
    return self.o_proj(self.attend(q, k, v, frame["mask"]).reshape(*x.shape[:2], -1))

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, L, H, D] from queries [B, L, H, D], keys and values [B, S, K, D], mask [B, 1, L, S]."""
    config = self.config
    scale, softcap = config.attention_scale, config.attn_logit_softcapping
    return attend(self, q, k, v, mask, config.attention_dropout, scale=scale, softcap=softcap, causal=True)


class LlamaMLP(nn.Module):
  """down(act(gate(x)) ⊙ up(x))."""

  config: LlamaConfig
  runtime: Runtime

  def setup(self) -> None:
    config, dense = self.config, self.runtime.dense
    self.gate_proj = dense(config.intermediate_size, config.mlp_bias)
    self.up_proj = dense(config.intermediate_size, config.mlp_bias)
    self.down_proj = dense(config.hidden_size, config.mlp_bias)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.down_proj(activation(self.config.hidden_act)(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Module, HasSites):
  """x ← x + attention(norm(x)); x ← x + mlp(norm(x))."""

  config: LlamaConfig
  runtime: Runtime
  kv_heads: int
  sparse: bool
  sites: ClassVar = {"attention_branch": "sublayer", "mlp_branch": "sublayer", "__call__": "block"}

  def setup(self) -> None:
    config = self.config

    def norm() -> nn.Module:
      return self.runtime.rms_norm(config.rms_norm_eps, config.norm_offset)

    self.self_attn = LlamaAttention(config, self.runtime, self.kv_heads)
    if not self.sparse:
      self.mlp = LlamaMLP(config, self.runtime)
    else:
      setattr(self, config.experts_name, Experts(config, self.runtime))
    self.input_layernorm, self.post_attention_layernorm = norm(), norm()
    if config.post_norms:
      self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norm(), norm()

  def attention_branch(self, x: jax.Array, frame: Frame) -> jax.Array:
    """The attention sublayer without its residual sum."""
    y = self.self_attn(self.input_layernorm(x), frame)
    return self.post_attention_layernorm(y) if self.config.post_norms else y

  def mlp_branch(self, x: jax.Array) -> jax.Array:
    """The feed-forward sublayer without its residual sum."""
    mlp = getattr(self, self.config.experts_name if self.sparse else "mlp")
    if self.config.post_norms:
      return self.post_feedforward_layernorm(mlp(self.pre_feedforward_layernorm(x)))
    return mlp(self.post_attention_layernorm(x))

  def __call__(self, x: jax.Array, kind: jax.Array, frame: Frame) -> tuple[jax.Array, jax.Array | None]:
    weight = self.config.residual_multiplier
    own = {name: value[kind] if name in ("mask", "rotations") else value for name, value in frame.items()}
    x = x + weight * self.attention_branch(x, own)
    x = x + weight * self.mlp_branch(x)
    return x, x if self.runtime.output_hidden_states else None


class LlamaModel(BareDecoder):
  """The decoder without an output layer."""

  config: LlamaConfig
  runtime: Runtime

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.embed_tokens = runtime.embed(config.vocab_size, config.hidden_size)
    each = [(config, runtime, *shape) for shape in zip(config.kv_heads, config.sparse_layers)]
    alike = config.layers_alike
    self.layers = stack_of(
      LlamaLayer, each[0] if alike else each, config.num_hidden_layers, runtime, per_layer=True, alike=alike
    )
    self.norm = runtime.rms_norm(config.rms_norm_eps, config.norm_offset)

  def embed(self, input_ids: jax.Array) -> jax.Array:
    """Word embeddings as they enter the first layer, [B, L, hidden]."""
    embeds = self.embed_tokens(input_ids)
    return embeds * jnp.asarray(self.config.embedding_multiplier, embeds.dtype)

  def run_layers(self, embeds: jax.Array, tokens: Tokens) -> Outputs:
    config = self.config
    windows = [config.sliding_window if kind == SLIDING else None for kind in config.kinds]
    frame = frame_of(tokens, *windows)
    frame["rotations"] = jnp.stack([rotations(rope, tokens.positions) for rope in config.ropes])
    kinds = jnp.asarray([config.kinds.index(kind) for kind in config.layer_types])
    hidden, layers = self.layers(embeds, kinds, frame)
    return outputs_of(embeds, layers, self.norm(hidden))


class LlamaForCausalLM(CausalLM):
  """The decoder with its output layer."""

  bare: ClassVar[Any] = LlamaModel

  def shape_logits(self, logits: jax.Array) -> jax.Array:
    """Scales (Granite) and caps (Gemma 2) the logits."""
    logits = logits / self.config.logits_scaling if self.config.logits_scaling != 1.0 else logits
    cap = self.config.final_logit_softcapping
    return logits if cap is None else cap * jnp.tanh(logits / cap)


class LlamaForSequenceClassification(DecoderForSequenceClassification):
  """The decoder with a classifier on the last token."""

  bare: ClassVar[Any] = LlamaModel


# Checkpoints ------------------------------------------------------------------------------------------------------

_CLASS_NAMES = {
  "llama": "Llama",
  "mistral": "Mistral",
  "mixtral": "Mixtral",
  "qwen2": "Qwen2",
  "qwen3": "Qwen3",
  "qwen3_moe": "Qwen3Moe",
  "gemma": "Gemma",
  "gemma2": "Gemma2",
  "gemma3_text": "Gemma3",
  "granite": "Granite",
  "deci": "DeciLM",
}

_MIXTURES = ("mixtral", "qwen3_moe")


def _experts(config: LlamaConfig, layer: int) -> dict[str, int]:
  return {f"{config.experts_name}.experts": config.num_experts} if config.sparse_layers[layer] else {}


def _family(model_type: str) -> Family:
  name = _CLASS_NAMES[model_type]
  found = architectures(name, LlamaModel, LlamaForCausalLM, LlamaForSequenceClassification, "model")
  if model_type == "gemma3_text":
    found = {key.replace("Gemma3Model", "Gemma3TextModel"): value for key, value in found.items()}
    found["Gemma3TextForSequenceClassification"] = found.pop("Gemma3ForSequenceClassification")
  return Family(
    model_types=(model_type,),
    table=TABLES[model_type],
    parse=parse,
    architectures=found,
    stacks=lambda config: {"layers": config.num_hidden_layers},
    inputs=lambda config: token_inputs(),
    renamed_modules=((r"(.*)\bblock_sparse_moe\b(.*)", r"\1mlp\2"),) if model_type == "mixtral" else (),
    parameters=(r"(.*\.)?mlp\.gate", r"(.*\.)?mlp\.experts\.\d+\.\w+") if model_type in _MIXTURES else (),
    unused=(r"lm_head\.weight", r"score\.weight", r"(.*\.)?rotary_emb\.inv_freq"),
    inner=_experts,
    alike=lambda config: config.layers_alike,
  )


LLAMA: Mapping[str, Family] = {model_type: _family(model_type) for model_type in MODEL_TYPES}
