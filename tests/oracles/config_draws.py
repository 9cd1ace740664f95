"""Configs for `tests/oracles/random_configs.py`: tiny ones of every family with all their options, drawn by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from peftjax.models.layers import ACTIVATIONS

PADDING = 0


class Draw(random.Random):
  """Choices for one config."""

  def sometimes(self, share: float = 0.3) -> bool:
    return self.random() < share

  def activation(self) -> str:
    return self.choice(sorted(ACTIVATIONS))

  def epsilon(self) -> float:
    return self.choice([1e-12, 1e-6, 1e-5, 1e-3])


Case = tuple[str, dict[str, Any], Callable[[dict[str, Any]], None]]
"""The class's ending, the config's arguments, and what is done to config.json after it was written."""


def unchanged(written: dict[str, Any]) -> None:
  del written


def _common(draw: Draw) -> dict[str, Any]:
  ids = {"vocab_size": draw.randint(31, 70), "pad_token_id": PADDING, "bos_token_id": 1, "eos_token_id": 2}
  return {**ids, "num_labels": draw.randint(1, 5), "tie_word_embeddings": draw.sometimes(0.5)}


def heads_of(draw: Draw, even: bool = False) -> tuple[int, int]:
  """(hidden features, heads), odd sizes welcome."""
  heads = draw.choice([1, 2, 3, 4, 5])
  return heads * draw.choice([2, 4, 6, 10] if even else [1, 2, 3, 5, 8]), heads


def _encoder(draw: Draw, name: str) -> Case:
  hidden, heads = heads_of(draw)
  given = {
    **_common(draw),
    "hidden_size": hidden,
    "num_attention_heads": heads,
    "num_hidden_layers": draw.randint(1, 3),
    "intermediate_size": draw.randint(1, 40),
    "hidden_act": draw.activation(),
    "max_position_embeddings": draw.randint(14, 40),
    "type_vocab_size": draw.randint(1, 3),
    "layer_norm_eps": draw.epsilon(),
    "classifier_dropout": draw.choice([None, 0.0, 0.3]),
    "is_decoder": draw.sometimes(0.05),
    "chunk_size_feed_forward": draw.choice([0, 0, 1]),
    "pad_token_id": draw.randint(0, 4) if name == "Roberta" else draw.choice([0, 0, None, 3]),
  }
  endings = ["Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM"]
  ending = draw.choice(endings)
  return ending, {**given, "num_labels": 2} if "Question" in ending else given, unchanged


def _gpt2(draw: Draw, name: str) -> Case:
  del name
  hidden, heads = heads_of(draw)
  given = {
    **_common(draw),
    "n_embd": hidden,
    "n_head": heads,
    "n_layer": draw.randint(1, 3),
    "n_positions": draw.randint(11, 40),
    "n_inner": draw.choice([None, draw.randint(1, 40)]),
    "activation_function": draw.activation(),
    "layer_norm_epsilon": draw.epsilon(),
    "scale_attn_weights": draw.sometimes(0.7),
    "scale_attn_by_inverse_layer_idx": draw.sometimes(),
    "reorder_and_upcast_attn": draw.sometimes(),
    "add_cross_attention": draw.sometimes(0.05),
  }
  other = {"n_embd": "hidden_size", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers"}
  return _decoder_class(draw, lm="LMHeadModel"), given, respelled(draw, other)


def _gptj(draw: Draw, name: str) -> Case:
  del name
  hidden, heads = heads_of(draw, even=True)
  given = {
    **_common(draw),
    "n_embd": hidden,
    "n_head": heads,
    "n_layer": draw.randint(1, 3),
    "n_positions": draw.randint(9, 40),
    "n_inner": draw.choice([None, draw.randint(1, 40)]),
    "rotary_dim": draw.randint(1, hidden // heads + 1),
    "activation_function": draw.activation(),
    "layer_norm_epsilon": draw.epsilon(),
  }
  if given["n_positions"] > 12 and draw.sometimes(0.8):
    given["rotary_dim"] = 2 * draw.randint(1, hidden // heads // 2)
  return _decoder_class(draw), given, respelled(draw, {"n_embd": "hidden_size", "n_head": "num_attention_heads"})


def _neox(draw: Draw, name: str) -> Case:
  del name
  hidden, heads = heads_of(draw, even=True)
  rope = _rope(draw, partial=True)
  given = {
    **_common(draw),
    "hidden_size": hidden,
    "num_attention_heads": heads,
    "num_hidden_layers": draw.randint(1, 3),
    "intermediate_size": draw.randint(1, 40),
    "hidden_act": draw.activation(),
    "max_position_embeddings": draw.randint(5, 40),
    "layer_norm_eps": draw.epsilon(),
    "use_parallel_residual": draw.sometimes(0.5),
    "attention_bias": draw.sometimes(0.7),
    "is_decoder": draw.sometimes(),
    "rope_parameters": rope,
  }

  def old(written: dict[str, Any]) -> None:
    if rope["rope_type"] == "default":
      found = written.pop("rope_parameters")
      written["rotary_emb_base"], written["rotary_pct"] = found["rope_theta"], found["partial_rotary_factor"]
      if draw.sometimes(0.1):
        written["partial_rotary_factor"] = 0.6

  return _decoder_class(draw), given, old if draw.sometimes() else unchanged


def _opt(draw: Draw, name: str) -> Case:
  del name
  hidden, heads = heads_of(draw)
  given = {
    **_common(draw),
    "hidden_size": hidden,
    "num_attention_heads": heads,
    "num_hidden_layers": draw.randint(1, 3),
    "ffn_dim": draw.randint(1, 40),
    "max_position_embeddings": draw.randint(11, 40),
    "do_layer_norm_before": draw.sometimes(0.6),
    "_remove_final_layer_norm": draw.sometimes(0.2),
    "word_embed_proj_dim": draw.choice([hidden, hidden, draw.randint(1, 30)]),
    "activation_function": draw.activation(),
    "layerdrop": draw.choice([0.0] * 9 + [0.1]),
    "enable_bias": draw.sometimes(0.7),
    "layer_norm_elementwise_affine": draw.sometimes(0.7),
  }
  return _decoder_class(draw, bare_too=False), given, unchanged


def _bloom(draw: Draw, name: str) -> Case:
  del name
  hidden, heads = heads_of(draw)
  given = {
    **_common(draw),
    "hidden_size": hidden,
    "n_head": heads,
    "n_layer": draw.randint(1, 3),
    "layer_norm_epsilon": draw.epsilon(),
    "apply_residual_connection_post_layernorm": draw.sometimes(0.5),
    "pretraining_tp": draw.choice([1, 1, 1, 2]),
    "slow_but_exact": draw.sometimes(0.1),
  }
  return (
    _decoder_class(draw),
    given,
    respelled(draw, {"n_head": "num_attention_heads", "n_layer": "num_hidden_layers"}),
  )


def _t5(draw: Draw, name: str) -> Case:
  buckets = draw.choice([8, 16, 32, 6, 12])
  given = {
    **_common(draw),
    "d_model": draw.randint(3, 30),
    "d_kv": draw.randint(1, 10),
    "d_ff": draw.randint(1, 40),
    "num_layers": draw.randint(1, 3),
    "num_decoder_layers": draw.choice([None, 1, 2]),
    "num_heads": draw.randint(1, 5),
    "relative_attention_num_buckets": buckets,
    "relative_attention_max_distance": buckets + draw.randint(1, 20),
    "layer_norm_epsilon": draw.epsilon(),
    "feed_forward_proj": draw.choice(["relu", "gated-gelu", "gated-silu", "gelu", "gated-relu", draw.activation()]),
    "decoder_start_token_id": draw.choice([0, 0, 3]),
    "is_decoder": False,
  }
  ending = draw.choice(["ForConditionalGeneration", "ForConditionalGeneration", "Model", "ForSequenceClassification"])
  if name == "T5" and draw.sometimes(0.2):
    return ending, given, lambda written: written.update(scale_decoder_outputs=draw.sometimes(0.5))
  return ending, given, unchanged


def _rope(draw: Draw, partial: bool = False, kinds: tuple[str, ...] = ()) -> dict[str, Any]:
  kind = draw.choice(kinds or ("default", "default", "linear", "dynamic", "llama3", "yarn"))
  found: dict[str, Any] = {"rope_type": kind, "rope_theta": draw.choice([20.0, 500.0, 10000.0, 1e6])}
  if kind != "default":
    found["factor"] = draw.choice([1.0, 1.5, 4.0, 8])
  if kind == "llama3":
    found |= {"low_freq_factor": draw.choice([1.0, 0.5]), "high_freq_factor": draw.choice([2.0, 4.0])}
  if kind in ("llama3", "yarn") and draw.sometimes(0.8):
    found["original_max_position_embeddings"] = draw.randint(3, 30)
  if kind == "yarn":
    optional = {"attention_factor": 0.7, "beta_fast": 20.0, "beta_slow": 2.0, "truncate": False, "mscale": 0.7}
    found |= {name: value for name, value in optional.items() if draw.sometimes()}
    found |= {"mscale_all_dim": 0.5} if draw.sometimes() else {}
  if partial or draw.sometimes(0.05):
    found["partial_rotary_factor"] = draw.choice([0.25, 0.4, 0.5, 0.75, 1.0])
  return found


def _llama(draw: Draw, name: str) -> Case:
  kv = draw.choice([1, 2, 3])
  heads = kv * draw.choice([1, 2, 3])
  size = draw.choice([2, 4, 6, 10])
  rope = _rope(draw)
  given = {
    **_common(draw),
    "hidden_size": heads * draw.choice([size, size, 3, 5]),
    "num_attention_heads": heads,
    "num_key_value_heads": kv,
    "head_dim": size,
    "num_hidden_layers": draw.randint(1, 3),
    "intermediate_size": draw.randint(1, 40),
    "hidden_act": draw.activation(),
    "max_position_embeddings": draw.randint(5, 40),
    "rms_norm_eps": draw.epsilon(),
    "rope_parameters": rope,
  }
  windows = draw.choice([None, 3, 4, 9])
  if name in ("Llama", "Granite"):
    given |= {"attention_bias": draw.sometimes(), "mlp_bias": draw.sometimes()}
  if name == "Granite":
    given |= {"embedding_multiplier": draw.choice([1.0, 3, 0.5]), "logits_scaling": draw.choice([1.0, 2.0])}
    given |= {"residual_multiplier": draw.choice([1.0, 0.4])}
    given |= {"attention_multiplier": draw.choice([0.3, 1.0])} if draw.sometimes(0.7) else {}
  if name in ("Mistral", "Mixtral"):
    given["sliding_window"] = windows
  if name.startswith("Qwen"):
    given |= {"use_sliding_window": draw.sometimes(0.5), "sliding_window": windows}
  if name in ("Qwen2", "Qwen3"):
    given["max_window_layers"] = draw.randint(0, 3)
    if windows and given["use_sliding_window"] and draw.sometimes():
      given["layer_types"] = _layer_types(draw, given["num_hidden_layers"])
  if name in ("Qwen3", "Qwen3Moe"):
    given["attention_bias"] = draw.sometimes()
  if name == "Mixtral":
    given |= {"num_local_experts": draw.randint(1, 5), "num_experts_per_tok": 1}
    given["num_experts_per_tok"] = draw.randint(1, given["num_local_experts"])
    given["router_jitter_noise"] = draw.choice([0.0] * 9 + [0.1])
  if name == "Qwen3Moe":
    given |= {"num_experts": draw.randint(1, 5), "moe_intermediate_size": draw.randint(1, 30)}
    given |= {"num_experts_per_tok": draw.randint(1, given["num_experts"]), "norm_topk_prob": draw.sometimes(0.5)}
    given |= {"decoder_sparse_step": draw.choice([1, 1, 2]), "mlp_only_layers": draw.choice([None, [], [0], [1]])}
  if name.startswith("Gemma"):
    return _gemma(draw, name, given)
  ending = draw.choice(["ForCausalLM", "Model"]) if name == "Granite" else _decoder_class(draw)
  return ending, given, _old_rope(draw, rope)


def _gemma(draw: Draw, name: str, given: dict[str, Any]) -> Case:
  given |= {"attention_bias": draw.sometimes(), "use_bidirectional_attention": draw.choice([None, None, None, False])}
  if name == "Gemma":
    given["hidden_act"] = draw.choice(["gelu", "gelu_pytorch_tanh", draw.activation()])
    return _decoder_class(draw), given, _old_rope(draw, given["rope_parameters"])
  given["hidden_activation"] = given.pop("hidden_act")
  given |= {"query_pre_attn_scalar": draw.choice([4, 17, 256]), "sliding_window": draw.choice([3, 4, 9])}
  given["final_logit_softcapping"] = draw.choice([None, 2.0, 30.0])
  if draw.sometimes(0.6):
    given["layer_types"] = _layer_types(draw, given["num_hidden_layers"])
  if name == "Gemma2":
    given["attn_logit_softcapping"] = draw.choice([None, 1.0, 50.0])
    return _decoder_class(draw), given, _old_rope(draw, given["rope_parameters"])
  given["attn_logit_softcapping"] = draw.choice([None] * 9 + [1.0])
  given["num_hidden_layers"] = draw.randint(1, 7)
  given.pop("layer_types", None)
  ropes = {"full_attention": given["rope_parameters"], "sliding_attention": _rope(draw, kinds=("default",))}
  given["rope_parameters"] = ropes
  if draw.sometimes():

    def old(written: dict[str, Any]) -> None:
      written.pop("rope_parameters")
      written.pop("layer_types", None)
      full = dict(ropes["full_attention"])
      written |= {
        "rope_theta": full.pop("rope_theta"),
        "rope_local_base_freq": ropes["sliding_attention"]["rope_theta"],
      }
      written |= {"rope_scaling": full if full["rope_type"] == "linear" else None}
      written |= {"sliding_window_pattern": draw.choice([2, 3])}

    return _decoder_class(draw, lm="ForCausalLM"), given, old
  return _decoder_class(draw), given, unchanged


def _layer_types(draw: Draw, layers: int) -> list[str]:
  return [draw.choice(["full_attention", "sliding_attention"]) for _ in range(layers)]


def _decoder_class(draw: Draw, lm: str = "ForCausalLM", bare_too: bool = True) -> str:
  return draw.choice([lm, lm, "ForSequenceClassification"] + ["Model"] * bare_too)


def _old_rope(draw: Draw, rope: Mapping[str, Any]) -> Callable[[dict[str, Any]], None]:
  """The spelling of older files: `rope_theta` and `rope_scaling` beside the other fields."""

  def change(written: dict[str, Any]) -> None:
    found = dict(rope)
    written.pop("rope_parameters")
    written["rope_theta"] = found.pop("rope_theta")
    share = found.pop("partial_rotary_factor", None)
    if share is not None:
      written["partial_rotary_factor"] = share
    if found["rope_type"] == "default":
      written["rope_scaling"] = draw.choice([None, {}])
      return
    if draw.sometimes(0.5):
      found["type"] = found.pop("rope_type")
    written["rope_scaling"] = found

  return change if draw.sometimes() else unchanged


def respelled(draw: Draw, names: Mapping[str, str]) -> Callable[[dict[str, Any]], None]:
  def change(written: dict[str, Any]) -> None:
    for name, other in names.items():
      written[other] = written.pop(name)

  return change if draw.sometimes(0.2) else unchanged


FAMILIES: dict[str, tuple[str, Callable[[Draw, str], Case]]] = {
  "bert": ("Bert", _encoder),
  "roberta": ("Roberta", _encoder),
  "gpt2": ("GPT2", _gpt2),
  "gptj": ("GPTJ", _gptj),
  "gpt_neox": ("GPTNeoX", _neox),
  "opt": ("OPT", _opt),
  "bloom": ("Bloom", _bloom),
  "t5": ("T5", _t5),
  "mt5": ("MT5", _t5),
  "llama": ("Llama", _llama),
  "mistral": ("Mistral", _llama),
  "mixtral": ("Mixtral", _llama),
  "qwen2": ("Qwen2", _llama),
  "qwen3": ("Qwen3", _llama),
  "qwen3_moe": ("Qwen3Moe", _llama),
  "gemma": ("Gemma", _llama),
  "gemma2": ("Gemma2", _llama),
  "gemma3_text": ("Gemma3", _llama),
  "granite": ("Granite", _llama),
}
