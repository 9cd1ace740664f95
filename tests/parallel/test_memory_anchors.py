"""Published parameter counts and memory figures against what plans and inspect compute from shapes."""

from __future__ import annotations

import pytest

from peftjax import masks, methods
from peftjax.model import from_config

GB = 1e9
LLAMA32_3B = {
  "model_type": "llama",
  "architectures": ["LlamaForCausalLM"],
  "vocab_size": 128256,
  "hidden_size": 3072,
  "intermediate_size": 8192,
  "num_hidden_layers": 28,
  "num_attention_heads": 24,
  "num_key_value_heads": 8,
  "head_dim": 128,
  "tie_word_embeddings": True,
}
LLAMA_7B = {
  "model_type": "llama",
  "architectures": ["LlamaForCausalLM"],
  "vocab_size": 32000,
  "hidden_size": 4096,
  "intermediate_size": 11008,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "tie_word_embeddings": False,
}


def counted(hf_config, *added, dtype="float32"):
  model = from_config(hf_config, dtype)
  for one in added:
    model = model.add(one)
  trainable, frozen = masks.partition(model.params, model.labels())
  return masks.count(trainable), masks.count(frozen)


@pytest.mark.parametrize(
  ("hf_config", "method", "expected"),
  [
    (LLAMA32_3B, methods.LoRA(rank=32, targets=("q_proj", "v_proj")), 9175040),
    (LLAMA32_3B, methods.LoRA(rank=10, targets=("gate_proj", "up_proj", "down_proj")), 9461760),
    (LLAMA_7B, methods.LoRA(rank=64, targets="all-linear"), 159907840),
  ],
)
def test_published_counts(hf_config, method, expected):
  assert counted(hf_config, method)[0].parameters == expected


def test_full_fine_tuning_in_bfloat16():
  """26.064 GB were allocated (published); leaves, gradients and both of AdamW's moments in bfloat16 are 25.702."""
  _, frozen = counted(LLAMA32_3B, dtype="bfloat16")
  assert frozen.parameters == 3212749824
  assert 4 * frozen.bytes / GB == pytest.approx(25.702, abs=0.001)
  assert 4 * frozen.bytes / GB == pytest.approx(26.064, rel=0.05)


def test_lora_of_rank_64_and_32():
  """147 MB lay between them (published): float32 leaves, gradients and moments of 9.2 million more parameters."""
  small, large = (counted(LLAMA32_3B, methods.LoRA(rank=rank, targets=("q_proj", "v_proj")))[0] for rank in (32, 64))
  assert 4 * (large.bytes - small.bytes) / 1e6 == pytest.approx(146.8, abs=0.1)
  assert 4 * (large.bytes - small.bytes) / 1e6 == pytest.approx(147, rel=0.02)


def test_adam_of_7b():
  """112 GB with Adam in float32 (published, of 7e9 parameters): leaves, gradients and two moments, 16 bytes each."""
  _, frozen = counted(LLAMA_7B)
  assert 16 * frozen.parameters / GB == pytest.approx(112, rel=0.05)
