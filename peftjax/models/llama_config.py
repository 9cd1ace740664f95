"""The LLaMA family's config: what the model types have in common, and where they differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from peftjax.errors import UserError
from peftjax.models.family import fields_of
from peftjax.models.rope import Rope, parse_rope

FULL, SLIDING = "full_attention", "sliding_attention"

_GEMMA: dict[str, Any] = {
  "hidden_act": "gelu_pytorch_tanh",
  "head_dim": 256,
  "tie_word_embeddings": True,
  "max_position_embeddings": 8192,
  "norm_offset": True,
  "pad_token_id": 0,
}
_GEMMA2: dict[str, Any] = {
  **_GEMMA,
  "vocab_size": 256000,
  "hidden_size": 2304,
  "intermediate_size": 9216,
  "num_hidden_layers": 26,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
  "post_norms": True,
}
_QWEN2: dict[str, Any] = {"vocab_size": 151936, "num_key_value_heads": 32, "max_position_embeddings": 32768}

# What config.json may leave out, and what it never says because the architecture fixes it.
_DEFAULTS: dict[str, dict[str, Any]] = {
  "llama": {},
  "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072, "intermediate_size": 14336},
  "qwen2": {**_QWEN2, "intermediate_size": 22016, "attention_bias": True, "output_bias": False},
  "qwen3": {**_QWEN2, "intermediate_size": 22016, "head_dim": 128, "qk_norm": True},
  "qwen3_moe": {
    **_QWEN2,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "qk_norm": True,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": False,
  },
  "mixtral": {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "intermediate_size": 14336,
    "rms_norm_eps": 1e-5,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
  },
  "gemma": {**_GEMMA, "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 16},
  "gemma2": {**_GEMMA2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
  "gemma3_text": {**_GEMMA2, "vocab_size": 262208, "max_position_embeddings": 131072, "qk_norm": True},
  "granite": {},
  "deci": {"num_key_value_heads": 4},
}  # fmt: skip
MODEL_TYPES = tuple(_DEFAULTS)
_THETA = {"mixtral": 1e6, "gemma3_text": 1e6}


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """Shapes and options; names are Hugging Face's where it has one.

  Attributes:
    attention_bias: q, k and v have biases; `output_bias`: o has.
    query_pre_attn_scalar: logits are scaled by its -1/2nd power; 0: by head_dim's.
    layer_types: "full_attention" or "sliding_attention" for each layer.
    ropes: for each type in the order of `kinds`.
    norm_offset: norm scales are stored as their distance from one, and embeddings are scaled by √hidden.
    post_norms: both branches are normalised again before their residual sum.
    qk_norm: queries and keys are normalised within each head.
    kv_heads: key heads of each layer.
    sparse_layers: which layers have experts.
  """

  model_type: str = "llama"
  vocab_size: int = 32000
  hidden_size: int = 4096
  intermediate_size: int = 11008
  num_hidden_layers: int = 32
  num_attention_heads: int = 32
  num_key_value_heads: int = 0
  head_dim: int = 0
  hidden_act: str = "silu"
  max_position_embeddings: int = 2048
  rms_norm_eps: float = 1e-6
  tie_word_embeddings: bool = False
  attention_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  attention_dropout: float = 0.0
  query_pre_attn_scalar: float = 0.0
  attention_multiplier: float = 0.0
  embedding_multiplier: float = 1.0
  residual_multiplier: float = 1.0
  logits_scaling: float = 1.0
  attn_logit_softcapping: float | None = None
  final_logit_softcapping: float | None = None
  sliding_window: int | None = None
  layer_types: tuple[str, ...] = ()
  ropes: tuple[Rope, ...] = ()
  norm_offset: bool = False
  post_norms: bool = False
  qk_norm: bool = False
  num_experts: int = 0
  num_experts_per_tok: int = 0
  moe_intermediate_size: int = 0
  norm_topk_prob: bool = False
  kv_heads: tuple[int, ...] = ()
  sparse_layers: tuple[bool, ...] = ()
  pad_token_id: int | None = None
  num_labels: int = 2

  @property
  def kinds(self) -> tuple[str, ...]:
    """The types of layers that occur, sorted."""
    return tuple(sorted(set(self.layer_types)))

  @property
  def layers_alike(self) -> bool:
    """Whether all layers have leaves of the same shapes."""
    return len(set(self.kv_heads)) == 1 and len(set(self.sparse_layers)) == 1

  @property
  def experts_name(self) -> str:
    """What a layer calls the module that routes tokens to experts."""
    return "block_sparse_moe" if self.model_type == "mixtral" else "mlp"

  @property
  def attention_scale(self) -> float:
    """What query-key products are multiplied by."""
    if self.attention_multiplier:
      return self.attention_multiplier
    return float(self.query_pre_attn_scalar or self.head_dim) ** -0.5


def parse(hf_config: Mapping[str, Any]) -> LlamaConfig:
  """The config of a config.json.

  Raises:
    UserError: numbers that do not fit each other, an unknown kind of rope or layer.
  """
  model_type = str(hf_config["model_type"])
  given = {**_DEFAULTS[model_type], **{name: value for name, value in hf_config.items() if value is not None}}
  found = fields_of(LlamaConfig, {name: value for name, value in given.items() if name not in ("ropes", "layer_types")})
  heads, hidden = given.get("num_attention_heads", 32), given.get("hidden_size", 4096)
  layers = given.get("num_hidden_layers", 32)
  found["head_dim"] = given.get("head_dim") or hidden // heads
  found["num_key_value_heads"] = given.get("num_key_value_heads") or heads
  if model_type.startswith("gemma"):
    found["hidden_act"] = _gemma_activation(given)
    found["embedding_multiplier"] = float(hidden) ** 0.5
  if model_type not in ("qwen2",):
    found["output_bias"] = bool(given.get("attention_bias", False))
  found["num_experts"] = given.get("num_local_experts") or given.get("num_experts") or 0
  found["moe_intermediate_size"] = given.get("moe_intermediate_size") or given.get("intermediate_size", 0)
  found["num_labels"] = given.get("num_labels") or len(given.get("id2label") or (0, 1))
  found["kv_heads"] = tuple(given.get("num_key_value_heads_per_layer") or (found["num_key_value_heads"],) * layers)
  found["sparse_layers"] = _sparse_layers(given, layers, found["num_experts"])
  found["sliding_window"] = _window(model_type, given)
  found["layer_types"] = _layer_types(model_type, given, layers, found["sliding_window"])
  config = LlamaConfig(**found)
  ropes = tuple(_rope(model_type, given, config.head_dim, kind) for kind in config.kinds)
  _check(config)
  return dataclasses.replace(config, ropes=ropes)


def _gemma_activation(given: Mapping[str, Any]) -> str:
  name = given.get("hidden_activation") or given["hidden_act"]
  return "gelu_pytorch_tanh" if name == "gelu" else str(name)  # "gelu" in the first releases meant the tanh form


def _sparse_layers(given: Mapping[str, Any], layers: int, experts: int) -> tuple[bool, ...]:
  dense, step = given.get("mlp_only_layers") or (), given.get("decoder_sparse_step") or 1
  return tuple(bool(experts) and index not in dense and (index + 1) % step == 0 for index in range(layers))


def _window(model_type: str, given: Mapping[str, Any]) -> int | None:
  if model_type in ("llama", "granite", "deci", "gemma"):
    return None
  if model_type.startswith("qwen") and not given.get("use_sliding_window"):
    return None
  return given.get("sliding_window")


def _layer_types(model_type: str, given: Mapping[str, Any], layers: int, window: int | None) -> tuple[str, ...]:
  if window is None:
    return (FULL,) * layers
  if given.get("layer_types"):
    return tuple(given["layer_types"])
  if model_type in ("mistral", "mixtral", "qwen3_moe"):
    return (SLIDING,) * layers
  if model_type.startswith("qwen"):
    first = given.get("max_window_layers", 28)
    return tuple(SLIDING if index >= first else FULL for index in range(layers))
  period = given.get("sliding_window_pattern") or (2 if model_type == "gemma2" else 6)
  return tuple(SLIDING if (index + 1) % period else FULL for index in range(layers))


def _rope(model_type: str, given: Mapping[str, Any], head_dim: int, kind: str) -> Rope:
  if model_type == "gemma3_text" and kind == SLIDING:
    local = {**given, "rope_theta": given.get("rope_local_base_freq") or 10000.0, "rope_scaling": None}
    return parse_rope(local, head_dim, layer_type=kind)
  return parse_rope(given, head_dim, _THETA.get(model_type, 10000.0), kind)


def _check(config: LlamaConfig) -> None:
  for heads in config.kv_heads:
    if config.num_attention_heads % heads:
      raise UserError(f"config.json: {config.num_attention_heads} query heads do not divide among {heads} key heads")
  for name, entries in (("layer_types", config.layer_types), ("num_key_value_heads_per_layer", config.kv_heads)):
    if len(entries) != config.num_hidden_layers:
      raise UserError(f"config.json: {name} has {len(entries)} entries for {config.num_hidden_layers} layers")
  unknown = set(config.kinds) - {FULL, SLIDING}
  if unknown:
    raise UserError(f"config.json: unknown layer type {unknown.pop()!r}; expected {FULL!r} or {SLIDING!r}")
