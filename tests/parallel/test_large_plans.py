"""The plans of docs/tpu.md: models that fit no machine here, compiled for slices that are not here. Minutes each."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

GIB = 2**30
LLAMA_7B = {
  "model_type": "llama",
  "architectures": ["LlamaForCausalLM"],
  "vocab_size": 32000,
  "hidden_size": 4096,
  "intermediate_size": 11008,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "num_key_value_heads": 32,
  "max_position_embeddings": 4096,
  "tie_word_embeddings": False,
}
LLAMA_70B = {
  **LLAMA_7B,
  "hidden_size": 8192,
  "intermediate_size": 28672,
  "num_hidden_layers": 80,
  "num_attention_heads": 64,
  "num_key_value_heads": 8,
}
LORA = ("method.name=lora", "method.rank=16", "method.targets=all-linear", "model.dtype=bfloat16")
FULL = ("method.name=full", "model.dtype=float32")

pytestmark = [pytest.mark.slow]


def plan(folder, hf_config, topology, rows, *overrides):
  (folder / "config.json").write_text(json.dumps(hf_config))
  fields = ["mesh.data=1", "mesh.fsdp=-1", "model.compute_dtype=bfloat16", "model.remat=full", "data.max_length=2048"]
  fields += [f"model.path={folder}", f"train.batch_size={rows}", *overrides]
  command = [sys.executable, "-m", "peftjax", "plan", "--json", f"--topology={topology}"]
  done = subprocess.run([*command, *(f"--config.{one}" for one in fields)], capture_output=True, text=True, check=True)
  return json.loads(done.stdout)


def total(found):
  return found["bytes_per_device"]["total"] / GIB


def test_lora_on_7b(tmp_path):
  found = plan(tmp_path, LLAMA_7B, "v5e:4x4", 16, *LORA)
  assert found["fits"] and total(found) <= 2.6
  assert found["largest_replicated"] <= 64 * 2**20
  # Per layer, forward and again backward: seven kernels and the adapters beside them; the loss's sums.
  assert set(found["collectives"]) == {"all-gather", "all-reduce", "all-to-all"}
  assert found["collectives"]["all-reduce"] <= 4 and found["collectives"]["all-to-all"] <= 1
  assert found["compile_cpu_seconds"] < 240  # two minutes of two cores


def test_full_fine_tuning_of_7b_takes_three_times_as_much(tmp_path):
  lora, full = (plan(tmp_path, LLAMA_7B, "v5e:4x4", 16, *how) for how in (LORA, FULL))
  assert full["fits"] and total(full) >= 3 * total(lora)


def test_quantised_bases_take_less(tmp_path):
  totals = [
    total(plan(tmp_path, LLAMA_7B, "v5e:4x4", 16, *LORA, *more)) for more in ((), ("model.quantize=int8",),
                                                                             ("model.quantize=nf4",))
  ]  # fmt: skip
  assert totals[0] > totals[1] > totals[2]


def test_lora_on_70b(tmp_path):
  found = plan(tmp_path, LLAMA_70B, "v5p:8x8x4", 256, *LORA)
  assert found["fits"] and total(found) <= 7 and found["largest_replicated"] <= 64 * 2**20
