"""Switching between two trained adapters on one base, and batches in which every example has its own
(`peftjax.train.serving`).

The two adapters are those of two seeds of a row; where only one seed is there, the second is the first as it was
before training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.dimensions.base import ROW, Dimension, Json, Plot, Section, Trained, by_row
from peftjax.compare.dimensions.inference import ROWS
from peftjax.compare.dimensions.told import refusal
from peftjax.compare.drawing.rows import Line, marked
from peftjax.compare.records import Record
from peftjax.masks import combine
from peftjax.model import Model
from peftjax.train.finished import restored
from peftjax.train.folder import read_config
from peftjax.train.serving import SWITCHES, switch

NAME = "switching"


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
  """Time of a switch by row, compilations, and whether a mixed batch equals each adapter's alone."""
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
