"""The plans of docs/tpu.md: models that fit no machine here, compiled for slices that are not here. Minutes each."""

from __future__ import annotations

import functools
import json
import math
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
LLAMA_405B = {
  **LLAMA_70B,
  "vocab_size": 128256,
  "hidden_size": 16384,
  "intermediate_size": 53248,
  "num_hidden_layers": 126,
  "num_attention_heads": 128,
}
LORA = ("method.name=lora", "method.rank=16", "method.targets=all-linear", "model.dtype=bfloat16")
# name: model, slice, overrides, the most GiB a chip, the most collectives of each kind in the text of the program:
# leaves come to the batch, forward and backward, gradients and the loss's sums are reduced, rows of the embedding move.
PLANS = {
  "lora": (LLAMA_7B, "v5e:4x4", LORA, 2.6, {"all-gather": 149, "all-reduce": 4, "all-to-all": 1}),
  "full": (
    LLAMA_7B,
    "v5e:4x4",
    ("method.name=full", "model.dtype=float32"),
    9.7,
    {"all-gather": 48, "all-reduce": 8, "all-to-all": 2},
  ),
  "int8": (
    LLAMA_7B,
    "v5e:4x4",
    (*LORA, "model.quantize=int8"),
    1.9,
    {"all-gather": 169, "all-reduce": 4, "all-to-all": 1},
  ),
  "nf4": (
    LLAMA_7B,
    "v5e:4x4",
    (*LORA, "model.quantize=nf4"),
    1.7,
    {"all-gather": 173, "all-reduce": 4, "all-to-all": 1},
  ),
  "70b": (LLAMA_70B, "v5p:8x8x4", LORA, 7.0, {"all-gather": 32, "all-reduce": 6, "all-to-all": 1}),
  "405b": (LLAMA_405B, "v5p:2x2x4", LORA, 67.0, {"all-gather": 59, "all-reduce": 3, "all-to-all": 1}),
}

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
  """A plan by its name, each compiled once."""

  @functools.cache
  def planned(name, *flags, topology=""):
    hf_config, slice_, overrides, _, _ = PLANS[name]
    folder = tmp_path_factory.mktemp(name)
    (folder / "config.json").write_text(json.dumps(hf_config))
    topology = topology or slice_
    chips = math.prod(int(size) for size in topology.partition(":")[2].split("x"))
    fields = ["mesh.data=1", "mesh.fsdp=-1", "model.compute_dtype=bfloat16", "model.remat=full"]
    fields += ["data.max_length=2048", f"train.batch_size={chips}", f"model.path={folder}", *overrides]
    command = [sys.executable, "-m", "peftjax", "plan", "--json", f"--topology={topology}", *flags]
    done = subprocess.run(
      [*command, *(f"--config.{one}" for one in fields)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)

  return planned


def total(found):
  return found["bytes_per_device"]["total"] / GIB


@pytest.mark.parametrize("name", PLANS)
def test_each_fits_with_the_expected_collectives_within_two_minutes_of_two_cores(plan, name):
  found, (_, _, _, most_gib, most) = plan(name), PLANS[name]
  assert found["fits"] and total(found) <= most_gib, total(found)
  assert found["largest_replicated"] <= 64 * 2**20
  assert set(found["collectives"]) == set(most)
  assert all(number <= most[kind] for kind, number in found["collectives"].items()), found["collectives"]
  assert found["compile_cpu_seconds"] < 240


def test_what_full_fine_tuning_and_quantised_bases_take(plan):
  totals = {name: total(plan(name)) for name in ("lora", "full", "int8", "nf4")}
  assert totals["full"] >= 3 * totals["lora"]
  assert totals["lora"] > totals["int8"] > totals["nf4"]


@pytest.mark.parametrize("topology", ["v5p:2x2x2", "v6e:4x8", "v5e:8x8"])
def test_slices_too_small_for_405b(plan, topology):
  """What lies there before the step starts, and each layer's input, which is kept for the way back, are too much."""
  found = plan("405b", "--arguments", topology=topology)
  kept = LLAMA_405B["num_hidden_layers"] * 2048 * LLAMA_405B["hidden_size"] * 2
  assert found["bytes_per_device"]["arguments"] + kept > found["limit_bytes"]
