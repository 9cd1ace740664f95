"""Switching between two trained adapters on one base, and batches in which every example has its own.

The two adapters are those of two seeds of a row; where only one seed is there, the second is the first as it was
before training. Measured are the seconds of putting the other adapter on, how many programs XLA compiled meanwhile, and
how far a mixed batch's outputs are from what each adapter, and the base, gives alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from peftjax import adapters
from peftjax.adapters.adapter import check_one_base
from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.dimensions.base import ROW, Dimension, Json, Plot, Section, Trained, by_row
from peftjax.compare.dimensions.inference import ROWS
from peftjax.compare.dimensions.told import refusal
from peftjax.compare.drawing.rows import Line, marked
from peftjax.compare.records import Record
from peftjax.errors import UserError
from peftjax.masks import combine
from peftjax.model import Model
from peftjax.train.finished import restored
from peftjax.train.folder import read_config

NAME = "switching"
SWITCHES = 12
EQUAL = 1e-4  # a mixed batch is equal within this share of its largest output: sums are taken in another order


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


def switch(one: Model, other: Model, inputs: Mapping[str, Any], switches: int = SWITCHES) -> Json:
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
  found: Json = {
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


# The dimension ----------------------------------------------------------------------------------------------------


def measure(trained: Trained) -> Json:
  """As `switch`, with "second": the run whose adapter was the second, or "untrained"."""
  second, other = _second(trained)
  inputs = {name: array[:ROWS] for name, array in trained.batch.items()}
  return switch(trained.model, other, inputs) | {"second": second}


def _second(trained: Trained) -> tuple[str, Model]:
  run = trained.run
  for folder in sorted(trained.folder.parent.iterdir()):
    if folder != trained.folder and (folder / "summary.json").is_file() and _reads_alike(trained.folder, folder):
      parts = folder.parts
      name = "/".join(parts[parts.index("runs") + 1 :] if "runs" in parts else parts[-2:])
      return name, run.model.with_params(combine(restored(folder, run), run.frozen))
  return "untrained", run.model


def _reads_alike(folder: Path, other: Path) -> bool:
  """Whether two runs differ in nothing but their seed."""
  first, second = (read_config(place)[0] for place in (folder, other))
  first.seed = second.seed = 0
  return bool(first.to_dict() == second.to_dict())


def summarize(records: Sequence[Record], summary: Summary) -> Json:
  """{"rows": {"row", "run", and what was measured}}, in the order of the summary."""
  return {"rows": by_row(records, summary, NAME)}


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Its part of the report."""
  rows = found["rows"]
  compiled = sum(one["compilations"] for one in rows)
  equal = [one["row"] for one in rows if one["equal"]]
  sentences = [
    (
      f"Two trained adapters on one base in turns, {SWITCHES} switches a method: {compiled} programs were compiled "
      f"meanwhile (runs {fmt.runs([one['run'] for one in rows])})."
    ),
  ]
  if equal:
    sentences.append(f"A batch that mixes both adapters and the base gives what each gives alone: {fmt.names(equal)}.")
  sentences += [
    f"{one['row']}: a mixed batch differs by {one['mixed_difference']:.1e} of the largest output."
    for one in rows
    if one["equal"] is False
  ]
  sentences += [refusal(one["row"], one["reason"]) for one in rows if one["reason"]]
  drawn = [
    Line(
      one["row"],
      f"{fmt.seconds(one['switch_seconds'])} · forward {fmt.seconds(one['forward_seconds'])}",
      (one["switch_seconds"], one["forward_seconds"]),
    )
    for one in rows
  ]
  plot = Plot(
    NAME,
    "Switching adapters",
    "Medians; the base and both adapters stay in memory.",
    lambda narrow: marked(
      drawn, summary, "filled: switching; hollow: a forward pass (log scale)", narrow, log=fmt.seconds
    ),
  )
  return Section(
    heading="Switching and mixed batches",
    sentences=tuple(sentences),
    plots=(plot,),
    columns=("run", "second adapter", "switch", "forward", "both", "compilations", "mixed batch differs by"),
    rows=tuple(
      (
        one["run"],
        one["second"],
        *(fmt.seconds(one[f"{kind}_seconds"]) for kind in ("switch", "forward", "switched")),
        str(one["compilations"]),
        "refused" if one["mixed_difference"] is None else f"{one['mixed_difference']:.1e}",
      )
      for one in rows
    ),
  )


DIMENSION = Dimension(NAME, measure, summarize, section, per=ROW)
