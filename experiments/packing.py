"""Packed against padded rows on a real distribution of lengths: share of places that are tokens, tokens a second.

python -m experiments.packing --rounds=6

The data is that of `configs/smollm2.py:gsm8k` (question and answer through the chat template of SmolLM2), the model a
small LLaMA with LoRA, since the ratio depends on shapes more than on size. Three ways to lay out one epoch, at the same
number of places a batch: every row padded to the longest length; rows of similar length padded to a bucket; packed.
Steps are timed in turns, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from typing import Any

import jax
import numpy as np

from configs import smollm2
from peftjax import data, masks, methods, optim
from peftjax.data.inputs.tokens import Tokens
from peftjax.loading import folder_of, from_config, initialise
from peftjax.tasks.causal_lm import CausalLM
from peftjax.train.state import init_state
from peftjax.train.step import make_loss, make_train_step

LENGTH = 512
PLACES = 8 * LENGTH  # in a batch
LLAMA = {
  "model_type": "llama",
  "vocab_size": 49152,
  "hidden_size": 128,
  "intermediate_size": 384,
  "num_hidden_layers": 4,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": LENGTH,
  "tie_word_embeddings": True,
}


def layouts() -> dict[str, dict[str, Any]]:
  """Name -> fields of `config.data`, and the rows of a batch."""
  buckets = (96, 128, 160, 192, 256, 384)
  return {
    "padded to the longest": {"packing": False, "buckets": (), "rows": PLACES // LENGTH},
    "padded to buckets": {"packing": False, "buckets": buckets, "rows": PLACES // LENGTH * 2},
    "packed": {"packing": True, "buckets": (), "rows": PLACES // LENGTH},
  }


def main() -> None:
  """Prints one JSON object."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=6, help="timed steps of each layout")
  rounds = parser.parse_args().rounds
  config = smollm2.get_config("gsm8k")
  folder = folder_of(config.model.path)
  dataset = data.open_as(config.data.name, config.data)
  model = initialise(from_config(LLAMA), jax.random.key(0)).add(methods.LoRA(rank=8), jax.random.key(1))
  labels = model.labels()
  trainable, frozen = masks.partition(model.params, labels)
  optimizer = optim.make_optimizer(config.optim, masks.partition(labels, labels)[0], 1000, stacks=model.stacks)
  step = jax.jit(make_train_step(make_loss(model.forward, CausalLM()), optimizer))
  state = init_state(trainable, optimizer, 0)
  loaders, result = {}, {}
  for name, layout in layouts().items():
    made = config.copy_and_resolve_references()
    made.data.update({"packing": layout["packing"], "buckets": layout["buckets"], "max_length": LENGTH})
    made.train.batch_size = layout["rows"]
    over = functools.partial(Tokens, made, task=CausalLM(), folder=folder)
    loaders[name] = data.make_loaders(made, dataset, over).train
    result[name] = {"rows": layout["rows"], "fill": _fill(loaders[name])}
  seconds: dict[str, list[float]] = {name: [] for name in loaders}
  tokens: dict[str, list[int]] = {name: [] for name in loaders}
  compiled: dict[tuple[int, ...], Any] = {}
  for _ in range(rounds):
    for name, loader in loaders.items():
      batch = next(loader)
      shape = (layouts()[name]["packing"], *batch["input_ids"].shape)
      if shape not in compiled:
        compiled[shape] = step.lower(state, frozen, batch).compile()
      begin = time.perf_counter()
      jax.block_until_ready(compiled[shape](state, frozen, batch))
      seconds[name].append(time.perf_counter() - begin)
      tokens[name].append(_tokens(batch))
  for name in loaders:
    result[name]["tokens_per_second"] = statistics.median(
      count / took for count, took in zip(tokens[name], seconds[name], strict=True)
    )
  for name in loaders:
    result[name]["packed_is_faster_by"] = result["packed"]["tokens_per_second"] / result[name]["tokens_per_second"]
  print(json.dumps(result, indent=2))


def _tokens(batch: dict[str, np.ndarray]) -> int:
  return int((batch["segment_ids"] > 0).sum() if "segment_ids" in batch else batch["attention_mask"].sum())


def _fill(loader: Any) -> float:
  """Share of an epoch's places that hold a token."""
  plan = loader._plan
  if hasattr(plan, "fill"):
    return float(plan.fill)
  batches = plan.epoch(0)
  return float(loader.measured.lengths.sum() / (batches.lengths * batches.ids.shape[1]).sum())


if __name__ == "__main__":
  main()
