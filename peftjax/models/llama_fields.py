"""The fields of config.json of every member of the LLaMA family; see `config_fields`."""

from __future__ import annotations

from collections.abc import Mapping

from peftjax.kinds import FLAG, NAME, list_of, whole
from peftjax.models.config_fields import (
  ANY_ID,
  COMMON,
  EPSILON,
  FEATURES,
  HEADS,
  IDS,
  LAYERS,
  POSITIONS,
  POSITIVE,
  RATE,
  REAL,
  VOCABULARY,
  Field,
  Only,
  Table,
)
from peftjax.models.rope import TABLE as ROPE

_EXPERTS = whole(1, 2**12)
WINDOW = whole(1, 2**31 - 1)

_WHOLE_HEADS = Only((None, 1, 1.0), "this model rotates whole heads")
_LAYER_TYPES = Only((None,), "all layers of this model have the same type")
_DECODER = (
  COMMON
  | ROPE
  | Table(
    read={
      "vocab_size": Field(VOCABULARY, 32000),
      "hidden_size": Field(FEATURES, 4096),
      "intermediate_size": Field(FEATURES, 11008),
      "num_hidden_layers": Field(LAYERS, 32),
      "num_attention_heads": Field(HEADS, 32),
      "num_key_value_heads": Field(HEADS.or_null),
      "head_dim": Field(HEADS.or_null),
      "hidden_act": Field(NAME, "silu"),
      "rms_norm_eps": Field(EPSILON, 1e-6),
      "attention_dropout": Field(RATE.or_null, 0.0),
      "tie_word_embeddings": Field(FLAG, False),
    },
    refused={"partial_rotary_factor": _WHOLE_HEADS},
  )
)


def _read(**fields: Field) -> Table:
  return Table(read=fields)


def _ids(bos: int | None, eos: int | None, pad: int | None = None) -> Table:
  return _read(
    bos_token_id=Field(IDS.or_null, bos), eos_token_id=Field(IDS.or_null, eos), pad_token_id=Field(ANY_ID.or_null, pad)
  )


_LLAMA = (
  _DECODER
  | _ids(1, 2)
  | Table({"attention_bias": Field(FLAG, False), "mlp_bias": Field(FLAG, False)}, ignored=frozenset({"pretraining_tp"}))
)
_MISTRAL = (
  _DECODER
  | _ids(1, 2)
  | _read(
    intermediate_size=Field(FEATURES, 14336),
    num_key_value_heads=Field(HEADS.or_null, 8),
    max_position_embeddings=Field(POSITIONS, 131072),
    sliding_window=Field(WINDOW.or_null, 4096),
  )
  | Table({}, refused={"layer_types": _LAYER_TYPES})
)
_ROUTER = Table(
  {},
  refused={
    "output_router_logits": Only((False,), "a loss on the router, which is not computed here"),
    "router_jitter_noise": Only((0.0,), "noise on the router, which is not computed here"),
  },
  ignored=frozenset({"router_aux_loss_coef"}),  # of the loss that is refused
)
_QWEN = _DECODER | _read(
  vocab_size=Field(VOCABULARY, 151936),
  intermediate_size=Field(FEATURES, 22016),
  num_key_value_heads=Field(HEADS.or_null, 32),
  max_position_embeddings=Field(POSITIONS, 32768),
  use_sliding_window=Field(FLAG, False),
  sliding_window=Field(WINDOW.or_null, 4096),
)
_QWEN2 = _QWEN | _read(max_window_layers=Field(whole(0, 2**31 - 1), 28), layer_types=Field(list_of(NAME).or_null))
_GEMMA = (
  _DECODER
  | _ids(2, 1, 0)
  | _read(
    vocab_size=Field(VOCABULARY, 256000),
    hidden_size=Field(FEATURES, 3072),
    intermediate_size=Field(FEATURES, 24576),
    num_hidden_layers=Field(LAYERS, 28),
    num_attention_heads=Field(HEADS, 16),
    num_key_value_heads=Field(HEADS.or_null, 16),
    head_dim=Field(HEADS, 256),
    hidden_act=Field(NAME, "gelu_pytorch_tanh"),
    max_position_embeddings=Field(POSITIONS, 8192),
    attention_bias=Field(FLAG, False),
    tie_word_embeddings=Field(FLAG, True),
  )
  | Table(
    {},
    refused={
      "use_bidirectional_attention": Only((None, False), "attention to later tokens"),
      "hidden_activation": Only((None, "gelu_pytorch_tanh"), "transformers reads hidden_act"),
    },
  )
)
_GEMMA2 = _GEMMA | _read(
  hidden_size=Field(FEATURES, 2304),
  intermediate_size=Field(FEATURES, 9216),
  num_hidden_layers=Field(LAYERS, 26),
  num_attention_heads=Field(HEADS, 8),
  num_key_value_heads=Field(HEADS.or_null, 4),
  hidden_activation=Field(NAME, "gelu_pytorch_tanh"),
  query_pre_attn_scalar=Field(POSITIVE, 256.0),
  sliding_window=Field(WINDOW.or_null, 4096),
  layer_types=Field(list_of(NAME).or_null),
  attn_logit_softcapping=Field(POSITIVE.or_null, 50.0),
  final_logit_softcapping=Field(POSITIVE.or_null, 30.0),
)
_GEMMA2 = Table(
  {name: field for name, field in _GEMMA2.read.items() if name != "hidden_act"},
  _GEMMA2.refused,
  _GEMMA2.ignored | {"hidden_act"},  # of which transformers reads the other
)

