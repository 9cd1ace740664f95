"""Counts and bytes of published models, and the claims that they decide: docs/published_figures.md.

python -m experiments.published_figures

Counts come from the models' shapes, bytes of training steps from `experiments.plans`. The verdicts also go into
peftjax/compare/claims/published_figures.json, from which every study's claims.json takes them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import plans
from experiments.published_models import DECODERS, GPT3, LLAMA_7B, MT0_LARGE, T0_3B, T0_11B, UNET, Shapes, model_of
from peftjax.compare import formatting as fmt
from peftjax.compare.claims import published_claims
from peftjax.compare.claims.verdict import CONTRADICTED, SUPPORTED
from peftjax.files import write_text
from peftjax.guide.recommend import multiplied
from peftjax.train import inspection

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "published_figures.md"
VERDICTS = ROOT / "peftjax" / "compare" / "claims" / "published_figures.json"
CARD = 11 * 2**30  # bytes of an RTX 2080 Ti
QV, QV_T5 = ("q_proj", "v_proj"), ("q", "v")
FEW = 2e7  # bytes: "a few MB"

Verdict = dict[str, Any]


def counts(shapes: Shapes, name: str, **fields: Any) -> dict[str, int]:
  """{"adapter", "base", "multiplied"}: parameters that a method adds, those of its base, and those that every token is
  multiplied with."""
  with tempfile.TemporaryDirectory() as folder:
    model = model_of(Path(folder), shapes, {"name": name, **fields})
  found = inspection.report(model)
  return {
    "adapter": found["adapter"],
    "base": found["total"] - found["adapter"],
    "multiplied": multiplied(model) - found["adapter"],
  }


def lora(shapes: Shapes, rank: int) -> dict[str, int]:
  """As `counts`, of LoRA on query and value."""
  return counts(shapes, "lora", rank=rank, targets=QV_T5 if "d_model" in shapes else QV)


def denoiser() -> tuple[int, int]:
  """(parameters that LoRA of rank 4 on attention adds, those of its base) of Stable Diffusion 1.5's UNet."""
  method = {"name": "lora", "rank": 4, "targets": ("to_q", "to_k", "to_v", "to_out.0")}
  with tempfile.TemporaryDirectory() as folder:
    found = inspection.report(model_of(Path(folder), UNET, method))
  return found["adapter"], found["total"] - found["adapter"]


# Verdicts ---------------------------------------------------------------------------------------------------------


def trainable_share() -> Verdict:
  """LoRA on mt0-large."""
  one = lora(MT0_LARGE, 8)
  total = one["base"] + one["adapter"]
  return {
    "verdict": SUPPORTED if (one["adapter"], total) == (2_359_296, 1_231_940_608) else CONTRADICTED,
    "effect": 100 * one["adapter"] / total,
    "unit": "% of parameters",
    "reason": f"rank 8 on query and value: {fmt.whole(one['adapter'])} of {fmt.whole(total)}",
  }


def three_times(kept: Mapping[str, Any]) -> Verdict:
  """Full fine-tuning's compiled step against LoRA's, of a decoder of the 7B class."""
  full, own = (kept["llama_7b"][name]["total"] for name in ("full", "lora"))
  return {
    "verdict": SUPPORTED if full >= 3 * own else CONTRADICTED,
    "effect": full / own,
    "unit": "times the bytes on a chip, full over LoRA, of the compiled step",
    "counts": "three times less, or more",
    "reason": f"LLaMA-7B compiled for {kept['slice']}, 2,048 tokens a chip: full fine-tuning in float32 "
    f"{fmt.size(full)}, LoRA of rank 16 in all linears over a bfloat16 base {fmt.size(own)}",
  }


