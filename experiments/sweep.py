"""Sixteen LoRA runs: one program for all of them against sixteen runs one after the other, compilation included.

    python experiments/sweep.py            16 runs of 12 steps of 4 movie reviews on MiniLM, batches of 32 tokens

Both ways start with an empty cache of compiled programs, in processes of their own, by turns; each run of the separate
way is a `train` in one process that keeps what it compiled, so that only the first one compiles anew. Prints seconds
and the ratio, the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHILD = """
import copy, json, sys, time
from pathlib import Path
from peftjax import config as config_lib
from peftjax.train import loop, together
way, folder, runs, steps, batch = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
import jax
jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
configs = []
for seed in range(runs):
  config = config_lib.default()
  config.seed = seed
  config.data.update({"max_length": 32, "buckets": (), "train_examples": 800})
  config.train.update({"batch_size": batch, "steps": steps, "save_every": 0, "final_splits": (), "tensorboard": False})
  configs.append(config)
start = time.perf_counter()
folders = [folder / str(seed) for seed in range(runs)]
if way == "together":
  summaries = together.train_together(configs, folders)
else:
  summaries = [loop.train(config, one) for config, one in zip(configs, folders)]
seconds = time.perf_counter() - start
compiled = sum(one["compile_seconds"] for summary in summaries for one in summary["compiled"])
loss = [round(summary["train"]["loss"], 4) for summary in summaries]
print(json.dumps({"seconds": seconds, "compile_seconds": compiled, "loss": loss}))
"""


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for name, default in (("runs", 16), ("steps", 12), ("batch", 4), ("rounds", 3)):
    parser.add_argument(f"--{name}", type=int, default=default)
  sizes = parser.parse_args()
  taken: dict[str, list[float]] = {"separate": [], "together": []}
  for number in range(sizes.rounds):
    losses = {}
    for way in sorted(taken, reverse=number % 2 == 1):
      result = measure(way, sizes)
      taken[way].append(result["seconds"])
      losses[way] = result["loss"]
      print(f"{way}: {result['seconds']:.1f} s, of which compiling {result['compile_seconds']:.1f} s", flush=True)
    apart = max(abs(one - other) for one, other in zip(losses["separate"], losses["together"]))
    print(f"last losses differ by at most {apart:.4f}", flush=True)
  ratios = [one / other for one, other in zip(taken["together"], taken["separate"])]
  print(f"{sizes.runs} runs, {sizes.steps} steps of {sizes.batch}: together / separate {statistics.median(ratios):.2f}")


def measure(way: str, sizes: argparse.Namespace) -> dict[str, object]:
  """Seconds, seconds of compiling, and the last losses of one way, in a process of its own."""
  with tempfile.TemporaryDirectory() as folder:
    numbers = [str(one) for one in (sizes.runs, sizes.steps, sizes.batch)]
    command = [sys.executable, "-c", CHILD, way, folder, *numbers]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    if done.returncode:
      sys.exit(done.stderr)
    return {**json.loads(done.stdout), "whole": time.perf_counter() - start}


if __name__ == "__main__":
  main()
