"""Published numbers of parameters of decoders and T5, exact and from shapes alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftjax import inspection, masks, methods
from peftjax.methods.base import ADAPTER
from peftjax.model import from_config

ROWS = json.loads((Path(__file__).parents[1] / "published" / "param_counts.json").read_text())
MODEL_TYPES = {
  "llama": "llama",
  "gpt2": "gpt2",
  "opt": "opt",
  "bloomz": "bloom",
  "mt0": "mt5",
  "t5": "t5",
  "flan": "t5",
}
RENAMED = {"r": "rank", "lora_alpha": "alpha", "target_modules": "targets", "num_virtual_tokens": "num_virtual_tokens",
           "n_frequency": "n_frequency", "num_vectors": "num_vectors", "vector_length": "vector_length",
           "topk": "topk"}  # fmt: skip
NAMES = {"PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt"}


def model_type(row):
  return MODEL_TYPES.get(row["model_family"].split("-")[0])


def is_covered(row):
  if "-mica" in row["source"]:
    return False  # an initialisation that freezes B
  name = NAMES.get(row["method"], row["method"].lower())
  config = row["method_config"]
  return (
    model_type(row) is not None
    and name in ("full", "lora", "ia3", "prefix", "prompt", "vera", "fourierft")
    and not (config.get("prefix_projection") or config.get("num_transformer_submodules") == 2)
  )


def method_of(row):
  fields = {ours: row["method_config"][theirs] for theirs, ours in RENAMED.items() if theirs in row["method_config"]}
  if "lora" in row["method"].lower() and "A frozen" in row["method_config"].get("_optimizer", ""):
    fields["freeze_a"] = True
  return methods.build({"name": NAMES.get(row["method"], row["method"].lower()), **fields})


@pytest.mark.parametrize(
  "row",
  [row for row in ROWS if is_covered(row)],
  ids=lambda row: f"{row['model_family']}-{row['method']}-{row['trainable']}",
)
def test_published_rows(row):
  hf_config = {"model_type": model_type(row), **row["hf_config"]}
  model = from_config(hf_config).add(method_of(row))
  found = inspection.report(model)
  assert found["trainable"] == row["trainable"]
  if row["total"] is not None:
    assert found["peft_total"] == row["total"]


LLAMA = {"model_type": "llama", "tie_word_embeddings": False}
LLAMA3 = {**LLAMA, "vocab_size": 128256, "num_key_value_heads": 8}
QWEN3_14B = {
  "model_type": "qwen3",
  "vocab_size": 151936,
  "hidden_size": 5120,
  "intermediate_size": 17408,
  "num_hidden_layers": 40,
  "num_attention_heads": 40,
  "num_key_value_heads": 8,
  "head_dim": 128,
}
QWEN3_MOE = {
  "model_type": "qwen3_moe",
  "hidden_size": 2048,
  "num_hidden_layers": 48,
  "num_attention_heads": 32,
  "num_key_value_heads": 4,
  "head_dim": 128,
  "moe_intermediate_size": 768,
}
GPT3 = {"model_type": "gpt2", "n_embd": 12288, "n_layer": 96, "n_head": 96, "n_positions": 2048}
T5_XL = {
  "model_type": "t5",
  "d_model": 2048,
  "d_ff": 5120,
  "num_layers": 24,
  "num_heads": 32,
  "feed_forward_proj": "gated-gelu",
  "tie_word_embeddings": False,
}
T5_XXL = {**T5_XL, "d_model": 4096, "d_ff": 10240, "num_heads": 64}
DECI_6B = {"model_type": "deci", "num_key_value_heads_per_layer": [4] * 5 + [2] * 3 + [1] * 24}  # 50 key heads in all
GEMMA2_2B = {"model_type": "gemma2"}
GEMMA3_1B = {
  "model_type": "gemma3_text",
  "vocab_size": 262144,
  "hidden_size": 1152,
  "intermediate_size": 6912,
  "num_attention_heads": 4,
  "num_key_value_heads": 1,
}


@pytest.mark.parametrize(
  ("hf_config", "total"),
  [
    (LLAMA, 6_738_415_616),
    ({**LLAMA3, "intermediate_size": 14336}, 8_030_261_248),
    ({**LLAMA3, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
     70_553_706_496),
    ({**LLAMA3, "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
      "num_attention_heads": 128}, 405_853_388_800),
    ({"model_type": "mistral"}, 7_241_732_096),
    ({"model_type": "mixtral"}, 46_702_792_704),
    (QWEN3_14B, 14_768_307_200),
    (QWEN3_MOE, 30_532_122_624),
    (GEMMA2_2B, 2_614_341_888),
    (GEMMA3_1B, 999_885_952),
    (DECI_6B, 5_717_102_592),
    (GPT3, 96 * (12 * 12288**2 + 13 * 12288) + (50257 + 2048 + 2) * 12288),
    ({"model_type": "gpt2"}, 124_439_808),
    (T5_XL, 2_849_757_184),
    (T5_XXL, 11_135_332_352),
  ],
  ids=["llama-7b", "llama-3.1-8b", "70b", "405b", "mistral-7b", "mixtral-8x7b", "qwen3-14b", "qwen3-30b-a3b",
       "gemma-2-2b", "gemma-3-1b", "decilm-6b", "gpt-3", "gpt-2", "t0-3b", "t0-11b"],
)  # fmt: skip
def test_totals(hf_config, total):
  assert masks.count(from_config(hf_config).params).parameters == total


@pytest.mark.parametrize(
  ("hf_config", "method", "adapter"),
  [
    (LLAMA, methods.LoRA(rank=64, targets="all-linear"), 159_907_840),
    (T5_XL, methods.LoRA(rank=8), 4_718_592),
    (T5_XL, methods.IA3(), 540_672),
    (T5_XXL, methods.IA3(), 1_081_344),
    (GPT3, methods.LoRA(rank=4), 18_874_368),
    (DECI_6B, methods.LoRA(rank=8, targets=("q_proj", "v_proj")), 32 * 8 * 8192 + 8 * (32 * 4096 + 50 * 128)),
  ],
)
def test_adapters(hf_config, method, adapter):
  model = from_config(hf_config).add(method)
  groups = masks.flatten(model.labels())
  flat = {path: leaf for path, leaf in masks.flatten(model.params).items() if groups[path] == ADAPTER}
  assert masks.count(flat).parameters == adapter