def adapter_file() -> Verdict:
  """The file of LoRA beside the base, of a decoder of the 7B class."""
  one = lora(LLAMA_7B, 8)
  own, base = 4 * one["adapter"], 2 * one["base"]
  return {
    "verdict": SUPPORTED if own < FEW and base > 1e9 else CONTRADICTED,
    "effect": own / 1e6,
    "unit": "MB, LoRA of rank 8 on query and value of LLaMA-7B in float32",
    "counts": "below 20 MB beside a base of several GB",
    "reason": f"{fmt.size(own)} beside {fmt.size(base)} of LLaMA-7B in bfloat16",
  }


def checkpoint_11b() -> Verdict:
  """(IA)3's file beside an encoder-decoder of 11B parameters."""
  ia3, own = counts(T0_11B, "ia3"), lora(T0_11B, 8)
  return {
    "verdict": SUPPORTED if 4 * ia3["base"] > 4e10 and 4 * ia3["adapter"] < FEW else CONTRADICTED,
    "effect": 4 * ia3["adapter"] / 1e6,
    "unit": "MB, (IA)3 in float32",
    "reason": f"an 11B encoder-decoder in float32: {fmt.size(4 * ia3['base'])} whole; (IA)3 "
    f"{fmt.size(4 * ia3['adapter'])}; LoRA of rank 8 on query and value {fmt.size(4 * own['adapter'])}, which is tens "
    "of MB rather than a few",
  }


def scaling() -> Verdict:
  """How what LoRA takes grows with the model."""
  found = [lora(shapes, 8) for shapes in DECODERS.values()]
  totals = np.array([one["base"] for one in found], np.float64)
  curves = {
    "trainable parameters": [one["adapter"] for one in found],
    "state bytes (bf16 base, float32 adapter and AdamW)": [2 * one["base"] + 16 * one["adapter"] for one in found],
    "FLOPs a token": [4 * one["multiplied"] + 6 * one["adapter"] for one in found],
  }
  # The last digits of a least-squares fit are those of a machine's LAPACK.
  powers = {name: round(float(np.polyfit(np.log(totals), np.log(curve), 1)[0]), 9) for name, curve in curves.items()}
  first, *_, last = DECODERS
  return {
    "verdict": CONTRADICTED if powers["FLOPs a token"] > 0.9 else SUPPORTED,
    "effect": powers["FLOPs a token"],
    "unit": "power of model size by which FLOPs a token grow with LoRA of rank 8",
    "reason": f"{first} to {last}: "
    + "; ".join(f"{name} grow as size^{power:.2f}" for name, power in powers.items())
    + ". Only what trains grows slower than the model; the frozen base is still held and computed with",
  }


def on_a_card(kept: Mapping[str, Any]) -> Verdict:
  """LoRA on T0_3B within 11 GiB, by the precision of the base."""
  steps = [step for step in kept["t0_3b"] if step["method"] == "lora" and step["remat"] == "full"]
  within = [step for step in steps if plans.total(step) <= CARD]
  shown = max(within or steps, key=plans.total)
  return {
    "verdict": SUPPORTED if within else CONTRADICTED,
    "effect": plans.total(shown) / 2**30,
    "unit": f"GiB of a step over a base in {shown['precision']}, of 11",
    "counts": "one precision of the base with which a step takes 11 GiB or less",
    "reason": "LoRA of rank 8 on query and value, 8 rows of 256 tokens, base in "
    + "; ".join(f"{step['precision']} {fmt.size(plans.total(step))}" for step in steps),
  }


def with_checkpointing(kept: Mapping[str, Any]) -> Verdict:
  """The same with activations recomputed, and without."""
  steps = {(step["method"], step["precision"], step["remat"]): plans.total(step) for step in kept["t0_3b"]}
  own, without = steps["lora", "bfloat16", "full"], steps["lora", "bfloat16", "none"]
  return {
    "verdict": SUPPORTED if own <= CARD < without else CONTRADICTED,
    "effect": own / 2**30,
    "unit": "GiB of a LoRA step that recomputes activations, of 11",
    "counts": "LoRA over a bfloat16 base takes 11 GiB or less with recomputation, and more without",
    "reason": f"T0_3B, 8 rows of 256 tokens: LoRA {fmt.size(own)} with recomputation, {fmt.size(without)} without; "
    f"full fine-tuning with it {fmt.size(steps['full', 'float32', 'full'])}",
  }


