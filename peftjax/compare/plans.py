"""Verdicts from kept plans: memory of models of billions of parameters, which no study trains on the way.

`evidence/plans.json` holds the bytes; `python -m experiments.plans` writes it again from the models' shapes, and
tests/compare/test_plans.py compares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftjax.compare import formatting as fmt
from peftjax.compare.verdicts import CONTRADICTED, SUPPORTED, Verdict

PATH = Path(__file__).parent.parent / "guide" / "evidence" / "plans.json"
CARD = 11 * 2**30  # bytes of an RTX 2080 Ti
COMMAND = "`python -m experiments.plans`"


def kept() -> dict[str, Any]:
  """ "llama_7b": {method: bytes a chip of the compiled step}, "slice"; "t0_3b": steps on one device, by method,
  "precision" of the base and "remat"."""
  return json.loads(PATH.read_text(encoding="utf-8"))


def total(step: Mapping[str, Any]) -> int:
  """Bytes of a T0_3B step: arguments and gradients, what is kept for the backward pass, what a layer computes again."""
  return sum(step["arguments"].values()) + step["residuals"] + step["layer"]


def three_times() -> Verdict:
  """Full fine-tuning's compiled step against LoRA's, of a decoder of the 7B class."""
  plans = kept()
  full, lora = (plans["llama_7b"][name]["total"] for name in ("full", "lora"))
  return {
    "verdict": SUPPORTED if full >= 3 * lora else CONTRADICTED,
    "effect": full / lora,
    "unit": "bytes a chip of the compiled step, full over LoRA",
    "counts": "three times less, or more",
    "reason": f"LLaMA-7B compiled for {plans['slice']}, 2,048 tokens a chip ({COMMAND}): full fine-tuning in float32 "
    f"{fmt.size(full)}, LoRA of rank 16 in all linears over a bfloat16 base {fmt.size(lora)}",
  }


def on_a_card() -> Verdict:
  """LoRA on T0_3B within 11 GiB, by the precision of the base."""
  steps = [step for step in kept()["t0_3b"] if step["method"] == "lora" and step["remat"] == "full"]
  within = [step for step in steps if total(step) <= CARD]
  shown = max(within or steps, key=total)
  return {
    "verdict": SUPPORTED if within else CONTRADICTED,
    "effect": total(shown) / 2**30,
    "unit": f"GiB of a step over a base in {shown['precision']}, of 11",
    "counts": "one precision of the base with which a step takes 11 GiB or less",
    "reason": f"LoRA of rank 8 on query and value, 8 rows of 256 tokens, from shapes ({COMMAND}), base in "
    + "; ".join(f"{step['precision']} {fmt.size(total(step))}" for step in steps),
  }


def with_checkpointing() -> Verdict:
  """The same with activations recomputed, and without."""
  steps = {(step["method"], step["precision"], step["remat"]): total(step) for step in kept()["t0_3b"]}
  lora, without = steps["lora", "bfloat16", "full"], steps["lora", "bfloat16", "none"]
  full = steps["full", "float32", "full"]
  return {
    "verdict": SUPPORTED if lora <= CARD < without else CONTRADICTED,
    "effect": lora / 2**30,
    "unit": "GiB of a LoRA step that recomputes activations, of 11",
    "counts": "LoRA over a bfloat16 base takes 11 GiB or less with recomputation, and more without",
    "reason": f"T0_3B, 8 rows of 256 tokens, from shapes ({COMMAND}): LoRA {fmt.size(lora)} with recomputation, "
    f"{fmt.size(without)} without; full fine-tuning with it {fmt.size(full)}",
  }
