"""Tokens per second of greedy generation against transformers on torch: the same model, machine and prompts.

    python -m experiments.generation --new_tokens=64 --rounds=7 --out=runs/generation.json

In every round each of the rivals generates once, in turn: torch, peftjax merged, peftjax with LoRA beside the weights.
A round gives one ratio each, and the medians of the ratios are printed with their range. Before the first round each
has run once, so that nothing is compiled while time is taken. The memory-bandwidth limit of one sequence is the bytes
of all weights, which every token reads, over the bandwidth of a stream through as many bytes, measured in each round.

Seconds of the processor are reported beside those of the wall: on a machine that others use too, threads that wait for
each other lose far more than their share. With --torch_threads=1 no thread of torch waits for another, so that its
processor seconds are work alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from peftjax import masks, methods
from peftjax.files import write_text
from peftjax.loading import load
from peftjax.model import Model
from peftjax.models.generate import Generator
from peftjax.models.layers import Runtime
from peftjax.models.sampling import Sampling

Rival = Callable[[], list[list[int]]]


def ours(model: Model, prompts: list[list[int]], new_tokens: int) -> Rival:
  """Generation of exactly `new_tokens` tokens a prompt, compiled."""
  generator = Generator(model, Sampling(max_new_tokens=new_tokens))

  def run() -> list[list[int]]:
    (tokens,) = generator.stream(prompts, chunk=new_tokens)
    return tokens.tolist()

  return run


def with_lora(model: Model, rank: int) -> Model:
  """LoRA on q and v as it would be after training: B is not zero."""
  model = model.add(methods.LoRA(rank=rank, targets=("q_proj", "v_proj")), jax.random.key(0))
  flat = dict(masks.flatten(model.params))
  for index, path in enumerate(sorted(model.adapter_paths())):
    if path.endswith("lora_b"):
      flat[path] = 0.01 * jax.random.normal(jax.random.key(index), flat[path].shape)
  return model.with_params(masks.unflatten(flat))


def theirs(model: Model, prompts: list[list[int]], new_tokens: int) -> Rival:
  """The same weights in transformers on torch, in float32 with its default attention."""
  import torch
  import transformers

  with tempfile.TemporaryDirectory() as folder:
    model.save(Path(folder) / "model")
    network = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / "model", dtype=torch.float32).eval()
  network.generation_config.eos_token_id = None
  network.generation_config.pad_token_id = 0
  ids = torch.tensor(prompts)

  def run() -> list[list[int]]:
    with torch.inference_mode():
      found = network.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False
      )
    return found[:, ids.shape[1] :].tolist()

  return run


def stream_bandwidth(size: int) -> Callable[[], float]:
  """Bytes per second of reading `size` bytes with all cores: torch's sum, which runs on all threads."""
  import torch

  values = torch.ones(size // 4, dtype=torch.float32)

  def run() -> float:
    start = time.perf_counter()
    float(values.sum())
    return size / (time.perf_counter() - start)

  return run


def seconds(run: Rival) -> tuple[float, float]:
  """(wall-clock, processor) seconds of a run."""
  start, busy = time.perf_counter(), time.process_time()
  run()
  return time.perf_counter() - start, time.process_time() - busy


def summary(values: list[float]) -> dict[str, float]:
  """Median, least and most."""
  return {"median": float(np.median(values)), "least": min(values), "most": max(values)}


def measure(model: Model, batch: int, prompt_tokens: int, new_tokens: int, rounds: int, rank: int) -> dict[str, Any]:
  """The table's figures; see the module's docstring."""
  random = np.random.default_rng(0)
  prompts = random.integers(10, model.config.vocab_size, size=(batch, prompt_tokens)).tolist()
  rivals = {
    "torch": theirs(model, prompts, new_tokens),
    "merged": ours(model, prompts, new_tokens),
    "lora": ours(with_lora(model, rank), prompts, new_tokens),
  }
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
  stream = stream_bandwidth(size)
  first = {name: run() for name, run in rivals.items()}
  same = float(np.mean(np.asarray(first["torch"]) == np.asarray(first["merged"])))
  times: dict[str, list[float]] = {name: [] for name in rivals}
  busy: dict[str, list[float]] = {name: [] for name in rivals}
  bandwidths = []
  for _ in range(rounds):
    for name, run in rivals.items():
      wall, processor = seconds(run)
      times[name].append(wall)
      busy[name].append(processor)
    bandwidths.append(max(stream() for _ in range(3)))
  made = batch * new_tokens
  steps = [new_tokens * size / one for one in times["merged"]]
  return {
    "tokens_per_second": {name: summary([made / one for one in values]) for name, values in times.items()},
    "merged_over_torch": summary([a / b for a, b in zip(times["torch"], times["merged"])]),
    "lora_over_torch": summary([a / b for a, b in zip(times["torch"], times["lora"])]),
    "lora_time_over_merged": summary([a / b for a, b in zip(times["lora"], times["merged"])]),
    "processor_seconds_per_token": {name: summary([one / made for one in values]) for name, values in busy.items()},
    "merged_over_torch_by_processor": summary([a / b for a, b in zip(busy["torch"], busy["merged"])]),
    "lora_over_merged_by_processor": summary([a / b for a, b in zip(busy["lora"], busy["merged"])]),
    "stream_bytes_per_second": summary(bandwidths),
    "share_of_bandwidth_limit": summary([a / b for a, b in zip(steps, bandwidths)]),
    "weight_bytes": size,
    "tokens_equal_to_torch": same,
    "batch": batch,
    "prompt_tokens": prompt_tokens,
    "new_tokens": new_tokens,
    "rounds": rounds,
  }


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="packaged:smollm2-135m-instruct")
  parser.add_argument("--batch", type=int, default=1)
  parser.add_argument("--prompt_tokens", type=int, default=32)
  parser.add_argument("--new_tokens", type=int, default=64)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--rank", type=int, default=8)
  parser.add_argument("--torch_threads", type=int, default=0, help="0: as many as torch takes by itself")
  parser.add_argument("--out", default="")
  flags = parser.parse_args()
  if flags.torch_threads:
    import torch

    torch.set_num_threads(flags.torch_threads)
  model = load(flags.model, runtime=Runtime(scan_layers=False))
  found = measure(model, flags.batch, flags.prompt_tokens, flags.new_tokens, flags.rounds, flags.rank)
  text = json.dumps(found, indent=2)
  print(text)
  if flags.out:
    Path(flags.out).parent.mkdir(parents=True, exist_ok=True)
    write_text(Path(flags.out), text + "\n")


if __name__ == "__main__":
  main()
