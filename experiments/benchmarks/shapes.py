"""The models and batches that the benchmarks use: published shapes, random weights and random tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "attention_dropout": 0.0}
BERT = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "num_labels": 2}
ROBERTA = {
  "model_type": "roberta",
  "architectures": ["RobertaForSequenceClassification"],
  "num_labels": 2,
  "vocab_size": 50265,
  "max_position_embeddings": 514,
  "type_vocab_size": 1,
  "pad_token_id": 1,
  "bos_token_id": 0,
  "eos_token_id": 2,
}
T5 = {
  "model_type": "t5",
  "architectures": ["T5ForConditionalGeneration"],
  "vocab_size": 32128,
  "d_kv": 64,
  "relative_attention_num_buckets": 32,
  "decoder_start_token_id": 0,
  "pad_token_id": 0,
  "eos_token_id": 1,
  "tie_word_embeddings": True,
}


@dataclasses.dataclass(frozen=True)
class Shape:
  """A model and a batch.

  Attributes:
    hf_config: config.json.
    task: of `peftjax.tasks`.
    rows, length: of the batch, in tokens (patches and the class token; pairs of frames); every row is full.
    targets: tokens of an encoder-decoder's target.
    peer_targets: `targets_of_lora` where transformers has renamed the modules since.
    targets_of_lora: names of all linear modules in the layers, as published `target_modules` spell them.
  """

  hf_config: Mapping[str, Any]
  task: str
  rows: int
  length: int
  targets_of_lora: tuple[str, ...]
  targets: int = 0
  peer_targets: tuple[str, ...] = ()

  @property
  def tokens(self) -> int:
    """Tokens of a batch, an encoder-decoder's targets included."""
    return self.rows * (self.length + self.targets)

  def of_layers(self, count: int) -> Shape:
    """The same with so many layers in each stack; 0: as it is."""
    known = {
      "gpt2": ("n_layer",),
      "t5": ("num_layers", "num_decoder_layers"),
      "whisper": ("encoder_layers", "decoder_layers"),
    }
    names = known.get(str(self.hf_config["model_type"]), ("num_hidden_layers",)) if count else ()
    return dataclasses.replace(self, hf_config={**self.hf_config, **dict.fromkeys(names, count)})

  @property
  def labels(self) -> int:
    """How many a classifier has; 0 of language models."""
    return 2 if self.task.endswith("classification") else 0

  def batch(self, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch as `peftjax.data` collates it. Rows of a decoder are full, so that they need no mask."""
    random = np.random.default_rng(seed)
    if self.task == "image_classification":
      side = int(self.hf_config["image_size"])
      pixels = random.normal(size=(self.rows, 3, side, side)).astype(np.float32)
      labels = random.integers(2, size=self.rows).astype(np.int32)
      weight, index = np.ones(self.rows, np.float32), np.arange(self.rows, dtype=np.int32)
      return {"pixel_values": pixels, "labels": labels, "weight": weight, "index": index}
    rows, vocabulary = self.rows, int(self.hf_config["vocab_size"])
    if self.task == "speech_recognition":
      features = random.normal(size=(rows, 80, 2 * self.length)).astype(np.float32)
      labels = random.integers(5, vocabulary, (rows, self.targets)).astype(np.int32)
      weight, index = np.ones(rows, np.float32), np.arange(rows, dtype=np.int32)
      return {"input_features": features, "labels": labels, "weight": weight, "index": index}
    ids = random.integers(5, vocabulary, (rows, self.length)).astype(np.int32)
    found = {"input_ids": ids, "weight": np.ones(rows, np.float32), "index": np.arange(rows, dtype=np.int32)}
    if self.task == "text_classification":
      labels = random.integers(2, size=rows).astype(np.int32)
      return found | {"attention_mask": np.ones_like(ids), "labels": labels}
    if self.task == "seq2seq_lm":
      labels = random.integers(5, vocabulary, (rows, self.targets)).astype(np.int32)
      return found | {"attention_mask": np.ones_like(ids), "labels": labels}
    return found | {"labels": ids}


def llama(
  hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
  """config.json of a LLaMA."""
  return {
    **LLAMA,
    "vocab_size": vocabulary,
    "hidden_size": hidden,
    "intermediate_size": inner,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
    **more,
  }


def vit(side: int, **more: Any) -> dict[str, Any]:
  """config.json of a ViT on pictures of `side` pixels."""
  return {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "image_size": side,
    "patch_size": 16,
    **more,
  }


def whisper(width: int, inner: int, layers: int, heads: int, vocabulary: int, positions: int = 1500) -> dict[str, Any]:
  """config.json of a Whisper."""
  found: dict[str, Any] = {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}
  found |= {"d_model": width, "vocab_size": vocabulary, "num_mel_bins": 80, "max_source_positions": positions}
  for side in ("encoder", "decoder"):
    found |= {f"{side}_layers": layers, f"{side}_attention_heads": heads, f"{side}_ffn_dim": inner}
  ends = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
  return {**found, **dict.fromkeys(ends, vocabulary - 1), "max_target_positions": 448}


def t5(width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
  """config.json of a T5 of the first version."""
  return {**T5, "d_model": width, "d_ff": inner, "num_layers": layers, "num_decoder_layers": layers, "num_heads": heads}


_BERT_TARGETS = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
_LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_T5_TARGETS = ("q", "k", "v", "o", "wi", "wo")
_WHISPER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_VIT_PEER_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
_ROBERTA_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_LLAMA_1B = llama(2048, 8192, 16, 32, 8, 128256, rope_theta=500000.0, head_dim=64)
_LLAMA_3B = llama(3072, 8192, 28, 24, 8, 128256, rope_theta=500000.0, head_dim=128)

SHAPES: dict[str, dict[str, Shape]] = {
  "small": {
    "bert-base": Shape({**BERT, "vocab_size": 30522}, "text_classification", 8, 128, _BERT_TARGETS),
    "gpt2": Shape(
      {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257}, "causal_lm", 2, 256,
      ("c_attn", "c_proj", "c_fc"),
    ),
    "llama-135m": Shape(llama(576, 1536, 30, 9, 3, 49152), "causal_lm", 2, 256, _LLAMA_TARGETS),
    "t5-small": Shape(t5(512, 2048, 6, 8), "seq2seq_lm", 4, 128, _T5_TARGETS, targets=64),
    "vit-b16": Shape(vit(224), "image_classification", 4, 197, _BERT_TARGETS, peer_targets=_VIT_PEER_TARGETS),
    "whisper-tiny": Shape(
      whisper(384, 1536, 4, 6, 51865), "speech_recognition", 1, 1500, _WHISPER_TARGETS, targets=64
    ),
  },
  "large": {
    "roberta-large": Shape({**ROBERTA, **_ROBERTA_LARGE}, "text_classification", 32, 128, _BERT_TARGETS),
    "llama-1b": Shape(_LLAMA_1B, "causal_lm", 4, 2048, _LLAMA_TARGETS),
    "llama-3b": Shape(_LLAMA_3B, "causal_lm", 2, 2048, _LLAMA_TARGETS),
    "t5-large": Shape(t5(1024, 4096, 24, 16), "seq2seq_lm", 16, 512, _T5_TARGETS, targets=128),
    "vit-l16": Shape(
      vit(224, **_ROBERTA_LARGE), "image_classification", 32, 197, _BERT_TARGETS, peer_targets=_VIT_PEER_TARGETS
    ),
    "whisper-medium": Shape(
      whisper(1024, 4096, 24, 16, 51865), "speech_recognition", 4, 1500, _WHISPER_TARGETS, targets=128
    ),
  },
  "tiny": {  # to try the benchmarks themselves
    "tiny-bert": Shape(
      {**BERT, "vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
       "num_attention_heads": 2}, "text_classification", 2, 16, _BERT_TARGETS,
    ),
    "tiny-llama": Shape(llama(32, 64, 2, 4, 2, 99), "causal_lm", 2, 16, _LLAMA_TARGETS),
    "tiny-gpt2": Shape(
      {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 99, "n_embd": 32, "n_layer": 2,
       "n_head": 2}, "causal_lm", 2, 16, ("c_attn", "c_proj", "c_fc"),
    ),
    "tiny-t5": Shape(t5(32, 64, 2, 2), "seq2seq_lm", 2, 16, _T5_TARGETS, targets=8),
    "tiny-vit": Shape(
      vit(64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2),
      "image_classification", 2, 17, _BERT_TARGETS, peer_targets=_VIT_PEER_TARGETS,
    ),
    "tiny-whisper": Shape(whisper(32, 64, 2, 2, 99, 16), "speech_recognition", 2, 16, _WHISPER_TARGETS, targets=8),
  },
}  # fmt: skip


def find(name: str) -> Shape:
  """The shape called `name` of any size."""
  return {key: shape for group in SHAPES.values() for key, shape in group.items()}[name]
