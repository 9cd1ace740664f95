"""Sixteen LoRA runs: one program for all of them, against sixteen runs one after the other, compilation included.

    python experiments/sweep.py            16 runs of 12 steps of 4 movie reviews on MiniLM, batches of 32 tokens

Three ways, by turns, each with an empty cache of compiled programs at its start:

    commands    sixteen `peftjax train`, one after the other; only the first compiles anew, the others find its programs
    loop        sixteen trainings in one process, which pays its start and its imports once
    together    one program

Prints seconds, and the ratios' medians over rounds.
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
elif way == "commands":
  import os, subprocess
  cached = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
  fields = ["data.max_length=32", "data.buckets=()", "data.train_examples=800", f"train.batch_size={batch}"]
  fields += [f"train.steps={steps}", "train.save_every=0", "train.final_splits=()", "train.tensorboard=False"]
  summaries = []
  for seed, one in enumerate(folders):
    command = [sys.executable, "-m", "peftjax", "train", f"--workdir={one}", f"--config.seed={seed}"]
    command += [f"--config.{field}" for field in fields]
    subprocess.run(command, check=True, env={**os.environ, **cached}, stdout=subprocess.DEVNULL)
    summaries.append(json.loads((one / "summary.json").read_text()))
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
  taken: dict[str, list[float]] = {"commands": [], "loop": [], "together": []}
  for number in range(sizes.rounds):
    losses = {}
    for way in sorted(taken, reverse=number % 2 == 1):
      result = measure(way, sizes)
      taken[way].append(result["seconds"])
      losses[way] = result["loss"]
      print(f"{way}: {result['seconds']:.1f} s, of which compiling {result['compile_seconds']:.1f} s", flush=True)
    apart = max(abs(one - other) for one, other in zip(losses["commands"], losses["together"]))
    print(f"last losses differ by at most {apart:.4f}", flush=True)
  print(f"{sizes.runs} runs, {sizes.steps} steps of {sizes.batch}")
  for way in ("commands", "loop"):
    ratios = [one / other for one, other in zip(taken["together"], taken[way])]
    print(f"together / {way}: {statistics.median(ratios):.2f}")


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
