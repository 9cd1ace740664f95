"""Plans of models that nobody trains here, on which verdicts about memory rest: peftjax/compare/evidence/plans.json.

python -m experiments.plans

    LLaMA-7B    the step compiled for 16 chips (docs/tpu.md): full fine-tuning and LoRA
    T0_3B       one device, 8 rows of 256 tokens, from shapes: arguments of the step, what the forward pass leaves for
                the backward pass, and what one layer computes again

Minutes: two 7B programs are compiled for TPUs, which needs libtpu.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax

from peftjax import config as config_lib
from peftjax.compare import plans
from peftjax.compare.dimensions.memory import Shape, residual_bytes, shape_program
from peftjax.files import write_text
from peftjax.parallel.topology import topology_devices
from peftjax.train import plan

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
T0_3B: dict[str, Any] = {
  "model_type": "t5",
  "architectures": ["T5ForConditionalGeneration"],
  "vocab_size": 32128,
  "d_model": 2048,
  "d_kv": 64,
  "d_ff": 5120,
  "num_heads": 32,
  "num_layers": 24,
  "num_decoder_layers": 24,
  "feed_forward_proj": "gated-gelu",
  "tie_word_embeddings": False,
}
LAYERS = T0_3B["num_layers"] + T0_3B["num_decoder_layers"]
SLICE = "v5e:4x4"
PRECISIONS = {  # of the base's weights -> fields of config.model
  "float32": {"dtype": "float32"},
  "bfloat16": {"dtype": "bfloat16"},
  "int8": {"dtype": "bfloat16", "quantize": "int8"},
  "nf4": {"dtype": "bfloat16", "quantize": "nf4"},
}
LORA = {"name": "lora", "rank": 8, "alpha": 32.0, "targets": ("q", "v")}


def llama(folder: Path) -> dict[str, Any]:
  """Bytes a chip of the compiled step by method."""
  found = {}
  for name, method, dtype in (("full", {"name": "full"}, "float32"), ("lora", LORA_7B, "bfloat16")):
    config = _config(folder, LLAMA_7B, method, {"dtype": dtype, "compute_dtype": "bfloat16", "remat": "full"})
    config.mesh.update({"data": 1, "fsdp": -1})
    config.data.max_length, config.train.batch_size = 2048, 16
    found[name] = plan.compiled_for(config, topology_devices(SLICE))["bytes_per_device"]
  return found


LORA_7B = {"name": "lora", "rank": 16, "targets": "all-linear"}


def t0(folder: Path) -> list[dict[str, Any]]:
  """Bytes of a step by method, precision of the base and remat policy."""
  cases = [("lora", LORA, precision, "full") for precision in PRECISIONS]
  cases += [("lora", LORA, "bfloat16", "none"), ("full", {"name": "full"}, "float32", "full")]
  return [{"method": name, **t0_step(folder, method, *case)} for name, method, *case in cases]


def t0_step(folder: Path, method: dict[str, Any], precision: str, remat: str) -> dict[str, Any]:
  """Bytes of one step on one device."""
  compute = "float32" if precision == "float32" else "bfloat16"
  model = {**PRECISIONS[precision], "compute_dtype": compute, "remat": remat}
  config = _config(folder, T0_3B, method, model)
  config.task.name = "seq2seq_lm"
  config.data.max_length, config.train.batch_size = 256, 8
  shape = Shape(8, 256)
  residuals = {one: residual_bytes(shape_program(config, one, "seq2seq_lm", ()), shape) for one in (remat, "none")}
  held = plan.compiled_for(config, jax.devices()[:1], arguments=True)["arguments_by_kind"]
  held["gradients"] = held["adapter"]  # of all that trains, until the update
  return {
    "precision": precision,
    "remat": remat,
    "arguments": held,
    "residuals": residuals[remat],
    "layer": (residuals["none"] - residuals[remat]) // LAYERS,
  }


def _config(folder: Path, shapes: dict[str, Any], method: dict[str, Any], model: dict[str, Any]) -> Any:
  folder.mkdir(parents=True, exist_ok=True)
  write_text(folder / "config.json", json.dumps(shapes))
  config = config_lib.default()
  config.model.update({"path": str(folder), **model})
  with config.unlocked():
    config.method = method
  return config


def main() -> None:
  folder = Path("runs/plans")
  found = {"t0_3b": t0(folder / "t0"), "llama_7b": llama(folder / "llama"), "slice": SLICE}
  write_text(plans.PATH, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  main()
