"""What rounding MiniLM's kernels costs its hidden states, and what LoftQ's start takes back.

    python -m experiments.quantized_minilm int8 int4 nf4

prints for each kind the relative error of the kernels (mean and worst) and of the last hidden states at the tokens of
four sentences, and for 4 bits the latter with LoftQ at two ranks and one or five iterations.
"""

from __future__ import annotations

import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

import peftjax
from peftjax.data import load_tokenizer
from peftjax.loading import folder_of
from peftjax.model import Model
from peftjax.quantize_model import summary

MODEL = "packaged:minilm"
TEXTS = (
  "a film of rare charm and wit .",
  "the plot is thin and the jokes are old .",
  "it works , mostly , as a thriller .",
  "i could not wait for it to end .",
)


def inputs() -> dict[str, Any]:
  """The sentences, padded to 32 tokens."""
  rows = load_tokenizer(folder_of(MODEL), 32).encode(list(TEXTS)).ids
  ids, mask = np.zeros((len(rows), 32), np.int32), np.zeros((len(rows), 32), np.int32)
  for index, row in enumerate(rows):
    ids[index, : len(row)], mask[index, : len(row)] = row, 1
  return {"input_ids": ids, "attention_mask": mask}


def main(kinds: list[str]) -> None:
  given = inputs()
  expected = peftjax.load(MODEL)(**given)["last_hidden_state"]

  def error(model: Model) -> float:
    lost = (model(**given)["last_hidden_state"] - expected) * given["attention_mask"][..., None]
    return float(jnp.linalg.norm(lost) / jnp.linalg.norm(expected * given["attention_mask"][..., None]))

  for kind in kinds:
    model = peftjax.load(MODEL, quantize=kind)
    found = summary(model.quantization_errors)
    kernels = f"kernels {found['mean_error']:.4f}, worst {found['largest_error']:.4f}"
    print(f"{kind}: {kernels}, hidden states {error(model):.4f}", flush=True)
    for rank, iterations in ((8, 1), (8, 5), (32, 1), (32, 5)) if kind != "int8" else ():
      method = peftjax.methods.LoRA(
        rank=rank, alpha=float(rank), targets="all-linear", init="loftq", loftq_iterations=iterations
      )
      print(f"{kind}, loftq, rank {rank}, T {iterations}: {error(model.add(method)):.4f}", flush=True)


if __name__ == "__main__":
  main(sys.argv[1:] or ["int8", "int4", "nf4"])
