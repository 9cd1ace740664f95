"""Every method's training step against LoRA's, at the same model and batch, with compiled FLOPs.

    python -m experiments.benchmarks.methods --shape=bert-base --out=runs/benchmarks/methods.json

Methods have their default settings, but for LoRA's kin, which act on all linear modules of the layers as LoRA does.
Several processes compile side by side (`--processes`); then each in turn measures its own methods and LoRA.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from experiments.benchmarks.measuring import command_of, in_turns, matmul_peak, record, summary
from experiments.benchmarks.shapes import find

SETTINGS: dict[str, dict[str, Any]] = {
  "last_k": {"k": 2},
  "patterns": {"train": ("query",)},
  "trainable_tokens": {"token_indices": (30, 11, 5, 17)},
  "hybrid": {"methods": ({"name": "bitfit"}, {"name": "lora"})},
  "compacter": {"bottleneck_dim": 48, "phm_dim": 4},
}
LINEAR = (
  "lora", "dora", "adalora", "vera", "fourierft", "vblora", "loha", "lokr", "oft", "boft", "miss", "hra", "randlora",
  "shira", "c3a", "hira", "gralora", "road", "delora",
)  # fmt: skip


def settings_of(name: str, shape: str) -> dict[str, Any]:
  """A `config.method` section."""
  found = {"name": name, **SETTINGS.get(name, {})}
  return found | ({"targets": find(shape).targets_of_lora} if name in LINEAR else {})


def worker(flags: argparse.Namespace) -> None:
  """Compiles its methods, says so, waits for a line, measures, tells."""
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)

  def tell(**found: Any) -> None:
    answers.write(json.dumps(found, default=float) + "\n")
    answers.flush()

  from experiments.benchmarks.ours import Ours, use_cache

  use_cache(flags.cache or "runs/benchmarks/compiled")
  made: dict[str, Any] = {}
  failed: dict[str, str] = {}
  for name in dict.fromkeys(["lora", *flags.worker.split(",")]):
    try:
      made[name] = Ours(find(flags.shape), settings_of(name, flags.shape), flags.precision)
      made[name].compile()
      made[name].start()
      float(made[name].run())
    except Exception as error:  # the other methods are measured all the same
      made.pop(name, None)
      failed[name] = f"{type(error).__name__}: {str(error)[:200]}"
  tell(ready=list(made))
  for line in sys.stdin:
    if line.strip() == "measure":
      times = in_turns({name: one.run for name, one in made.items()}, flags.rounds, flags.steps)
      costs = {name: {"flops": one.cost.flops, "temp_bytes": one.cost.temp_bytes} for name, one in made.items()}
      tell(times=times, costs=costs, failed=failed)
    break
  answers.close()


def main() -> None:
  """Measures."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--shape", default="bert-base")
  parser.add_argument("--methods", default="", help="by commas; all without")
  parser.add_argument("--processes", type=int, default=1)
  parser.add_argument("--precision", default="float32")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--steps", type=int, default=1, help="in a round")
  parser.add_argument("--patience", type=float, default=3600.0)
  parser.add_argument("--cache", default="")
  parser.add_argument("--log", default="")
  parser.add_argument("--worker", default="", help="methods to measure in this process")
  parser.add_argument("--out", default="")
  flags = parser.parse_args()
  if flags.worker:
    worker(flags)
    return
  from experiments.benchmarks.processes import Process, log_of
  from peftjax.methods import METHODS

  names = flags.methods.split(",") if flags.methods else sorted(METHODS)
  names = [name for name in names if name != "lora"]
  shards = [names[index :: flags.processes] for index in range(flags.processes)]
  passed = [f"--{key}={getattr(flags, key)}" for key in ("shape", "precision", "rounds", "steps", "cache")]
  processes = [
    Process("experiments.benchmarks.methods", [f"--worker={','.join(shard)}", *passed], log_of(flags.log))
    for shard in shards
    if shard
  ]
  found: dict[str, Any] = {"command": command_of("experiments.benchmarks.methods")}
  found |= {"shape": flags.shape, "precision": flags.precision, "rows": [], "failed": {}}
  ready = []
  for process in processes:
    try:
      process.answer(flags.patience)
      ready.append(process)
    except Exception as error:
      print("a process did not get ready:", type(error).__name__, error, flush=True)
  for process in ready:
    told = process.ask("measure", flags.patience)
    reference = summary(told["times"]["lora"])["median"]
    for name, times in told["times"].items():
      if name == "lora" and any(row["method"] == "lora" for row in found["rows"]):
        continue
      ratio = summary([one / other for one, other in zip(times, told["times"]["lora"], strict=True)])
      cost, lora = told["costs"][name], told["costs"]["lora"]
      row = {"method": name, "seconds": summary(times), "lora_seconds": reference, "over_lora": ratio, **cost}
      row |= {
        "flops_over_lora": cost["flops"] / lora["flops"],
        "temp_over_lora": cost["temp_bytes"] / lora["temp_bytes"],
      }
      found["rows"].append(row)
      print(f"{name:18} {ratio['median']:.2f} of LoRA's time at {row['flops_over_lora']:.2f} of its FLOPs", flush=True)
    found["failed"] |= told["failed"]
    record("methods", found, flags.out)
  for process in processes:
    process.end()
  print("failed:", found["failed"], flush=True)
  record("methods", found | {"matmul_flops_per_second": matmul_peak(flags.precision)}, flags.out)


if __name__ == "__main__":
  main()
