"""One rival of a benchmark of training steps, in a process of its own, which does what it is told line by line.

    python -m experiments.benchmarks.rival '{"rival": "peftjax", "shape": "llama-1b", "method": "lora", ...}'

Standard input says "start" (weights are made, some steps are run so that nothing is compiled later), "steps N" and
"end"; each is answered by one line of JSON on standard output. Everything that needs no memory of the device (imports,
tracing, compiling peftjax's step) is done before "start".
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from experiments.benchmarks.shapes import find

# Rival -> fields of `Runtime`. The backward pass of "peftjax" recomputes nothing; "minimal" is what `train` does.
OURS = {"peftjax": {}, "peftjax-minimal": {"remat": "minimal"}, "peftjax-unrolled": {"scan_layers": False}}
RIVALS = ("peftjax", "torch", "torch.compile")


def main() -> None:
  case = json.loads(sys.argv[1])
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what libraries print must not look like an answer

  def tell(**found: Any) -> None:
    answers.write(json.dumps(found, default=float) + "\n")
    answers.flush()

  shape = find(case["shape"]).of_layers(case.get("layers", 0))
  settings = {"name": "full"} if case["method"] == "full" else lora(case["shape"])
  begin = time.perf_counter()
  rival: Any
  if case["rival"] in OURS:
    from experiments.benchmarks.ours import Ours, use_cache

    use_cache(case.get("cache") or "runs/benchmarks/compiled")
    rival = Ours(shape, settings, case["precision"], **OURS[case["rival"]])
    cost = rival.compile()
    tell(
      prepared=time.perf_counter() - begin,
      compile_seconds=cost.compile_seconds,
      flops=cost.flops,
      temp_bytes=cost.temp_bytes,
      argument_bytes=cost.argument_bytes,
    )
  else:
    from experiments.benchmarks.theirs import Theirs

    compiled = case.get("compiled", "whole") if case["rival"] == "torch.compile" else ""
    rival = Theirs(shape, case["method"], case["precision"], compiled)
    tell(prepared=time.perf_counter() - begin)
  gc.collect()
  forget_peak()
  before = held()
  for line in sys.stdin:
    word, *rest = line.split()
    if word == "start":
      begin = time.perf_counter()
      rival.start()
      for _ in range(case.get("warm", 3)):
        loss = wait(rival, rival.run())
      peak = rival.peak_bytes()
      tell(started=time.perf_counter() - begin, loss=loss, peak_bytes=held("VmHWM") - before if peak is None else peak)
    elif word == "steps":
      count = int(rest[0])
      begin, busy = time.perf_counter(), time.process_time()
      for _ in range(count):
        result = rival.run()
      loss = wait(rival, result)
      taken, work = ((now - then) / count for now, then in [(time.perf_counter(), begin), (time.process_time(), busy)])
      peak = rival.peak_bytes()
      tell(seconds=taken, cpu_seconds=work, loss=loss, peak_bytes=held("VmHWM") - before if peak is None else peak)
    else:
      break
  answers.close()


def lora(shape: str) -> dict[str, Any]:
  """LoRA of rank 8 on all linear modules of the layers."""
  return {"name": "lora", "rank": 8, "alpha": 8.0, "targets": find(shape).targets_of_lora}


def wait(rival: Any, result: Any) -> float:
  """The loss as a number, when it is there."""
  return float(rival.wait(result)) if hasattr(rival, "wait") else float(result)


def held(name: str = "VmRSS") -> int:
  """Bytes of memory that the process holds; with "VmHWM" the most since `forget_peak`."""
  for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith(name):
      return 1024 * int(line.split()[1])
  return 0


def forget_peak() -> None:
  """The most memory held counts from now on."""
  with contextlib.suppress(OSError):
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
  main()
