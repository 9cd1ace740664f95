"""Default targets by architecture (config.json's model_type), the same as Hugging Face PEFT's."""

from __future__ import annotations

from peftjax.masks import Patterns

_QV = ("q_proj", "v_proj")
_LLAMA_LIKE = ("llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3")

_DINOV2 = ("dinov2", "dinov2_with_registers")
_CLIP = ("clip", "clip_text_model", "clip_vision_model")
_VIT = ("vit", "deit", "yolos")
_VISION = (*_VIT, *_DINOV2)

# Attention's query and value, or the fused projection that holds them.
ATTENTION: dict[str, Patterns] = {
  "bert": ("query", "value"),
  "roberta": ("query", "value"),
  "gpt2": ("c_attn",),
  "bloom": ("query_key_value",),
  "gpt_neox": ("query_key_value",),
  "gptj": _QV,
  "opt": _QV,
  "t5": ("q", "v"),
  "mt5": ("q", "v"),
  **dict.fromkeys(_VISION, ("query", "value")),
  "detr": _QV,
  "wav2vec2": _QV,
  "whisper": _QV,
  **dict.fromkeys(_CLIP, _QV),
  **dict.fromkeys(_LLAMA_LIKE, _QV),
}

IA3: dict[str, tuple[str, ...]] = {
  "bert": ("key", "value", "output.dense"),
  "roberta": ("key", "value", "output.dense"),
  "gpt2": ("c_attn", "mlp.c_proj"),
  "bloom": ("query_key_value", "mlp.dense_4h_to_h"),
  "gpt_neox": ("query_key_value", "dense_4h_to_h"),
  "gptj": ("q_proj", "v_proj", "fc_out"),
  "opt": ("q_proj", "k_proj", "fc2"),
  "t5": ("k", "v", "wo"),
  "mt5": ("k", "v", "wi_1"),
  "llama": ("k_proj", "v_proj", "down_proj"),
  "mistral": ("k_proj", "v_proj", "down_proj"),
  "mixtral": ("k_proj", "v_proj", "w2"),
  **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"), ("q_proj", "v_proj", "down_proj")),
  **dict.fromkeys(_VIT, ("key", "value", "output.dense")),
  **dict.fromkeys((*_CLIP, "detr", "whisper"), ("k_proj", "v_proj", "fc2")),
  "wav2vec2": ("k_proj", "v_proj", "output_dense"),
  **dict.fromkeys(_DINOV2, ("key", "value", "*.mlp.*[2t]")),  # fc2, or of SwiGLU weights_out
}

# Those of IA3's targets whose input, not output, is scaled.
IA3_FEEDFORWARD: dict[str, tuple[str, ...]] = {
  "bert": ("output.dense",),
  "roberta": ("output.dense",),
  "gpt2": ("mlp.c_proj",),
  "bloom": ("mlp.dense_4h_to_h",),
  "gpt_neox": ("dense_4h_to_h",),
  "gptj": ("fc_out",),
  "opt": ("fc2",),
  "t5": ("wo",),
  "mt5": (),
  "mixtral": ("w2",),
  **dict.fromkeys(("llama", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"), ("down_proj",)),
  **dict.fromkeys(_VIT, ("output.dense",)),
  **dict.fromkeys((*_CLIP, "detr", "whisper"), ("fc2",)),
  "wav2vec2": ("output_dense",),
  **dict.fromkeys(_DINOV2, ("*.mlp.*[2t]",)),
}

# Where VB-LoRA's published lists are wider than LoRA's; the rest are ATTENTION.
VBLORA: dict[str, tuple[str, ...]] = {
  "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
  "t5": ("q", "k", "v", "o", "wi", "wo"),
  "mt5": ("q", "k", "v", "o", "wi_0", "wi_1", "wo"),
}

# Attention's value alone: what BEFT biases.
VALUES: dict[str, tuple[str, ...]] = {
  "bert": ("value",),
  "roberta": ("value",),
  "t5": ("v",),
  "mt5": ("v",),
  "gptj": ("v_proj",),
  "opt": ("v_proj",),
  **dict.fromkeys(_LLAMA_LIKE, ("v_proj",)),
  **dict.fromkeys(_VISION, ("value",)),
  **dict.fromkeys((*_CLIP, "detr", "wav2vec2", "whisper"), ("v_proj",)),
}

# Normalisations that HF PEFT's LN tuning trains; where an architecture is not listed, all of them.
NORMS: dict[str, tuple[str, ...]] = {
  "gpt2": ("ln_1", "ln_2", "ln_f"),
  "gptj": ("ln_1", "ln_f"),
  "bloom": ("input_layernorm", "post_attention_layernorm", "ln_f"),
  "t5": ("layer_norm", "final_layer_norm"),
  "mt5": ("layer_norm", "final_layer_norm"),
  **dict.fromkeys(("llama", "mistral", "gemma"), ("input_layernorm", "post_attention_layernorm", "norm")),
  **dict.fromkeys(
    ("gemma2", "gemma3_text"),
    (
      "input_layernorm",
      "post_attention_layernorm",
      "pre_feedforward_layernorm",
      "post_feedforward_layernorm",
      "norm",
    ),
  ),
  **dict.fromkeys(("qwen2", "qwen3"), ("post_attention_layernorm",)),
}

# Layers whose text has both of its ends before the model starts: all, or those of the encoder.
EDITED: dict[str, tuple[str, ...]] = {
  **dict.fromkeys(("t5", "mt5"), ("*encoder.block.*",)),
  "whisper": ("*encoder.layers.*",),
}

# Attention that PEFT gives a prefix: the decoder's to itself where there is an encoder too; all of it elsewhere.
PREFIX: dict[str, tuple[str, ...]] = {
  **dict.fromkeys(("t5", "mt5"), ("*decoder.block.*.SelfAttention",)),
  "whisper": ("*decoder.layers.*.self_attn",),
}

# AdaLoRA's where they differ from LoRA's.
ADALORA: dict[str, tuple[str, ...]] = {
  "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
  "t5": ("q", "k", "v", "o", "wi", "wo"),
  "mt5": ("q", "k", "v", "o", "wi_0", "wi_1", "wo"),
  "roberta": ("query", "key", "value", "dense"),
}

# FourierFT and C3A leave the fused attention projection of GPT-2 alone.
SQUARE: dict[str, tuple[str, ...]] = {"gpt2": ("mlp.c_proj",)}
