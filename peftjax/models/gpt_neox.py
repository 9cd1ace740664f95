"""GPT-NeoX and Pythia (Black et al. 2022, arXiv 2204.06745), and GPT-J (Wang and Komatsuzaki 2021).

Both add attention and feed-forward to the residual side by side and rotate a part of every head. NeoX normalises for
each of the two and rotates halves; GPT-J normalises once and rotates neighbours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax import linen as nn

from peftjax.errors import UserError
from peftjax.kinds import FLAG, NAME
from peftjax.models.config_fields import (
  COMMON,
  EPSILON,
  FEATURES,
  HEADS,
  IDS,
  LAYERS,
  POSITIONS,
  POSITIVE,
  RATE,
  SHARE,
  VOCABULARY,
  Field,
  Table,
  fields_for,
)
from peftjax.models.decoder import (
  BareDecoder,
  CausalLM,
  DecoderForSequenceClassification,
  Outputs,
  architectures,
  outputs_of,
)
from peftjax.models.family import Family, check_heads, token_inputs
from peftjax.models.kv_cache import Tokens, frame_of, remember
from peftjax.models.layers import Dropout, Runtime, activation, attend, stack_of
from peftjax.models.rope import TABLE as ROPE
from peftjax.models.rope import Rope, parse_rope, rotate, rotate_neighbours, rotations, settings
from peftjax.sites import HasSites

Frame = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class NeoXConfig:
  """The fields of config.json that shape either model; names and defaults are GPT-NeoX's."""

  rope: Rope
  vocab_size: int = 50432
  hidden_size: int = 6144
  num_hidden_layers: int = 44
  num_attention_heads: int = 64
  intermediate_size: int = 24576
  hidden_act: str = "gelu"
  embedding_dropout: float = 0.0
  attention_dropout: float = 0.0
  hidden_dropout: float = 0.0
  layer_norm_eps: float = 1e-5
  use_parallel_residual: bool = True
  attention_bias: bool = True
  tie_word_embeddings: bool = False
  pad_token_id: int | None = None
  num_labels: int = 2
  position_limit: int | None = None
  """How many positions there are, of GPT-J; NeoX rotates by any."""

  @property
  def position_rows(self) -> int | None:
    """The positions that may be given."""
    return self.position_limit


