"""What a dimension of the study is: one thing measured of every trial, its conclusion, and its part of the report.

A dimension is one file with a `DIMENSION` of its own, registered in `peftjax.compare.dimensions`. Its three functions
see less and less of the run: `measure` the trained leaves and the trial's folder, `summarize` the records alone, and
`section` only what it draws. So a report can be made again from ``results.jsonl`` without training anything.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from peftjax.compare import statistics

if TYPE_CHECKING:
  from matplotlib.figure import Figure

  from peftjax.masks import Tree
  from peftjax.train.evaluate import Predict
  from peftjax.train.run import Run

TRIAL, ROW = "trial", "row"  # what a dimension is measured for: each trial, or a row's first seed at its largest size

Json = dict[str, Any]
Summary = dict[str, Any]  # of `analysis.summarize`
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Trained:
  """A trial after its training. What is loaded again is loaded when it is first asked for, once for all dimensions.

  Attributes:
    config: the trial's.
    folder: as `peftjax train` left it.
    summary: the content of its ``summary.json``.
    study: the section `compare` of the study's config.
  """

  config: ConfigDict
  folder: Path
  summary: Summary
  study: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def run(self) -> Run:
    """Data, task, model and partition, as before the first update: ``run.trainable`` is where training began."""
    from peftjax.compare.untrained import buildable, is_frozen
    from peftjax.train.run import resolve

    return resolve(buildable(self.config) if is_frozen(self.config) else self.config)

  @functools.cached_property
  def trainable(self) -> Tree:
    """The trained leaves, from the newest checkpoint."""
    from peftjax.compare.untrained import is_frozen
    from peftjax.train.finished import restored

    if is_frozen(self.config):
      return self.run.trainable
    return restored(self.folder, self.run)

  @functools.cached_property
  def params(self) -> Tree:
    """All leaves of the trained model."""
    from peftjax.masks import combine

    return combine(self.trainable, self.run.frozen)

  @functools.cached_property
  def predict(self) -> Predict:
    """The compiled forward pass that evaluations use: (trainable, frozen, batch) -> predictions."""
    from peftjax.train.evaluate import make_predict

    return make_predict(self.run.forward, self.run.task, self.run.mesh)

  def scores(self, split: str) -> tuple[Mapping[str, float], Mapping[str, np.ndarray]]:
    """(metrics, one row an example) of a split: what the last step left, or else evaluated now.

    Args:
      split: of the data; "train" stands for the first of the training examples, as many as `data.eval_examples` says.

    Raises:
      UserError: no such split.
    """
    path = self.folder / f"predictions-{split}.npz"
    if path.is_file() and split in self.summary["metrics"]:
      with np.load(path, allow_pickle=False) as rows:
        return self.summary["metrics"][split], dict(rows)
    from peftjax.errors import UserError, nearest
    from peftjax.train.evaluate import evaluate

    loaders = self.run.loaders.evals
    if split not in loaders:
      raise UserError(f"no split {split!r} to evaluate; {nearest(split, loaders)}")
    return evaluate(self.predict, self.trainable, self.run.frozen, loaders[split], self.run.task, self.run.mesh)


@dataclasses.dataclass(frozen=True)
class Plot:
  """One figure of a section.

  Attributes:
    name: its id in the page; begins with the dimension's name.
    title, caption: what stands above it.
    draw: narrow -> the figure for a phone or for a wide page; None if there is nothing to draw.
  """

  name: str
  title: str
  caption: str
  draw: Callable[[bool], Figure | None]


@dataclasses.dataclass(frozen=True)
class Section:
  """A dimension's part of the report.

  Attributes:
    heading: of the section.
    sentences: what came out, and how it was measured.
    plots: in their order.
    columns, rows: the table of all seeds, its first column the run's id.
  """

  heading: str
  sentences: tuple[str, ...]
  plots: tuple[Plot, ...] = ()
  columns: tuple[str, ...] = ()
  rows: tuple[tuple[str, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class Dimension:
  """One dimension of the study.

  Attributes:
    name: of its file, in `config.compare.dimensions`, in ``record["dimensions"]`` and ``summary["dimensions"]``.
    measure: what is measured of one trial, ready for JSON; None where the trial has nothing to measure. A dimension
      without it follows from what every record holds, and is no part of `config.compare.dimensions`.
    summarize: (records that hold a measurement, the study's summary) -> its conclusion, ready for JSON, each figure
      with the ids of its runs; None where there is too little.
    section: (that conclusion, the records, the study's summary) -> its part of the report.
    per: `TRIAL`, or `ROW` where all seeds would show the same.
    by_size: whether it knows of several sizes; without, its conclusion is about the largest alone.
    untrained: whether it is measured of a row that trains nothing, too.
  """

  name: str
  measure: Callable[[Trained], Json | None] | None
  summarize: Callable[[Sequence[Record], Summary], Json | None]
  section: Callable[[Mapping[str, Any], Sequence[Record], Summary], Section]
  per: str = TRIAL
  by_size: bool = False
  untrained: bool = False


# What most dimensions share ---------------------------------------------------------------------------------------


def measured(records: Sequence[Record], dimension: Dimension) -> list[Record]:
  """The records that hold a measurement of a dimension, of the sizes that it knows of; all where it needs none."""
  if not dimension.by_size:
    largest = max((size_of(record) for record in records), default=0)
    records = [record for record in records if size_of(record) == largest]
  if dimension.measure is None:
    return list(records)
  return [record for record in records if (record.get("dimensions") or {}).get(dimension.name)]


def size_of(record: Record) -> int:
  """Training examples of a trial in a study of several sizes; 0 in any other."""
  return int(record.get("size") or 0)


def groups(records: Sequence[Record], summary: Summary) -> dict[tuple[str, int], list[Record]]:
  """(row, size) -> its records by seed; rows in the order of the summary, sizes ascending."""
  found: dict[tuple[str, int], list[Record]] = {}
  for row in summary["rows"]:
    own = [record for record in records if record["row"] == row["row"]]
    for size in sorted({size_of(record) for record in own}):
      of_size = [record for record in own if size_of(record) == size]
      found[row["row"], size] = sorted(of_size, key=lambda record: record["seed"])
  return found


def by_row(records: Sequence[Record], summary: Summary, name: str) -> list[Json]:
  """{"row", "run", and what was measured} of each row at its largest size, in the order of the summary."""
  held = {record["row"]: record for record in sorted(records, key=size_of)}
  return [
    {"row": row["row"], "run": held[row["row"]]["run"], **held[row["row"]]["dimensions"][name]}
    for row in summary["rows"]
    if row["row"] in held
  ]


def by_group(records: Sequence[Record], summary: Summary, value: Callable[[Record], float | None]) -> list[Json]:
  """One number a trial, by row and size: its mean over seeds with Student's interval, and the paired difference to the
  reference on the seeds that both have.

  Returns:
    of each row and size {"row", "size", "estimate", "low", "high", "by_seed", "seeds", "runs", "difference"}; the last
    {"to", "estimate", "low", "high", "by_seed", "seeds"}, or None. "low" and "high" are None with one seed.
  """
  found: list[Json] = []
  values = {
    key: {record["seed"]: (record["run"], one) for record in own if (one := value(record)) is not None}
    for key, own in groups(records, summary).items()
  }
  for (row, size), own in values.items():
    if not own:
      continue
    base = values.get((summary["reference"], size), {})
    both = [seed for seed in own if seed in base]
    difference = None
    if both and row != summary["reference"]:
      difference = {"to": summary["reference"], **interval([own[seed][1] - base[seed][1] for seed in both])}
      difference |= {"seeds": both}
    found.append(
      {
        "row": row,
        "size": size,
        **interval([one for _, one in own.values()]),
        "seeds": list(own),
        "runs": [run for run, _ in own.values()],
        "difference": difference,
      }
    )
  return found


def interval(values: Sequence[float]) -> Json:
  """{"estimate", "low", "high", "by_seed"} of one number a seed, by Student's t."""
  numbers = np.asarray(values, dtype=np.float64)
  made = statistics.seed_interval(numbers)
  ends = (None, None) if len(numbers) < 2 else (float(made.low), float(made.high))
  return {"estimate": float(made.estimate), "low": ends[0], "high": ends[1], "by_seed": numbers.tolist()}
