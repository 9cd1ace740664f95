"""Where a training step's time goes on the device: the operations that take longest, and how long it has none.

    python -m experiments.benchmarks.profile_step --shape=llama-1b --method=lora --precision=bfloat16 --out=profile.json

From `jax.profiler`'s trace of some steps after warm-up. On an accelerator each stream's kernels are summed by name;
"idle" is the share of the span from the first kernel to the last in which none runs.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks.measuring import command_of, is_accelerator, record, seconds_of
from experiments.benchmarks.ours import Ours, use_cache
from experiments.benchmarks.rival import lora
from experiments.benchmarks.shapes import find


def events_of(folder: Path) -> list[dict[str, Any]]:
  """The complete events of the device's streams (of the compiler's threads on a CPU), in microseconds."""
  (path,) = folder.rglob("*.trace.json.gz")
  with gzip.open(path, "rt") as file:
    trace = json.load(file)["traceEvents"]
  processes, threads = {}, {}
  for event in trace:
    if event.get("name") == "process_name":
      processes[event["pid"]] = event["args"]["name"]
    if event.get("name") == "thread_name":
      threads[event["pid"], event["tid"]] = event["args"]["name"]
  wanted = re.compile("GPU|TPU") if is_accelerator() else re.compile("CPU|python")
  lines = re.compile("Stream|stream|XLA Ops") if is_accelerator() else re.compile("Eigen|xla|pool|Thunk")
  return [
    event
    for event in trace
    if event.get("ph") == "X"
    and wanted.search(processes.get(event["pid"], ""))
    and lines.search(threads.get((event["pid"], event["tid"]), ""))
  ]


def idle_share(events: list[dict[str, Any]]) -> float:
  """The share of the whole span in which no event runs."""
  spans = sorted((one["ts"], one["ts"] + one.get("dur", 0)) for one in events)
  busy, end = 0.0, spans[0][0]
  for begin, until in spans:
    busy += max(until - max(begin, end), 0.0)
    end = max(end, until)
  return 1.0 - busy / (end - spans[0][0])


def profile(shape: str, method: str, precision: str, steps: int) -> dict[str, Any]:
  """The table of a step."""
  settings = {"name": "full"} if method == "full" else lora(shape)
  ours = Ours(find(shape), settings, precision)
  cost = ours.compile()
  ours.start()
  seconds_of(ours.run, 3)
  seconds = seconds_of(ours.run, steps)
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      seconds_of(ours.run, steps)
    events = events_of(Path(folder))
  taken: collections.Counter[str] = collections.Counter()
  calls: collections.Counter[str] = collections.Counter()
  for event in events:
    taken[event["name"]] += event.get("dur", 0)
    calls[event["name"]] += 1
  named = {event["name"]: event.get("args", {}) for event in events}
  rows = [
    {
      "name": name,
      "milliseconds_a_step": micro / 1e3 / steps,
      "calls_a_step": calls[name] / steps,
      "source": str(named[name].get("tf_op") or named[name].get("hlo_op") or "")[:160],
    }
    for name, micro in taken.most_common(40)
  ]
  found = {"shape": shape, "method": method, "precision": precision, "seconds": seconds, "flops": cost.flops}
  found |= {"idle": idle_share(events) if events else None, "events": len(events), "rows": rows}
  return found


def main() -> None:
  """Profiles."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--shape", default="llama-1b")
  parser.add_argument("--method", default="lora", choices=("full", "lora"))
  parser.add_argument("--precision", default="bfloat16")
  parser.add_argument("--steps", type=int, default=3)
  parser.add_argument("--cache", default="runs/benchmarks/compiled")
  parser.add_argument("--text", default="", help="file for the compiled program")
  parser.add_argument("--out", default="")
  flags = parser.parse_args()
  use_cache(flags.cache)
  found = profile(flags.shape, flags.method, flags.precision, flags.steps)
  found["command"] = command_of("experiments.benchmarks.profile_step")
  record("profile_step", found, flags.out)
  print(f"{flags.shape} {flags.method}: {found['seconds'] * 1e3:.2f} ms a step, idle {found['idle']}", flush=True)
  for row in found["rows"][:14]:
    print(
      f"  {row['milliseconds_a_step']:8.3f} ms {row['calls_a_step']:6.0f} x {row['name'][:60]} {row['source'][-60:]}"
    )


if __name__ == "__main__":
  main()