class NeoXAttention(nn.Module, HasSites):
  """Self-attention with queries, keys and values of every head from one projection."""

  config: NeoXConfig
  runtime: Runtime
  sites: ClassVar = {"attend": "attention"}

  def setup(self) -> None:
    self.query_key_value = self.runtime.dense(3 * self.config.hidden_size, self.config.attention_bias)
    self.dense = self.runtime.dense(self.config.hidden_size, self.config.attention_bias)

  def __call__(self, x: jax.Array, frame: Frame) -> jax.Array:
    fused = self.query_key_value(x).reshape(*x.shape[:2], self.config.num_attention_heads, 3, -1)
    q, k, v = fused[..., 0, :], fused[..., 1, :], fused[..., 2, :]
    q, k = rotate(q, frame["rotations"]), rotate(k, frame["rotations"])
    k, v = remember(self, k, v, frame)
    return self.dense(self.attend(q, k, v, frame["mask"]).reshape(x.shape))

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, L, H, D] from queries [B, L, H, D], keys and values [B, S, H, D], mask [B, 1, L, S]."""
    return attend(self, q, k, v, mask, self.config.attention_dropout, causal=True)


class NeoXMLP(nn.Module):
  """The feed-forward network."""

  config: NeoXConfig
  runtime: Runtime

  def setup(self) -> None:
    self.dense_h_to_4h = self.runtime.dense(self.config.intermediate_size)
    self.dense_4h_to_h = self.runtime.dense(self.config.hidden_size)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.dense_4h_to_h(activation(self.config.hidden_act)(self.dense_h_to_4h(x)))


class NeoXLayer(nn.Module, HasSites):
  """x ← x + attention(LN(x)) + mlp(LN'(x)), or one after the other."""

  config: NeoXConfig
  runtime: Runtime
  sites: ClassVar = {"attention_branch": "sublayer", "mlp_branch": "sublayer", "__call__": "block"}

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.input_layernorm = runtime.layer_norm(config.layer_norm_eps)
    self.post_attention_layernorm = runtime.layer_norm(config.layer_norm_eps)
    self.attention = NeoXAttention(config, runtime)
    self.mlp = NeoXMLP(config, runtime)
    self.drop = Dropout(runtime.rate(config.hidden_dropout))

  def attention_branch(self, x: jax.Array, frame: Frame) -> jax.Array:
    """The attention sublayer without its residual sum."""
    return self.drop(self.attention(self.input_layernorm(x), frame))

  def mlp_branch(self, x: jax.Array) -> jax.Array:
    """The feed-forward sublayer without its residual sum."""
    return self.drop(self.mlp(self.post_attention_layernorm(x)))

  def __call__(self, x: jax.Array, frame: Frame) -> tuple[jax.Array, jax.Array | None]:
    if self.config.use_parallel_residual:
      x = x + self.attention_branch(x, frame) + self.mlp_branch(x)
    else:
      x = x + self.attention_branch(x, frame)
      x = x + self.mlp_branch(x)
    return x, x if self.runtime.output_hidden_states else None


class GPTNeoXModel(BareDecoder):
  """GPT-NeoX without an output layer."""

  config: NeoXConfig
  runtime: Runtime
  embedding: ClassVar[str] = "embed_in"

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.embed_in = runtime.embed(config.vocab_size, config.hidden_size)
    self.drop = Dropout(runtime.rate(config.embedding_dropout))
    self.layers = stack_of(NeoXLayer, (config, runtime), config.num_hidden_layers, runtime)
    self.final_layer_norm = runtime.layer_norm(config.layer_norm_eps)

  def run_layers(self, embeds: jax.Array, tokens: Tokens) -> Outputs:
    embedded = self.drop(embeds)
    frame = {**frame_of(tokens), "rotations": rotations(self.config.rope, tokens.positions)}
    hidden, layers = self.layers(embedded, frame)
    return outputs_of(embedded, layers, self.final_layer_norm(hidden))


class GPTNeoXForCausalLM(CausalLM):
  """GPT-NeoX with its output layer."""

  bare: ClassVar[Any] = GPTNeoXModel
  prefix: ClassVar[str] = "gpt_neox"
  head_name: ClassVar[str] = "embed_out"


class GPTNeoXForSequenceClassification(DecoderForSequenceClassification):
  """GPT-NeoX with a classifier on the last token."""

  bare: ClassVar[Any] = GPTNeoXModel
  prefix: ClassVar[str] = "gpt_neox"


class GPTJAttention(nn.Module, HasSites):
  """Self-attention without biases."""

  config: NeoXConfig
  runtime: Runtime
  sites: ClassVar = {"attend": "attention"}

  def setup(self) -> None:
    size = self.config.hidden_size
    self.q_proj, self.k_proj, self.v_proj, self.out_proj = (self.runtime.dense(size, False) for _ in range(4))

  def __call__(self, x: jax.Array, frame: Frame) -> jax.Array:
    split = (*x.shape[:2], self.config.num_attention_heads, -1)
    q, k, v = (layer(x).reshape(split) for layer in (self.q_proj, self.k_proj, self.v_proj))
    q, k = rotate_neighbours(q, frame["rotations"]), rotate_neighbours(k, frame["rotations"])
    k, v = remember(self, k, v, frame)
    return self.out_proj(self.attend(q, k, v, frame["mask"]).reshape(x.shape))

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, L, H, D] from queries [B, L, H, D], keys and values [B, S, H, D], mask [B, 1, L, S]."""
    return attend(self, q, k, v, mask, self.config.attention_dropout, causal=True)


class GPTJMLP(nn.Module):
  """The feed-forward network."""

  config: NeoXConfig
  runtime: Runtime

  def setup(self) -> None:
    self.fc_in = self.runtime.dense(self.config.intermediate_size)
    self.fc_out = self.runtime.dense(self.config.hidden_size)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.fc_out(activation(self.config.hidden_act)(self.fc_in(x)))


class GPTJBlock(nn.Module, HasSites):
  """x ← x + attention(LN(x)) + mlp(LN(x))."""

  config: NeoXConfig
  runtime: Runtime
  sites: ClassVar = {"attention_branch": "sublayer", "mlp_branch": "sublayer", "__call__": "block"}

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.ln_1 = runtime.layer_norm(config.layer_norm_eps)
    self.attn = GPTJAttention(config, runtime)
    self.mlp = GPTJMLP(config, runtime)
    self.drop = Dropout(runtime.rate(config.hidden_dropout))

  def attention_branch(self, x: jax.Array, frame: Frame) -> jax.Array:
    """The attention sublayer without its residual sum, from normalised states."""
    return self.drop(self.attn(x, frame))

  def mlp_branch(self, x: jax.Array) -> jax.Array:
    """The feed-forward sublayer without its residual sum, from normalised states."""
    return self.drop(self.mlp(x))

  def __call__(self, x: jax.Array, frame: Frame) -> tuple[jax.Array, jax.Array | None]:
    normed = self.ln_1(x)
    x = x + self.attention_branch(normed, frame) + self.mlp_branch(normed)
    return x, x if self.runtime.output_hidden_states else None


class GPTJModel(BareDecoder):
  """GPT-J without an output layer."""

  config: NeoXConfig
  runtime: Runtime
  embedding: ClassVar[str] = "wte"

  def setup(self) -> None:
    config, runtime = self.config, self.runtime
    self.wte = runtime.embed(config.vocab_size, config.hidden_size)
    self.drop = Dropout(runtime.rate(config.embedding_dropout))
    self.h = stack_of(GPTJBlock, (config, runtime), config.num_hidden_layers, runtime)
    self.ln_f = runtime.layer_norm(config.layer_norm_eps)

  def run_layers(self, embeds: jax.Array, tokens: Tokens) -> Outputs:
    embedded = self.drop(embeds)
    frame = {**frame_of(tokens), "rotations": rotations(self.config.rope, tokens.positions)}
    hidden, layers = self.h(embedded, frame)
    return outputs_of(embedded, layers, self.ln_f(hidden))


class GPTJForCausalLM(CausalLM):
  """GPT-J with its output layer."""

  bare: ClassVar[Any] = GPTJModel
  prefix: ClassVar[str] = "transformer"
  head_bias: ClassVar[bool] = True


class GPTJForSequenceClassification(DecoderForSequenceClassification):
  """GPT-J with a classifier on the last token."""

  bare: ClassVar[Any] = GPTJModel
  prefix: ClassVar[str] = "transformer"


# Checkpoints ------------------------------------------------------------------------------------------------------


TABLE = (
  COMMON
  | ROPE
  | Table(
    read={
      "vocab_size": Field(VOCABULARY, 50432),
      "hidden_size": Field(FEATURES, 6144),
      "num_hidden_layers": Field(LAYERS, 44),
      "num_attention_heads": Field(HEADS, 64),
      "intermediate_size": Field(FEATURES, 24576),
      "hidden_act": Field(NAME, "gelu"),
      "attention_dropout": Field(RATE, 0.0),
      "hidden_dropout": Field(RATE, 0.0),
      "layer_norm_eps": Field(EPSILON, 1e-5),
      "tie_word_embeddings": Field(FLAG, False),
      "use_parallel_residual": Field(FLAG, True),
      "attention_bias": Field(FLAG, True),
      "rotary_pct": Field(SHARE.or_null),
      "rotary_emb_base": Field(POSITIVE.or_null),
      "partial_rotary_factor": Field(SHARE.or_null),
      "head_dim": Field(HEADS.or_null),
      "bos_token_id": Field(IDS.or_null, 0),
      "eos_token_id": Field(IDS.or_null, 2),
    },
    ignored=frozenset({"classifier_dropout", "is_decoder"}),  # of the classifier of tokens; nothing
  )
)


def _parse_neox(hf_config: Mapping[str, Any]) -> NeoXConfig:
  given = TABLE.values(hf_config)
  heads, hidden = given["num_attention_heads"], given["hidden_size"]
  check_heads(hidden, heads)
  if given["head_dim"] not in (None, hidden // heads):
    raise UserError(f"config.json: head_dim={given['head_dim']}: expected {hidden // heads}, hidden_size over heads")
  entry = settings(given)
  for name, other, default in (
    ("rope_theta", "rotary_emb_base", 10000.0),
    ("partial_rotary_factor", "rotary_pct", 0.25),
  ):
    entry.setdefault(name, default if given[other] is None else given[other])
    if given[name] not in (None, entry[name]):
      raise UserError(f"config.json: {name}={given[name]:g}: of this model transformers reads {other}, {entry[name]}")
  rope = parse_rope(entry, given, hidden // heads, 10000.0, partial=True)
  activation(given["hidden_act"])
  return NeoXConfig(rope=rope, **fields_for(given, NeoXConfig))


GPTJ_TABLE = COMMON | Table(
  read={
    "vocab_size": Field(VOCABULARY, 50400),
    "n_positions": Field(POSITIONS, 2048),
    "n_embd": Field(FEATURES, 4096),
    "n_layer": Field(LAYERS, 28),
    "n_head": Field(HEADS, 16),
    "rotary_dim": Field(HEADS, 64),
    "n_inner": Field(FEATURES.or_null),
    "activation_function": Field(NAME, "gelu_new"),
    "resid_pdrop": Field(RATE, 0.0),
    "embd_pdrop": Field(RATE, 0.0),
    "attn_pdrop": Field(RATE, 0.0),
    "layer_norm_epsilon": Field(EPSILON, 1e-5),
    "tie_word_embeddings": Field(FLAG, False),
    "bos_token_id": Field(IDS.or_null, 50256),
    "eos_token_id": Field(IDS.or_null, 50256),
  },
  spellings={
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
  },
)
_GPTJ_NAMES = {
  "hidden_size": "n_embd",
  "num_hidden_layers": "n_layer",
  "num_attention_heads": "n_head",
  "hidden_act": "activation_function",
  "embedding_dropout": "embd_pdrop",
  "attention_dropout": "attn_pdrop",
  "hidden_dropout": "resid_pdrop",
  "layer_norm_eps": "layer_norm_epsilon",
  "position_limit": "n_positions",
}


def _parse_gptj(hf_config: Mapping[str, Any]) -> NeoXConfig:
  given = GPTJ_TABLE.values(hf_config)
  heads, hidden, rotated = given["n_head"], given["n_embd"], given["rotary_dim"]
  check_heads(hidden, heads)
  if rotated % 2 or rotated > hidden // heads:
    raise UserError(
      f"config.json: rotary_dim={rotated}: expected an even number up to {hidden // heads}, a head's size"
    )
  activation(given["activation_function"])
  fields = fields_for(given, NeoXConfig, **_GPTJ_NAMES)
  return NeoXConfig(rope=Rope(rotated), intermediate_size=given["n_inner"] or 4 * hidden, **fields)


NEOX = Family(
  model_types=("gpt_neox",),
  table=TABLE,
  parse=_parse_neox,
  architectures=architectures(
    "GPTNeoX", GPTNeoXModel, GPTNeoXForCausalLM, GPTNeoXForSequenceClassification, "gpt_neox"
  ),
  stacks=lambda config: {"layers": config.num_hidden_layers},
  inputs=lambda config: token_inputs(),
  renamed_modules=((r"(.*)\bembed_out\b(.*)", r"\1lm_head\2"),),
  unused=(
    r"embed_out\.weight",
    r"score\.weight",
    r"(gpt_neox\.)?layers\.\d+\.attention\.((masked_)?bias|rotary_emb\.inv_freq)",
  ),
)
GPTJ = Family(
  model_types=("gptj",),
  table=GPTJ_TABLE,
  parse=_parse_gptj,
  architectures=architectures("GPTJ", GPTJModel, GPTJForCausalLM, GPTJForSequenceClassification, "transformer"),
  stacks=lambda config: {"h": config.num_hidden_layers},
  inputs=lambda config: token_inputs(),
  unused=(
    r"lm_head\.(weight|bias)",
    r"score\.weight",
    r"(transformer\.)?h\.\d+\.attn\.((masked_)?bias|embed_positions)",
  ),
)
