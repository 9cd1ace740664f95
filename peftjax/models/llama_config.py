"""The LLaMA family's config: what the model types have in common, and where they differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from peftjax.errors import UserError
from peftjax.models.config_fields import fields_for
from peftjax.models.layers import activation
from peftjax.models.llama_fields import TABLES
from peftjax.models.rope import Rope, parse_rope, settings

FULL, SLIDING = "full_attention", "sliding_attention"

MODEL_TYPES = tuple(TABLES)
_GEMMAS = ("gemma", "gemma2", "gemma3_text")
_THETA = {"mixtral": 1e6}
_GEMMA3_THETA = {FULL: 1e6, SLIDING: 1e4}


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
  attention_multiplier: float | None = None
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
    if self.attention_multiplier is not None:
      return self.attention_multiplier
    return float(self.query_pre_attn_scalar or self.head_dim) ** -0.5


def parse(hf_config: Mapping[str, Any]) -> LlamaConfig:
  """The config of a config.json.

  Raises:
    UserError: a field of another type or out of range, one that asks for what is not computed here, numbers that do
      not fit each other, an unknown kind of rope or layer.
  """
  model_type = str(hf_config["model_type"])
  given = TABLES[model_type].values(hf_config)
  layers, heads, hidden = (given[name] for name in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
  found = fields_for(given, LlamaConfig)
  found["model_type"] = model_type
  found["head_dim"] = given["head_dim"] or max(hidden // heads, 1)
  found["num_key_value_heads"] = given["num_key_value_heads"] or heads
  found["attention_dropout"] = given["attention_dropout"] or 0.0
  found["attention_bias"] = model_type == "qwen2" or given.get("attention_bias", False)
  found["output_bias"] = given.get("attention_bias", False)
  if model_type in _GEMMAS:
    found["norm_offset"] = True
    found["embedding_multiplier"] = float(hidden) ** 0.5
    found["hidden_act"] = _gemma_activation(given)
  found["post_norms"] = model_type in ("gemma2", "gemma3_text")
  found["qk_norm"] = model_type in ("qwen3", "qwen3_moe", "gemma3_text")
  found["num_experts"] = given.get("num_local_experts") or given.get("num_experts") or 0
  found["moe_intermediate_size"] = given.get("moe_intermediate_size") or given["intermediate_size"]
  found["norm_topk_prob"] = model_type == "mixtral" or given.get("norm_topk_prob", False)
  found["kv_heads"] = given.get("num_key_value_heads_per_layer") or (found["num_key_value_heads"],) * layers
  found["sparse_layers"] = _sparse_layers(given, layers, found["num_experts"])
  found["sliding_window"] = given.get("sliding_window") if given.get("use_sliding_window", True) else None
  found["layer_types"] = _layer_types(model_type, given, layers, found["sliding_window"])
  config = LlamaConfig(**found)
  _check(config)
  return dataclasses.replace(
    config, ropes=tuple(_rope(model_type, given, config.head_dim, kind) for kind in config.kinds)
  )


def _gemma_activation(given: Mapping[str, Any]) -> str:
  if "hidden_act" not in given:
    return str(given["hidden_activation"])
  # In the first releases "gelu" meant the tanh form.
  return "gelu_pytorch_tanh" if given["hidden_act"] == "gelu" else str(given["hidden_act"])


def _sparse_layers(given: Mapping[str, Any], layers: int, experts: int) -> tuple[bool, ...]:
  dense, step = given.get("mlp_only_layers") or (), given.get("decoder_sparse_step") or 1
  return tuple(bool(experts) and index not in dense and (index + 1) % step == 0 for index in range(layers))


def _layer_types(model_type: str, given: Mapping[str, Any], layers: int, window: int | None) -> tuple[str, ...]:
  types: tuple[str, ...] = given.get("layer_types") or ()
  if types:
    if window is None and SLIDING in types:
      raise UserError(f"config.json: layer_types has {SLIDING!r}, but there is no sliding_window")
    return types
  if window is None:
    return (FULL,) * layers
  if "layer_types" not in given:
    return (SLIDING,) * layers
  if model_type.startswith("qwen"):
    return tuple(SLIDING if index >= given["max_window_layers"] else FULL for index in range(layers))
  period = 2 if model_type == "gemma2" else given["sliding_window_pattern"] or 6
  return tuple(SLIDING if (index + 1) % period else FULL for index in range(layers))


def _rope(model_type: str, given: Mapping[str, Any], head_dim: int, kind: str) -> Rope:
  if model_type != "gemma3_text":
    return parse_rope(settings(given), given, head_dim, _THETA.get(model_type, 10000.0))
  entries = given["rope_parameters"] or {}
  if entries and not {FULL, SLIDING} & entries.keys():
    raise UserError(f"config.json: rope_parameters of this model has entries by layer type, {FULL!r} and {SLIDING!r}")
  entry = entries.get(kind) or {}
  if not isinstance(entry, Mapping):
    raise UserError(f"config.json: rope_parameters: {kind}: expected an object, got {type(entry).__name__}")
  if kind == FULL:
    entry = {**entry, **(given["rope_scaling"] or {})}
  if entry.get("truncate") is False:
    raise UserError("config.json: truncate=false: transformers does not apply it where rope_parameters has layer types")
  old = given["rope_theta"] if kind == FULL else given["rope_local_base_freq"]
  return parse_rope(entry, {**given, "rope_theta": old}, head_dim, _GEMMA3_THETA[kind])


def _check(config: LlamaConfig) -> None:
  for heads in config.kv_heads:
    if config.num_attention_heads % heads:
      raise UserError(f"config.json: {config.num_attention_heads} query heads do not divide among {heads} key heads")
  for name, entries in (("layer_types", config.layer_types), ("num_key_value_heads_per_layer", config.kv_heads)):
    if len(entries) != config.num_hidden_layers:
      raise UserError(f"config.json: {name} has {len(entries)} entries for {config.num_hidden_layers} layers")
  if config.num_experts_per_tok > config.num_experts:
    chosen, count = config.num_experts_per_tok, config.num_experts
    raise UserError(f"config.json: num_experts_per_tok={chosen}: there are {count} experts")
  activation(config.hidden_act)
  unknown = set(config.kinds) - {FULL, SLIDING}
  if unknown:
    raise UserError(f"config.json: unknown layer type {unknown.pop()!r}; expected {FULL!r} or {SLIDING!r}")