def verdicts(kept: Mapping[str, Any]) -> dict[str, Verdict]:
  """Claim's id -> verdict.

  Args:
    kept: of `plans.kept`.
  """
  return {
    "trainable-share-mt0": trainable_share(),
    "memory-3x": three_times(kept),
    "adapter-mb": adapter_file(),
    "checkpoint-40gb-to-mb": checkpoint_11b(),
    "scales-without-proportional-cost": scaling(),
    "t0-3b-on-2080ti": on_a_card(kept),
    "checkpointing-11gb": with_checkpointing(kept),
  }


# The page ---------------------------------------------------------------------------------------------------------


def page(kept: Mapping[str, Any], judged: Mapping[str, Verdict]) -> str:
  """The docs page."""
  words = {one["id"]: one["claim"] for one in published_claims()}
  claims = [[words[name], one["verdict"], one["reason"]] for name, one in judged.items()]
  sizes = {**DECODERS, "GPT-3": GPT3, "mT0-large": MT0_LARGE, "T0_3B": T0_3B, "T0 (11B)": T0_11B}
  rows = []
  for name, shapes in sizes.items():
    one = lora(shapes, 8)
    share = 100 * one["adapter"] / (one["base"] + one["adapter"])
    rows.append([name, fmt.whole(one["base"]), fmt.whole(one["adapter"]), fmt.percent(share)])
    rows[-1] += [fmt.size(2 * one["base"]), fmt.size(4 * one["adapter"])]
  steps = [
    [step["method"], step["precision"], step["remat"], f"{plans.total(step) / 2**30:.1f} GiB"] for step in kept["t0_3b"]
  ]
  gpt3, (added, unet) = lora(GPT3, 4), denoiser()
  held = f"{fmt.size(4 * added)} in float32 beside {fmt.size(2 * unet)} in bfloat16"
  share = fmt.percent(100 * gpt3["adapter"] / gpt3["base"])
  return "\n".join(
    [
      "# Figures of published models",
      "",
      "    python -m experiments.published_figures    # writes this page anew",
      "",
      "Some published claims are about counts and bytes of models that no study here trains. They follow from the",
      "models' shapes and from compiled plans, the same for every study; so they stand here, and in each study's",
      "`claims.json` with this page's name, but not in its report.",
      "",
      "## Claims",
      "",
      *_table(["claim", "verdict", "figures"], claims),
      "",
      "## Parameters and files",
      "",
      "LoRA of rank 8 on query and value; the base in bfloat16, the adapter in float32.",
      "",
      *_table(["model", "parameters", "added", "share that trains", "base", "adapter"], rows),
      "",
      f'"0.01% of the base" (claim `storage-0.01pct`, which a study judges by its own files) is {share} for GPT-3',
      "with LoRA of rank 4: it holds at that size, and not at those of small models.",
      "",
      "LoRA of rank 4 on attention (`to_q`, `to_k`, `to_v`, `to_out.0`) of Stable Diffusion 1.5's denoiser:",
      f"{fmt.whole(added)} beside {fmt.whole(unet)} parameters, {held}.",
      "",
      "## Memory of a step",
      "",
      "T0_3B on one device, 8 rows of 256 tokens (`python -m experiments.plans`): arguments, gradients, what the",
      "forward pass leaves for the backward pass, and what one layer computes again.",
      "",
      *_table(["method", "base in", "remat", "bytes"], steps),
      "",
    ]
  )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
  return lines + ["| " + " | ".join(row) + " |" for row in rows]


def main() -> None:
  """Writes the page and the verdicts anew."""
  kept = plans.kept()
  judged = verdicts(kept)
  write_text(PAGE, page(kept, judged))
  write_text(VERDICTS, json.dumps(judged, indent=2) + "\n")


if __name__ == "__main__":
  main()