TABLES: Mapping[str, Table] = {
  "llama": _LLAMA,
  "mistral": _MISTRAL,
  "mixtral": _MISTRAL
  | _ROUTER
  | Table(
    {
      "rms_norm_eps": Field(EPSILON, 1e-5),
      "sliding_window": Field(WINDOW.or_null, None),
      "num_experts_per_tok": Field(_EXPERTS, 2),
      "num_local_experts": Field(_EXPERTS, 8),
    },
    spellings={"num_experts": "num_local_experts"},
  ),
  "qwen2": _QWEN2,
  "qwen3": _QWEN2 | _read(head_dim=Field(HEADS, 128), attention_bias=Field(FLAG, False)),
  "qwen3_moe": _QWEN
  | _ROUTER
  | Table(
    {
      "hidden_size": Field(FEATURES, 2048),
      "intermediate_size": Field(FEATURES, 6144),
      "num_hidden_layers": Field(LAYERS, 24),
      "num_key_value_heads": Field(HEADS.or_null, 4),
      "attention_bias": Field(FLAG, False),
      "decoder_sparse_step": Field(whole(1, 2**31 - 1), 1),
      "moe_intermediate_size": Field(FEATURES, 768),
      "num_experts_per_tok": Field(_EXPERTS, 8),
      "num_experts": Field(_EXPERTS, 128),
      "norm_topk_prob": Field(FLAG, False),
      "mlp_only_layers": Field(list_of(whole(0, 2**31 - 1)).or_null),
    },
    refused={"layer_types": _LAYER_TYPES},
    spellings={"num_local_experts": "num_experts"},
  ),
  "gemma": _GEMMA,
  "gemma2": _GEMMA2,
  "gemma3_text": _GEMMA2
  | Table(
    {
      "vocab_size": Field(VOCABULARY, 262208),
      "max_position_embeddings": Field(POSITIONS, 131072),
      "final_logit_softcapping": Field(POSITIVE.or_null, None),
      "rope_local_base_freq": Field(POSITIVE.or_null),
      "sliding_window_pattern": Field(whole(1, 2**31 - 1).or_null),
    },
    refused={"attn_logit_softcapping": Only((None,), "transformers does not apply it in this model")},
  ),
  "granite": _LLAMA
  | _read(
    embedding_multiplier=Field(REAL, 1.0),
    logits_scaling=Field(POSITIVE, 1.0),
    residual_multiplier=Field(REAL, 1.0),
    attention_multiplier=Field(REAL, 1.0),
  ),
  "deci": _LLAMA
  | _read(num_key_value_heads=Field(HEADS.or_null, 4), num_key_value_heads_per_layer=Field(list_of(HEADS).or_null)),
}
