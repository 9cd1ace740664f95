"""peftjax's training step against torch + PEFT, eager and compiled: full fine-tuning and LoRA, throughput and memory.

    python -m experiments.benchmarks.training_steps --size=small --out=runs/benchmarks/training_steps_cpu.json
    python -m experiments.benchmarks.training_steps --size=large --out=runs/benchmarks/training_steps.json

Forward pass, loss, backward pass, clipping and AdamW on both sides: the same shapes, full rows, the same dtypes, LoRA
of rank 8 on all linear modules of the layers. Weights and tokens are random; no network is needed. Each rival is a
process of its own (`rival.py`). On a CPU the rivals of a case take their steps in turns; an accelerator's memory holds
one after the other, and the next one's imports run meanwhile. Peak memory is that of the device's allocator; on a CPU
the growth of the process over its start. Beside the time of a step stands the time that the process computed, over all
of its threads, of which other work on the machine takes less away.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

from experiments.benchmarks.processes import FAILURES, Process, log_of
from experiments.benchmarks.rival import OURS, RIVALS
from experiments.benchmarks.shapes import SHAPES

ONLY_LORA = ("llama-3b",)  # full fine-tuning of it does not fit 80 GB with float32 moments


def started(case: dict[str, Any], log: Any) -> Process:
  """A rival's process."""
  return Process("experiments.benchmarks.rival", [json.dumps(case)], log)


def cases(flags: argparse.Namespace) -> list[list[dict[str, Any]]]:
  """The cases, each a list of its rivals."""
  found = []
  shapes = flags.shapes.split(",") if flags.shapes else list(SHAPES[flags.size])
  for shape in shapes:
    for method in flags.methods.split(","):
      if method == "full" and shape in ONLY_LORA:
        continue
      base = {"shape": shape, "method": method, "precision": flags.precision, "cache": flags.cache}
      base["layers"] = flags.layers
      rivals = flags.rivals.split(",")
      found.append([base | {"rival": rival, "compiled": flags.compiled} for rival in rivals])
  return found


def alone(rivals: list[dict[str, Any]], flags: argparse.Namespace, report: Any) -> None:
  """One rival after the other; the next one is prepared meanwhile."""
  log = log_of(flags.log)
  waiting = rivals.copy()
  ahead = started(waiting[0], log)
  for index, case in enumerate(waiting):
    process = ahead
    if index + 1 < len(waiting):
      ahead = started(waiting[index + 1], log)
    found: dict[str, Any] = {}
    try:
      found |= process.answer(flags.patience)
      found |= process.ask("start", flags.patience)
      found["seconds"] = []
      for _ in range(flags.rounds):
        found |= _with(found, process.ask(f"steps {flags.steps}", flags.patience))
    except FAILURES as error:
      found["failed"] = f"{type(error).__name__} {error}"
    process.end()
    report(case, found)


def together(rivals: list[dict[str, Any]], flags: argparse.Namespace, report: Any) -> None:
  """All rivals of a case are held at once and take their steps in turns."""
  log = log_of(flags.log)
  alive: list[tuple[dict[str, Any], Process, dict[str, Any]]] = []
  for case in rivals:
    process, found = started(case, log), {}
    try:
      found |= process.answer(flags.patience)
      found |= process.ask("start", flags.patience)
      found["seconds"] = []
      alive.append((case, process, found))
    except FAILURES as error:
      process.end()
      report(case, found | {"failed": f"{type(error).__name__} {error}"})
  for number in range(flags.rounds):
    for _, process, found in alive if number % 2 == 0 else reversed(alive):
      found |= _with(found, process.ask(f"steps {flags.steps}", flags.patience))
  for case, process, found in alive:
    process.end()
    report(case, found)


