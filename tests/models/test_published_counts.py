"""Published numbers of parameters of decoders, T5, ViT and Whisper, exact and from shapes alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftjax import cli, masks, methods
from peftjax.loading import from_config
from peftjax.methods.base import ADAPTER

ROWS = json.loads((Path(__file__).parents[1] / "published" / "param_counts.json").read_text())
ENCODERS = ("bert-base-cased", "roberta-base", "roberta-large")  # in tests/test_inspect.py
MODEL_TYPES = {
  "llama": "llama",
  "gpt2": "gpt2",
  "opt": "opt",
  "bloomz": "bloom",
  "mt0": "mt5",
  "t5": "t5",
  "flan": "t5",
  "vit": "vit",
  "whisper": "whisper",
}
# What a row's source takes from the published checkpoint.
SIZES = {"whisper-small": {"encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072}}
# HF PEFT's method -> (ours, its setting -> ours); settings that leave the counts alone are not named.
TARGETS = {"target_modules": "targets"}
RANKED = {**TARGETS, "r": "rank"}
VIRTUAL = {"num_virtual_tokens": "num_virtual_tokens"}
METHODS = {
  "FULL": ("full", {}),
  "LORA": ("lora", RANKED),
  "LOHA": ("loha", RANKED),
  "LOKR": ("lokr", {**RANKED, "decompose_factor": "decompose_factor"}),
  "HIRA": ("hira", RANKED),
  "DELORA": ("delora", RANKED),
  "SHIRA": ("shira", RANKED),
  "MISS": ("miss", {**RANKED, "mini_r": "mini_r"}),
  "VERA": ("vera", RANKED),
  "VBLORA": ("vblora", {**RANKED, "num_vectors": "num_vectors", "vector_length": "vector_length", "topk": "topk"}),
  "FOURIERFT": ("fourierft", {**TARGETS, "n_frequency": "n_frequency"}),
  "BOFT": ("boft", {**TARGETS, **{name: name for name in ("boft_block_size", "boft_block_num")}}),
  "ROAD": ("road", {**TARGETS, "variant": "variant", "group_size": "group_size"}),
  "BEFT": ("beft", TARGETS),
  "IA3": ("ia3", {**TARGETS, "feedforward_modules": "feedforward"}),
  "ADAPTION_PROMPT": ("llama_adapter", {"adapter_len": "num_virtual_tokens", "adapter_layers": "adapter_layers"}),
  "PREFIX_TUNING": ("prefix", VIRTUAL),
  "PROMPT_TUNING": ("prompt", VIRTUAL),
  "P_TUNING": ("p_tuning", {**VIRTUAL, "encoder_hidden_size": "encoder_hidden_size"}),
}
# What is not here, and why; docs/models.md says the same.
LEFT_OUT = {
  "layoutlm-base": "family",
  "segformer-b0": "family",
  "custom-mlp": "no published architecture",
  "GLORA": "method",
  "LILY": "method",
  "PEANUT": "method",
  "POLY": "method",
  "PSOFT": "method",
  "PVERA": "method",
  "TINYLORA": "method",
  "UNILORA": "method",
  "WAVEFT": "method",
  "-mica": "an initialisation that freezes B",
}


def reason(row):
  """Why a row is left out; empty if it is not."""
  names = (row["model_family"], row["method"], "-mica" if "-mica" in row["source"] else "")
  return next((LEFT_OUT[name] for name in names if name in LEFT_OUT), "")


def label(row):
  return f"{row['model_family']}-{row['method']}-{row['trainable']}"


def overrides(row):
  name, fields = METHODS[row["method"]]
  given = {ours: row["method_config"][theirs] for theirs, ours in fields.items() if theirs in row["method_config"]}
  if "A frozen" in row["method_config"].get("_optimizer", ""):
    given["freeze_a"] = True
  if name == "miss":
    given["init"] = row["source"].rpartition("-")[2].removesuffix(".json").replace("default", "balance")
  given = {ours: tuple(value) if isinstance(value, list) else value for ours, value in given.items()}
  return [f"--config.method.name={name}", *(f"--config.method.{ours}={value}" for ours, value in given.items())]


DECODERS = [row for row in ROWS if row["model_family"] not in ENCODERS and not reason(row)]


@pytest.mark.parametrize("row", DECODERS, ids=label)
def test_published_rows(row, tmp_path, capsys):
  model_type = MODEL_TYPES[row["model_family"].split("-")[0]]
  sizes = SIZES.get(row["model_family"], {})
  named = {"architectures": [row["hf_config"]["_class"]]} if "_class" in row["hf_config"] else {}
  (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **named, **sizes, **row["hf_config"]}))
  assert cli.main(["inspect", "--json", f"--config.model.path={tmp_path}", *overrides(row)]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["trainable"] == row["trainable"]
  if row["total"] is not None:
    assert found["peft_total"] == row["total"]


def test_every_row_is_tested_or_left_out_for_a_reason_that_the_docs_name():
  text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
  out = [row for row in ROWS if row["model_family"] not in ENCODERS and reason(row)]
  assert len(DECODERS) + len(out) + sum(row["model_family"] in ENCODERS for row in ROWS) == len(ROWS) == 67
  used = {name for name in LEFT_OUT for row in out if name in (row["model_family"], row["method"], row["source"][-11:])}
  assert used | {"-mica"} == set(LEFT_OUT)
  for name in LEFT_OUT:
    assert f"`{name.lower().strip('-')}`" in text, name
  assert f"{len(DECODERS)} of the {len(ROWS)}" in text


LLAMA = {"model_type": "llama", "tie_word_embeddings": False}
LLAMA3 = {**LLAMA, "vocab_size": 128256, "num_key_value_heads": 8}
LLAMA_8B = {**LLAMA3, "intermediate_size": 14336}
LLAMA_70B = {
  **LLAMA3,
  "hidden_size": 8192,
  "intermediate_size": 28672,
  "num_hidden_layers": 80,
  "num_attention_heads": 64,
}
LLAMA_405B = {
  **LLAMA3,
  "hidden_size": 16384,
  "intermediate_size": 53248,
  "num_hidden_layers": 126,
  "num_attention_heads": 128,
}
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
    (LLAMA_8B, 8_030_261_248),
    (LLAMA_70B, 70_553_706_496),
    (LLAMA_405B, 405_853_388_800),
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
    (LLAMA, methods.LoRA(rank=8, targets=("q_proj", "v_proj")), 4_194_304),
    (LLAMA, methods.IA3(), 32 * (2 * 4096 + 11008)),
    (LLAMA, methods.Prefix(num_virtual_tokens=20), 32 * 2 * 20 * 4096),
    (LLAMA, methods.Prompt(num_virtual_tokens=20), 20 * 4096),
    (LLAMA_8B, methods.IA3(), 32 * (2 * 1024 + 14336)),
    (LLAMA_8B, methods.Prefix(num_virtual_tokens=20), 32 * 2 * 20 * 1024),
    (LLAMA_70B, methods.LoRA(rank=8, targets=("q_proj", "v_proj")), 80 * 8 * (2 * 8192 + 8192 + 1024)),
    (LLAMA_405B, methods.LoRA(rank=8, targets=("q_proj", "v_proj")), 126 * 8 * (2 * 16384 + 16384 + 1024)),
    (LLAMA_405B, methods.Prompt(num_virtual_tokens=20), 20 * 16384),
    ({"model_type": "mistral"}, methods.LoRA(rank=8, targets=("q_proj", "v_proj")), 3_407_872),
    ({"model_type": "mistral"}, methods.Prefix(num_virtual_tokens=20), 32 * 2 * 20 * 1024),
    (QWEN3_14B, methods.LoRA(rank=8, targets=("q_proj", "v_proj")), 40 * 8 * (2 * 5120 + 5120 + 1024)),
    (
      QWEN3_14B,
      methods.IA3(targets=("k_proj", "v_proj", "down_proj"), feedforward=("down_proj",)),
      40 * (2 * 1024 + 17408),
    ),
    (QWEN3_14B, methods.Prompt(num_virtual_tokens=20), 20 * 5120),
    (T5_XL, methods.Prompt(num_virtual_tokens=20), 2 * 20 * 2048),
    (T5_XL, methods.Prefix(num_virtual_tokens=20), 24 * 2 * 20 * 2048),
    (GPT3, methods.Prefix(num_virtual_tokens=20), 96 * 2 * 20 * 12288),
    (GPT3, methods.Prompt(num_virtual_tokens=256), 256 * 12288),
    (DECI_6B, methods.Prefix(num_virtual_tokens=20), 50 * 2 * 20 * 128),
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
