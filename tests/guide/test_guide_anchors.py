"""The guide's counts and bytes against published ones, within their tolerances.

Of `tests/published/memory_anchors.json` all but DeBERTa's, whose family is not here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftjax import config as config_lib
from peftjax.guide.recommend import assessed, setting_of

ANCHORS = {
  one["id"]: one for one in json.loads((Path(__file__).parents[1] / "published/memory_anchors.json").read_text())
}
ROUNDED = 0.05  # where a figure speaks of "7B" and has no tolerance of its own


def llama(hidden, ffn, layers, heads, vocab=32000, **more):
  sizes = {"hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads}
  named = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
  return {**named, "vocab_size": vocab, **sizes, **more}


def t5(hidden, ffn, heads, vocab=32128, kind="t5"):
  named = {"model_type": kind, "architectures": [f"{kind.upper()}ForConditionalGeneration"]}
  sizes = {"d_model": hidden, "d_ff": ffn, "d_kv": 64, "num_heads": heads, "num_layers": 24, "num_decoder_layers": 24}
  return {**named, **sizes, "vocab_size": vocab, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def separate(hidden, layers, heads):
  """GPT-2's and GPT-3's matrices where query and value are modules of their own, as the figures count them."""
  sizes = {"hidden_size": hidden, "ffn_dim": 4 * hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
  return {"model_type": "opt", "architectures": ["OPTForCausalLM"], "vocab_size": 50257, **sizes,
          "max_position_embeddings": 1024, "word_embed_proj_dim": hidden}  # fmt: skip


def roberta(hidden, layers, heads):
  sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
  named = {"model_type": "roberta", "architectures": ["RobertaForSequenceClassification"], "vocab_size": 50265}
  return {**named, **sizes, "num_attention_heads": heads, "max_position_embeddings": 514, "type_vocab_size": 1}


LLAMA32_3B = llama(3072, 8192, 28, 24, 128256, num_key_value_heads=8, head_dim=128) | {"tie_word_embeddings": True}
LLAMA_7B, LLAMA_65B = llama(4096, 11008, 32, 32), llama(8192, 22016, 80, 64)
T0_3B, T0_11B, MT0_LARGE = t5(2048, 5120, 32), t5(4096, 10240, 64), t5(1024, 2816, 16, 250112, "mt5")
QV = ("q_proj", "v_proj")
ATTENTION, FEEDFORWARD = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


@pytest.fixture
def candidate(tmp_path):
  """What the guide makes of a config.json and a method; what is published trains in the dtype of its leaves."""

  def make(hf_config, dtype="float32", optimizer="adamw", **method):
    (tmp_path / "config.json").write_text(json.dumps(hf_config))
    config = config_lib.default()
    config.model.path, config.model.dtype, config.optim.name = str(tmp_path), dtype, optimizer
    config.model.trains_as_stored = True
    return assessed(setting_of(config), "row", method)

  return make


def lora(rank, targets):
  return {"name": "lora", "rank": rank, "targets": targets}


@pytest.mark.parametrize(
  ("anchor", "hf_config", "method"),
  [
    ("llama32_3b_lora_r32_qv", LLAMA32_3B, lora(32, QV)),
    ("llama32_3b_lora_r10_mlp", LLAMA32_3B, lora(10, FEEDFORWARD)),
    ("llama32_3b_ia3_default", LLAMA32_3B, {"name": "ia3"}),
    (
      "llama32_3b_ia3_all",
      LLAMA32_3B,
      {"name": "ia3", "targets": (*ATTENTION, *FEEDFORWARD), "feedforward": FEEDFORWARD},
    ),
    ("mt0_large_lora_r8_qv", MT0_LARGE, lora(8, ("q", "v"))),
    ("t0_3b_lora_r8_qv", T0_3B, lora(8, ("q", "v"))),
    ("llama7b_lora_r64_all", LLAMA_7B, lora(64, "all-linear")),
    ("t0_3b_ia3", T0_3B, {"name": "ia3"}),
    ("t0_11b_ia3", T0_11B, {"name": "ia3"}),
    ("roberta_base_lora_r8_qv", roberta(768, 12, 12), lora(8, ("query", "value"))),
    ("roberta_large_lora_r8_qv", roberta(1024, 24, 16), lora(8, ("query", "value"))),
    ("gpt2m_lora_r4_qv", separate(1024, 24, 16), lora(4, QV)),
    ("gpt3_lora_r4_qv", separate(12288, 96, 96), lora(4, QV)),
  ],
)
def test_exact_counts(candidate, anchor, hf_config, method):
  assert candidate(hf_config, **method).adapter == ANCHORS[anchor]["value"]


@pytest.mark.parametrize(("anchor", "hf_config"), [("llama32_3b_total", LLAMA32_3B), ("t5v11_xl_total", T0_3B)])
def test_exact_totals(candidate, anchor, hf_config):
  assert candidate(hf_config, name="full").trainable == ANCHORS[anchor]["value"]


def test_the_total_with_an_adapter(candidate):
  one = candidate(MT0_LARGE, **lora(8, ("q", "v")))
  assert (one.held_bytes - 12 * one.trainable) // 4 == ANCHORS["mt0_large_total_with_adapter"]["value"]


@pytest.mark.parametrize(
  ("anchor", "hf_config", "dtype", "optimizer", "method"),
  [
    ("llama32_3b_full_bf16_adamw_alloc_GB", LLAMA32_3B, "bfloat16", "adamw", {"name": "full"}),
    ("t0_3b_full_GB", T0_3B, "float32", "adamw", {"name": "full"}),
    ("s14_7b_adam_GB", LLAMA_7B, "float32", "adamw", {"name": "full"}),
    ("s14_7b_lion_GB", LLAMA_7B, "float32", "lion", {"name": "full"}),
    ("s14_7b_adam_lora1pct_GB", LLAMA_7B, "bfloat16", "adamw", lora(27, "all-linear")),  # 1.0% of 6.74e9
    ("s14_7b_lion_lora_GB", LLAMA_7B, "bfloat16", "lion", lora(27, "all-linear")),
  ],
)
def test_bytes_that_a_step_holds(candidate, anchor, hf_config, dtype, optimizer, method):
  found, wanted = candidate(hf_config, dtype, optimizer, **method), ANCHORS[anchor]
  assert found.held_bytes / 1e9 == pytest.approx(wanted["value"], rel=wanted.get("tol", ROUNDED))
  if "pred_GB" in wanted:
    assert found.held_bytes / 1e9 == pytest.approx(wanted["pred_GB"], rel=0.001)


def test_the_difference_of_two_ranks(candidate):
  small, large = (candidate(LLAMA32_3B, "bfloat16", **lora(rank, QV)).held_bytes for rank in (32, 64))
  wanted = ANCHORS["llama32_3b_lora_r64_minus_r32_alloc_MB"]
  assert (large - small) / 1e6 == pytest.approx(wanted["value"], rel=wanted["tol"])


def test_twelve_bytes_a_parameter(candidate):
  """Sixteen-bit weights and gradients beside Adam in float32, as the figure counts; a bfloat16 model here holds 8."""
  one = candidate(LLAMA_65B, "bfloat16", name="full")
  assert 12 * one.trainable / 1e9 == pytest.approx(ANCHORS["qlora_65b_full_GB"]["value"], rel=0.01)
  assert one.held_bytes == 8 * one.trainable