def _with(found: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
  return answer | {name: [*found.get(name, ()), answer[name]] for name in ("seconds", "cpu_seconds")}


def table(rows: list[dict[str, Any]], peak: float) -> list[dict[str, Any]]:
  """One row a shape and method: each rival's medians, and how many times faster peftjax is than the better peer."""
  from experiments.benchmarks.measuring import summary
  from experiments.benchmarks.ours import model_flops
  from experiments.benchmarks.shapes import find

  grouped: dict[tuple[str, str], dict[str, Any]] = {}
  for row in rows:
    grouped.setdefault((row["shape"], row["method"]), {})[row["rival"]] = row
  found = []
  for (shape, method), rivals in grouped.items():
    layers = next(iter(rivals.values())).get("layers", 0)
    flops, tokens = model_flops(find(shape).of_layers(layers), method), find(shape).tokens
    one: dict[str, Any] = {"shape": shape, "method": method, "model_flops": flops, "tokens": tokens, "rivals": {}}
    for name, row in rivals.items():
      if not row.get("seconds"):
        one["rivals"][name] = {"failed": row.get("failed", "not run")}
        continue
      times = summary(row["seconds"])
      one["rivals"][name] = {
        "seconds": times,
        "cpu_seconds": summary(row["cpu_seconds"]),
        "tokens_per_second": tokens / times["median"],
        "utilisation": flops / times["median"] / peak,
        "peak_bytes": row.get("peak_bytes"),
        "loss": row.get("loss"),
        **{key: row[key] for key in ("flops", "temp_bytes", "argument_bytes", "compile_seconds") if key in row},
      }
    measured = {name: value for name, value in one["rivals"].items() if "seconds" in value}
    peers = {name: value for name, value in measured.items() if name not in OURS}
    if "peftjax" in measured and peers:
      best = min(peers, key=lambda name: peers[name]["seconds"]["median"])
      mine = measured["peftjax"]
      one["best_peer"] = best
      one["speedup"] = peers[best]["seconds"]["median"] / mine["seconds"]["median"]
      one["speedups"] = summary([a / b for a, b in zip(rivals[best]["seconds"], rivals["peftjax"]["seconds"])])
      one["work"] = peers[best]["cpu_seconds"]["least"] / mine["cpu_seconds"]["least"]
      if mine.get("peak_bytes") and peers[best].get("peak_bytes"):
        one["memory"] = mine["peak_bytes"] / min(value["peak_bytes"] for value in peers.values())
    found.append(one)
  return found


def main() -> None:
  """Measures, and writes the table after every case."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", choices=sorted(SHAPES), default="small")
  parser.add_argument("--shapes", default="", help="some of the size's, by commas")
  parser.add_argument("--methods", default="full,lora")
  parser.add_argument("--rivals", default=",".join(RIVALS))
  parser.add_argument("--precision", default="", help="float32 on a CPU, bfloat16 on an accelerator")
  parser.add_argument("--compiled", choices=("whole", "layers"), default="", help="how torch.compile is used")
  parser.add_argument("--turns", choices=("together", "alone"), default="")
  parser.add_argument("--layers", type=int, default=0, help="so many of the same size, in place of all")
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--steps", type=int, default=0, help="in a round")
  parser.add_argument("--patience", type=float, default=900.0, help="seconds for one answer")
  parser.add_argument("--budget", type=float, default=0.0, help="seconds after which no further case is begun")
  parser.add_argument("--cache", default="", help="folder of compiled programs")
  parser.add_argument("--prepare", action="store_true", help="only fills the caches of compiled programs")
  parser.add_argument("--log", default="", help="file for what the rivals print")
  parser.add_argument("--out", default="")
  flags = parser.parse_args()
  on_cpu = flags.size != "large"
  flags.precision = flags.precision or ("float32" if on_cpu else "bfloat16")
  flags.compiled = flags.compiled or ("whole" if on_cpu else "layers")
  flags.turns = flags.turns or ("together" if on_cpu else "alone")
  flags.steps = flags.steps or (1 if on_cpu else 8)
  if flags.prepare:
    prepare(flags)
    return
  from experiments.benchmarks.measuring import command_of, matmul_peak, record

  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  peak = matmul_peak(flags.precision)
  rows: list[dict[str, Any]] = []
  begin = time.perf_counter()

  def report(case: dict[str, Any], found: dict[str, Any]) -> None:
    rows.append({**case, **found})
    settings = {
      key: getattr(flags, key) for key in ("size", "precision", "compiled", "turns", "rounds", "steps", "layers")
    }
    made = {"command": command_of("experiments.benchmarks.training_steps"), **settings}
    record("training_steps", {**made, "matmul_flops_per_second": peak, "rows": table(rows, peak)}, flags.out)
    short = {key: found.get(key) for key in ("failed", "loss", "peak_bytes", "started", "prepared")}
    seconds = found.get("seconds") or []
    print(case["shape"], case["method"], case["rival"], [round(one, 4) for one in seconds], short, flush=True)

  groups = cases(flags)
  if flags.turns == "alone":
    everything = [rival for group in groups for rival in group]
    # The slowest to start come last, should time run out.
    alone(sorted(everything, key=lambda rival: rival["rival"] == "torch.compile"), _Budgeted(flags, begin), report)
    return
  for group in groups:
    if flags.budget and time.perf_counter() - begin > flags.budget:
      break
    together(group, flags, report)


class _Budgeted:
  """The flags, whose `patience` shrinks to what is left of the budget."""

  def __init__(self, flags: argparse.Namespace, begin: float):
    self._flags, self._begin = flags, begin

  def __getattr__(self, name: str) -> Any:
    value = getattr(self._flags, name)
    if name == "patience" and self._flags.budget:
      return max(min(value, self._flags.budget - (time.perf_counter() - self._begin)), 0.1)
    return value


def prepare(flags: argparse.Namespace) -> None:
  """Compiles peftjax's steps side by side, and runs torch's compiled ones once, one after the other."""
  log = log_of(flags.log)
  everything = [rival for group in cases(flags) for rival in group]
  mine = [started(case, log) for case in everything if case["rival"] in OURS]
  for case in everything:
    if case["rival"] == "torch.compile":
      process = started(case | {"warm": 1}, log)
      try:
        process.answer(flags.patience)
        process.ask("start", flags.patience)
      except FAILURES as error:
        print(case["shape"], case["method"], "torch.compile", error, flush=True)
      process.end()
  for process in mine:
    try:
      process.answer(flags.patience)
    except FAILURES as error:
      print("peftjax", error, flush=True)
    process.end()


if __name__ == "__main__":
  main()
