"""What many runs at once cost: one step of N LoRA runs over one base, against N single steps, with peak memory.

    python -m experiments.benchmarks.sweeps --shape=bert-base --precision=bfloat16 --out=runs/benchmarks/sweeps.json

The program is that of `peftjax sweep`: the ordinary step under `jax.vmap`, the base held once. Weights and tokens are
random, so that nothing but the package is needed; every count has its program compiled before any is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.measuring import command_of, in_turns, record, summary
from experiments.benchmarks.ours import Ours, use_cache
from experiments.benchmarks.rival import lora
from experiments.benchmarks.shapes import find
from peftjax.train.stacked import of_many


def step_of(ours: Ours, count: int) -> tuple[Callable[[], Any], int]:
  """One update of `count` runs, and the program's temporary bytes."""
  state, frozen, batch = ours.held()
  repeated = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * count), tree)  # noqa: E731
  states, batches = repeated(state), repeated(batch)
  compiled = jax.jit(of_many(ours.step()), donate_argnums=0).lower(states, frozen, batches).compile()
  held = [states]

  def run() -> Any:
    held[0], metrics = compiled(held[0], frozen, batches)
    return metrics["loss"]

  return run, int(compiled.memory_analysis().temp_size_in_bytes)


def main() -> None:
  """Measures."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--shape", default="bert-base")
  parser.add_argument("--counts", default="1,4,16,64", help="runs at once, by commas")
  parser.add_argument("--precision", default="float32")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--steps", type=int, default=3, help="in a round")
  parser.add_argument("--cache", default="runs/benchmarks/compiled")
  parser.add_argument("--out", default="")
  flags = parser.parse_args()
  use_cache(flags.cache)
  ours = Ours(find(flags.shape), lora(flags.shape), flags.precision)
  ours.compile()
  ours.start()
  steps: dict[str, Callable[[], Any]] = {}
  temporary = {}
  for count in map(int, flags.counts.split(",")):
    steps[str(count)], temporary[str(count)] = step_of(ours, count)
  steps["single"] = ours.run  # last: it gives the state away that the others are copied from
  for run in steps.values():
    jax.block_until_ready(run())
  taken = in_turns(steps, flags.rounds, flags.steps)
  single = taken.pop("single")
  rows = []
  for name, times in taken.items():
    ratio = summary([one / (int(name) * other) for one, other in zip(times, single, strict=True)])
    rows.append({"runs": int(name), "seconds": summary(times), "over_single": ratio, "temp_bytes": temporary[name]})
    print(f"{name} runs at once: {ratio['median']:.3f} of the time of as many single steps", flush=True)
  found = {"command": command_of("experiments.benchmarks.sweeps"), "shape": flags.shape, "precision": flags.precision}
  record("sweeps", {**found, "single_seconds": summary(single), "rows": rows}, flags.out)


if __name__ == "__main__":
  main()
