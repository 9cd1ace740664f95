"""What a tuned model costs to serve: its forward pass as trained and merged, and switching between two adapters.

FLOPs are those of the matrix products of the traced forward pass; times are taken in turns in random order, with ratios
within rounds (`peftjax.train.timing`). A merged model is the base's own program with other weights, so what its ratio
differs from 1 is the clock's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from peftjax import adapters
from peftjax.adapters.adapter import check_one_base
from peftjax.errors import UserError
from peftjax.model import Model
from peftjax.train import timing
from peftjax.train.flops import count_flops

ROUNDS = 15
SWITCHES = 12
EQUAL = 1e-4  # a mixed batch is equal within this share of its largest output: sums are taken in another order


def overhead(model: Model, inputs: Mapping[str, Any], rounds: int = ROUNDS) -> dict[str, Any]:
  """A trained model's forward pass, as it is and merged, against its base's.

  Args:
    model: with its adapter beside the base.
    inputs: arrays by name.

  Returns:
    "flops" {"base", "unmerged", "merged"}; "seconds" and "ratio" {"unmerged", "merged"}, the latter {"estimate", "low",
    "high"} against the base; "rounds"; "difference", the largest of the merged model's outputs from the unmerged one's,
    over the largest output; "reason" why it cannot be merged, with None in place of its figures, or why there is
    nothing to merge.
  """
  models: dict[str, Model | None] = {"base": adapters.disabled(model), "unmerged": model, "merged": None}
  reason = ""
  if not model.adapter_paths():
    reason = "it adds no leaves, so that its model is the base with other weights: there is nothing to merge"
    models["merged"] = model
  else:
    try:
      models["merged"] = model.merge()
    except UserError as error:
      reason = str(error)
  there = {name: one for name, one in models.items() if one is not None}

  def flops(one: Model | None) -> int | None:
    return None if one is None else count_flops(lambda params, given: one.forward(params, given), one.params, inputs)

  def step(one: Model) -> timing.Step:
    return lambda: jax.block_until_ready(one(**inputs))

  times = timing.interleaved({name: step(one) for name, one in there.items()}, "base", rounds).rows
  return {
    "flops": {name: flops(one) for name, one in models.items()},
    "seconds": {name: times[name].median if name in times else None for name in models},
    "ratio": {
      name: {"estimate": one.ratio, "low": one.ratio_low, "high": one.ratio_high} if (one := times.get(name)) else None
      for name in ("unmerged", "merged")
    },
    "rounds": rounds,
    "rows": int(next(iter(inputs.values())).shape[0]),
    "length": max((int(one.shape[1]) for one in inputs.values() if one.ndim == 2), default=0),
    "difference": _difference(model(**inputs), there["merged"](**inputs)) if "merged" in there else None,
    "reason": reason,
  }


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
  """The largest difference of the first output (the logits, where there are any), over its largest value."""
  name = "logits" if "logits" in one else next(iter(one))
  first, second = np.asarray(one[name], np.float64), np.asarray(other[name], np.float64)
  return float(f"{np.abs(first - second).max() / max(np.abs(first).max(), 1e-30):.3g}")


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
  """Fills a list with an entry for each program that XLA compiles, or fetches from its cache, within the block."""
  seen: list[str] = []

  def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event.endswith("backend_compile_duration"):
      seen.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield seen
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def switch(one: Model, other: Model, inputs: Mapping[str, Any], switches: int = SWITCHES) -> dict[str, Any]:
  """Two models of one base, each with an adapter of the same settings.

  Returns:
    "switch_seconds", of putting an adapter on, "forward_seconds", of a forward pass by itself, and "switched_seconds",
    of one with a switch before it: medians; "compilations" during all switches; "mixed_difference", the largest of a
    mixed batch's outputs from each adapter's alone, over the largest output, and "equal", whether it is below `EQUAL`;
    both None where the batch is refused, with its "reason".

  Raises:
    UserError: the two do not have one base.
  """
  check_one_base([one, other])
  bank = adapters.Bank(adapters.disabled(one)).add("first", one).add("second", other)
  for name in bank.names:
    jax.block_until_ready(bank.use(name)(**inputs))
  putting, whole, alone = [], [], []
  with compilations() as compiled:
    for number in range(switches):
      start = time.perf_counter()
      model = bank.use(bank.names[number % 2])
      put = time.perf_counter()
      jax.block_until_ready(model(**inputs))
      done = time.perf_counter()
      jax.block_until_ready(model(**inputs))
      putting.append(put - start)
      whole.append(done - start)
      alone.append(time.perf_counter() - done)
  found: dict[str, Any] = {
    "switch_seconds": float(np.median(putting)),
    "switched_seconds": float(np.median(whole)),
    "forward_seconds": float(np.median(alone)),
    "compilations": len(compiled),
    "mixed_difference": None,
    "equal": None,
    "reason": "",
  }
  try:
    difference = _mixed_difference(bank, inputs)
  except UserError as error:
    return found | {"reason": str(error)}
  return found | {"mixed_difference": float(f"{difference:.3g}"), "equal": difference < EQUAL}


def _mixed_difference(bank: Any, inputs: Mapping[str, Any]) -> float:
  names: list[str | None] = ["first", "second", None]
  rows = int(next(iter(inputs.values())).shape[0])
  each = [names[row % 3] for row in range(rows)]
  together = _first(bank.mixed()(**inputs, adapter_ids=bank.ids(each)))
  alone = {name: _first(bank.use(*([name] if name else []))(**inputs)) for name in dict.fromkeys(each)}
  wanted = np.stack([alone[name][row] for row, name in enumerate(each)])
  return float(np.abs(together - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def _first(outputs: Mapping[str, Any]) -> np.ndarray:
  return np.asarray(outputs["logits"] if "logits" in outputs else next(iter(outputs.values())), np.float64)
