"""Tasks one after the other (`peftjax.train.sequence`): what a method still knows of the first one after the last.

`config.compare.sequence` names data sets; a trial's training is repeated on each of them in turn, with its own
settings. With `config.compare.sequence_keep` each task keeps its own leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.dimensions.base import Dimension, Group, Json, Plot, Section, Trained, by_group
from peftjax.compare.drawing.heat import Matrix, heat
from peftjax.compare.drawing.rows import estimated, marked
from peftjax.compare.metrics import spec_of
from peftjax.compare.records import Record
from peftjax.train.sequence import train_in_turn

NAME = "sequence"


def measure(trained: Trained) -> Json | None:
  """As `train_in_turn`; None where the study names no sequence."""
  names = tuple(trained.study.get("sequence", ()))
  if not names:
    return None
  keep = bool(trained.study.get("sequence_keep", False))
  return train_in_turn(trained.config, names, trained.folder / "sequence", keep)


def summarize(records: Sequence[Record], summary: Summary) -> Json:
  """{"tasks", "metric", "keep"}; "average", "backward", "forgetting" by row over seeds; "matrix" {row: mean over
  seeds}."""
  held = {record.run: record.dimensions[NAME] for record in records}
  first = next(iter(held.values()))

  def of(name: str) -> list[Group]:
    return by_group(records, summary, lambda record: held[record.run][name])

  matrices: dict[str, list[Matrix]] = {}
  for record in records:
    matrices.setdefault(record.row, []).append(held[record.run]["matrix"])
  return {
    **{name: first[name] for name in ("tasks", "metric", "keep")},
    **{name: of(name) for name in ("average", "backward", "forgetting")},
    "matrix": {row: _mean(own) for row, own in matrices.items()},
  }


def _mean(matrices: Sequence[Matrix]) -> list[list[float | None]]:
  return [
    [None if None in cells else float(np.mean([cell for cell in cells if cell is not None])) for cells in zip(*rows)]
    for rows in zip(*matrices)
  ]


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Average, backward transfer and forgetting by row, with the matrix of scores [after task, on task]."""
  spec, names = spec_of(found["metric"], summary.metrics_spec), [_short(name) for name in found["tasks"]]
  kept = (
    "Each task kept leaves of its own on one base."
    if found["keep"]
    else "One model went on from task to task; a head of other classes is the task's own."
  )
  backward = {one.row: one for one in found["backward"]}
  told = "; ".join(
    f"{one.row} {fmt.score_text(one.estimate, spec)}, backward {fmt.difference(backward.get(one.row), spec)}"
    for one in found["average"]
  )
  runs = fmt.runs([run for one in found["average"] for run in one.runs])
  moved = [estimated(one.row, one, fmt.difference(one, spec), fmt.scale(spec)) for one in found["backward"]]
  across = f"backward transfer of {spec.name}{fmt.counted_in(spec)}"
  numbered = ", ".join(f"{number} {name}" for number, name in enumerate(names, 1))
  return Section(
    heading="Tasks one after the other",
    sentences=(
      (
        f"Trained on {fmt.names(names)} in this order. {kept} Backward transfer is what later tasks changed on earlier "
        "ones, on average (Lopez-Paz & Ranzato 2017); below zero is forgetting."
      ),
      f"Average test {spec.name} after the last task, and backward transfer{fmt.unit(spec)}: {told} (runs {runs}).",
    ),
    plots=(
      Plot(
        f"{NAME}-matrix",
        "What is known after each task",
        f"Test {spec.name} on each task (across) after training on each (down): {numbered}. Means over seeds.",
        lambda narrow: heat(found["matrix"], summary, spec, narrow),
      ),
      Plot(
        f"{NAME}-backward",
        "Backward transfer",
        "Mean over seeds with Student's 95% interval.",
        lambda narrow: marked(moved, summary, across, narrow, at=0.0),
      ),
    ),
    columns=("run", *(f"{name} at the end" for name in names), "average", "backward transfer", "forgetting"),
    rows=tuple(
      (
        record.run,
        *(fmt.score_text(score, spec) for score in (*held["matrix"][-1], held["average"])),
        *(fmt.signed(held[name], spec) for name in ("backward", "forgetting")),
      )
      for record in records
      if (held := record.dimensions[NAME])
    ),
  )


def _short(name: str) -> str:
  return Path(name.partition(":")[2] or name).stem.replace("_", " ")


DIMENSION = Dimension(NAME, measure, summarize, section)
