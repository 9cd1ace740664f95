"""What many adapters cost a server: tokens a second of one batch, by turns.

    python -m experiments.benchmarks.serving             SmolLM2-135M-Instruct, 16 answers of 32 tokens, LoRA of rank 8
    python -m experiments.benchmarks.serving --rounds=3 --tokens=16

    base    a server without adapters
    1       with one adapter, which every request names
    16      with sixteen, each named by one request

Each way writes the same prompts, through the engine of `peftjax serve`, once in a round in random order; ratios are
formed within a round, and their median and its interval over rounds printed (`peftjax.train.timing`). Compilation is in
rounds that do not count.
"""

from __future__ import annotations

import argparse
import dataclasses
import queue
import time
from collections.abc import Callable
from contextlib import ExitStack

import jax

from peftjax import masks, methods
from peftjax.adapters import Bank
from peftjax.serve.engine import Engine, Job, Limits, Piece
from peftjax.serve.served import Served, loaded
from peftjax.train import timing

PROMPT = "The history of the city begins with a river, a bridge and a market"


def with_adapters(served: Served, count: int, rank: int) -> Served:
  """The base with so many LoRAs whose factors are drawn."""
  bank = Bank(served.model)
  for number in range(count):
    model = served.model.add(methods.LoRA(rank=rank, targets=("q_proj", "v_proj")), jax.random.key(number))
    flat = masks.flatten(model.params)
    drawn = {
      name: 0.02 * jax.random.normal(jax.random.key(place), leaf.shape, leaf.dtype) if "lora_" in name else leaf
      for place, (name, leaf) in enumerate(flat.items())
    }
    bank = bank.add(f"adapter-{number}", model.with_params(masks.unflatten(drawn)))
  return dataclasses.replace(served, model=bank.mixed(), names=(*served.names, *bank.names))


def step_of(engine: Engine, served: Served, rows: int, tokens: int) -> Callable[[], None]:
  """Writes one answer for each row, by adapters in turn, and returns when all are done."""
  ids = served.tokenizer.encode_with_places(PROMPT)[0]
  count = len(served.names) - 1

  def step() -> None:
    done: queue.Queue[Piece] = queue.Queue()
    for row in range(rows):
      adapter = row % count if count else -1
      engine.submit(Job(adapter, ids, tokens, 0.0, 1.0, row, (), done.put, time.monotonic() + 600))
    left = rows
    while left:
      piece = done.get()
      if piece.finish in ("timeout", "failed"):
        raise RuntimeError(piece)
      left -= bool(piece.finish)

  return step


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="packaged:smollm2-135m-instruct")
  for name, default in (("rounds", 7), ("rows", 16), ("tokens", 32), ("rank", 8)):
    parser.add_argument(f"--{name}", type=int, default=default)
  given = parser.parse_args()
  base = loaded(given.model)
  base = dataclasses.replace(base, rules=dataclasses.replace(base.rules, eos_ids=()))  # all answers are of one length
  ways = {"1": with_adapters(base, 1, given.rank), "base": base, "16": with_adapters(base, 16, given.rank)}
  with ExitStack() as held:
    steps = {}
    for name, served in ways.items():
      engine = held.enter_context(served.engine(Limits(rows=given.rows, waiting=given.rows)))
      steps[name] = step_of(engine, served, given.rows, given.tokens)
    found = timing.interleaved(steps, "1", given.rounds).rows
  for name in ("base", "1", "16"):
    one = found[name]
    rate, ends = given.rows * given.tokens / one.median, f"[{one.ratio_low:.2f}, {one.ratio_high:.2f}]"
    print(f"{name:>4} adapters: {rate:7.1f} tokens a second; time over that with one adapter {one.ratio:.2f} {ends}")


if __name__ == "__main__":
  main()
