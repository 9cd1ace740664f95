"""Bytes of training steps of models that nobody trains here, on which verdicts about memory rest: plans.json beside.

python -m experiments.plans

    LLaMA-7B    the step compiled for 16 chips (docs/tpu.md): full fine-tuning and LoRA
    T0_3B       one device, 8 rows of 256 tokens, from shapes: arguments of the step, what the forward pass leaves for
                the backward pass, and what one layer computes again

Minutes: two 7B programs are compiled for TPUs, which needs libtpu.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.published_models import LLAMA_7B, T0_3B, config_of
from peftjax.files import write_text
from peftjax.parallel.topology import topology_devices
from peftjax.train import plan
from peftjax.train.assemble import setting
from peftjax.train.residuals import residual_bytes, shape_program

PATH = Path(__file__).with_suffix(".json")
LAYERS = T0_3B["num_layers"] + T0_3B["num_decoder_layers"]
SLICE = "v5e:4x4"
PRECISIONS = {  # of the base's weights -> fields of config.model
  "float32": {"dtype": "float32"},
  "bfloat16": {"dtype": "bfloat16"},
  "int8": {"dtype": "bfloat16", "quantize": "int8"},
  "nf4": {"dtype": "bfloat16", "quantize": "nf4"},
}
LORA = {"name": "lora", "rank": 8, "alpha": 32.0, "targets": ("q", "v")}
LORA_7B = {"name": "lora", "rank": 16, "targets": "all-linear"}


def kept() -> dict[str, Any]:
  """What `main` wrote: "llama_7b": {method: bytes a chip of the compiled step}, "slice"; "t0_3b": steps on one device,
  by method, "precision" of the base and "remat"."""
  return json.loads(PATH.read_text(encoding="utf-8"))


def total(step: Mapping[str, Any]) -> int:
  """Bytes of a T0_3B step: arguments and gradients, what is kept for the backward pass, what a layer computes again."""
  return sum(step["arguments"].values()) + step["residuals"] + step["layer"]


def llama(folder: Path) -> dict[str, Any]:
  """Bytes a chip of the compiled step by method."""
  found = {}
  for name, method, dtype in (("full", {"name": "full"}, "float32"), ("lora", LORA_7B, "bfloat16")):
    config = config_of(folder, LLAMA_7B, method, dtype=dtype, compute_dtype="bfloat16", remat="full")
    config.mesh.update({"data": 1, "fsdp": -1})
    config.data.max_length, config.train.batch_size = 2048, 16
    found[name] = plan.compiled_for(config, topology_devices(SLICE))["bytes_per_device"]
  return found


def t0(folder: Path) -> list[dict[str, Any]]:
  """Bytes of a step by method, precision of the base and remat policy."""
  cases = [("lora", LORA, precision, "full") for precision in PRECISIONS]
  cases += [("lora", LORA, "bfloat16", "none"), ("full", {"name": "full"}, "float32", "full")]
  return [{"method": name, **t0_step(folder, method, *case)} for name, method, *case in cases]


def t0_step(folder: Path, method: Mapping[str, Any], precision: str, remat: str) -> dict[str, Any]:
  """Bytes of one step on one device."""
  compute = "float32" if precision == "float32" else "bfloat16"
  config = config_of(folder, T0_3B, method, **PRECISIONS[precision], compute_dtype=compute, remat=remat)
  config.task.name = "seq2seq_lm"
  config.data.max_length, config.train.batch_size = 256, 8
  found = setting(config)
  batch = found.inputs().batch_spec(config.train.batch_size)
  residuals = {one: residual_bytes(shape_program(found, one), batch) for one in (remat, "none")}
  held = plan.compiled_for(config, jax.devices()[:1], arguments=True)["arguments_by_kind"]
  held["gradients"] = held["trainable"]  # until the update
  return {
    "precision": precision,
    "remat": remat,
    "arguments": held,
    "residuals": residuals[remat],
    "layer": (residuals["none"] - residuals[remat]) // LAYERS,
  }


def main() -> None:
  """Writes `PATH` anew."""
  folder = Path("runs/plans")
  found = {"t0_3b": t0(folder / "t0"), "llama_7b": llama(folder / "llama"), "slice": SLICE}
  write_text(PATH, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  main()
