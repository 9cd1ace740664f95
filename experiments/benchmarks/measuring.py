"""What the benchmarks share: time in turns, summaries, the peak of matrix products, one JSON file with its plot."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftjax.files import write_text

PACKAGES = ("peftjax", "jax", "jaxlib", "flax", "optax", "torch", "transformers", "peft", "numpy")


def versions() -> dict[str, str]:
  """Package -> its version, of those that are installed."""
  found = {"python": platform.python_version()}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def device_name() -> str:
  """The device that JAX computes on: the accelerator's kind, or the number of the processor's cores."""
  import jax

  device = jax.devices()[0]
  return f"CPU, {os.cpu_count()} cores" if device.platform == "cpu" else str(device.device_kind)


def is_accelerator() -> bool:
  """Whether JAX computes on something else than the CPU."""
  import jax

  return bool(jax.default_backend() != "cpu")


def summary(values: Sequence[float]) -> dict[str, float]:
  """Median, least and most, and how many there are."""
  return {"median": statistics.median(values), "least": min(values), "most": max(values), "count": len(values)}


def seconds_of(run: Callable[[], Any], steps: int = 1) -> float:
  """Seconds a call of `steps` calls, whose last result is waited for."""
  import jax

  start = time.perf_counter()
  for _ in range(steps):
    result = run()
  jax.block_until_ready(result)
  return (time.perf_counter() - start) / steps


def in_turns(rivals: Mapping[str, Callable[[], Any]], rounds: int, steps: int = 1) -> dict[str, list[float]]:
  """Name -> seconds a call, one value a round; in every round each rival runs once, in an order that alternates."""
  taken: dict[str, list[float]] = {name: [] for name in rivals}
  names = list(rivals)
  for number in range(rounds):
    for name in names if number % 2 == 0 else reversed(names):
      taken[name].append(seconds_of(rivals[name], steps))
  return taken


def matmul_peak(dtype: str, size: int = 0, rounds: int = 5) -> float:
  """FLOP/s of the fastest of some products of two square matrices of normal numbers: no step is faster."""
  import jax
  import jax.numpy as jnp

  size = size or (8192 if is_accelerator() else 2048)
  keys = jax.random.split(jax.random.key(0))
  a, b = (jax.random.normal(key, (size, size), jnp.float32).astype(dtype) for key in keys)
  multiply = jax.jit(jnp.matmul)
  seconds_of(lambda: multiply(a, b), 3)
  steps = 20 if is_accelerator() else 3
  best = min(seconds_of(lambda: multiply(a, b), steps) for _ in range(rounds))
  return 2 * size**3 / best


def command_of(module: str) -> str:
  """The command line of this process, without the flags that say where files lie and how long to wait."""
  local = ("--cache", "--log", "--out", "--budget", "--patience", "--model", "--tokenizer")
  return " ".join([f"python -m {module}", *(one for one in sys.argv[1:] if not one.startswith(local))])


def record(name: str, found: Mapping[str, Any], out: str) -> None:
  """Writes `found` with what it was measured on to the file `out`; without `out` prints it."""
  whole = {"benchmark": name, "device": device_name(), "versions": versions(), **found}
  text = json.dumps(whole, indent=2, default=float) + "\n"
  if not out:
    print(text)
    return
  Path(out).parent.mkdir(parents=True, exist_ok=True)
  write_text(Path(out), text)
