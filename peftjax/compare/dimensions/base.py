"""What a dimension of the study is: one thing measured of every trial, its conclusion, and its part of the report.

A dimension is one file with a `DIMENSION` of its own. Its three functions see less and less of the run: `measure` the
trained leaves and the trial's folder, `summarize` the records alone, and `section` only what it draws. So a report can
be made again from ``results.jsonl`` without training anything.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from peftjax.compare.analysis import Paired, SeedEstimate, Summary, of_seeds
from peftjax.compare.records import Record
from peftjax.compare.trials import buildable, is_frozen
from peftjax.errors import UserError, nearest
from peftjax.masks import Tree, combine
from peftjax.model import Model
from peftjax.train.evaluate import Predict, evaluate, make_predict
from peftjax.train.finished import restored
from peftjax.train.loop import make_run
from peftjax.train.run import Run

TRIAL, ROW = "trial", "row"  # what a dimension is measured for: each trial, or a row's first seed at its largest size

Json = dict[str, Any]


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
  summary: Json
  study: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def run(self) -> Run:
    """Data, task, model and partition, as before the first update: ``run.trainable`` is where training began."""
    return make_run(buildable(self.config))

  @functools.cached_property
  def trainable(self) -> Tree:
    """The trained leaves, from the newest checkpoint."""
    return self.run.trainable if is_frozen(self.config) else restored(self.folder, self.run)

  @functools.cached_property
  def model(self) -> Model:
    """The trained model, with its adapter beside the base."""
    return self.run.model.with_params(combine(self.trainable, self.run.frozen))

  @functools.cached_property
  def predict(self) -> Predict:
    """The compiled forward pass that evaluations use: (trainable, frozen, batch) -> predictions."""
    return make_predict(self.run.forward, self.run.task, self.run.mesh)

  @functools.cached_property
  def batch(self) -> dict[str, jax.Array]:
    """The model's inputs of the first batch of training examples."""
    return {name: jnp.asarray(array) for name, array in self.run.task.inputs(next(self.run.loaders.train)).items()}

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
  """A part of the report.

  Attributes:
    heading: of the section.
    sentences: what came out, and how it was measured.
    plots: in their order.
    columns, rows: the table of all seeds, its first column the run's id.
  """

  heading: str
  sentences: tuple[str, ...] = ()
  plots: tuple[Plot, ...] = ()
  columns: tuple[str, ...] = ()
  rows: tuple[tuple[str, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class Dimension:
  """One dimension of the study.

  Attributes:
    name: in ``record.dimensions`` and ``summary.dimensions``; for one of peftjax's own, its file's.
    measure: what is measured of one trial, ready for JSON; None where the trial has nothing to measure. A dimension
      without it follows from what every record holds.
    summarize: (records that hold a measurement, the study's summary) -> its conclusion, each figure with the ids of its
      runs; None where there is too little. `stored.plain` makes JSON of it.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group(SeedEstimate):
  """One number a trial of one row at one size: its mean over seeds with Student's interval, and its runs.

  Attributes:
    difference: the paired one to the reference, on the seeds that both have.
  """

  row: str
  size: int = 0
  seeds: tuple[int, ...] = ()
  runs: tuple[str, ...] = ()
  difference: Paired | None = None


def records_with(records: Sequence[Record], dimension: Dimension) -> list[Record]:
  """The records that hold a measurement of a dimension, of the sizes that it knows of; all where it needs none."""
  if not dimension.by_size:
    of_largest_size = max((record.size for record in records), default=0)
    records = [record for record in records if record.size == of_largest_size]
  if dimension.measure is None:
    return list(records)
  return [record for record in records if record.dimensions.get(dimension.name)]


def by_kind(records: Sequence[Record], summary: Summary) -> dict[tuple[str, int], list[Record]]:
  """(row, size) -> its records by seed; rows in the order of the summary, sizes ascending."""
  found: dict[tuple[str, int], list[Record]] = {}
  for row in summary.rows:
    for record in sorted(records, key=lambda record: (record.size, record.seed)):
      if record.row == row.row:
        found.setdefault((record.row, record.size), []).append(record)
  return found


def by_row(records: Sequence[Record], summary: Summary, name: str) -> list[Json]:
  """{"row", "run", and what was measured} of each row at its largest size, in the order of the summary."""
  held = {record.row: record for record in sorted(records, key=lambda record: record.size)}
  return [
    {"row": row.row, "run": held[row.row].run, **held[row.row].dimensions[name]}
    for row in summary.rows
    if row.row in held
  ]


def by_group(records: Sequence[Record], summary: Summary, value: Callable[[Record], float | None]) -> list[Group]:
  """One number a trial, by row and size."""
  found: list[Group] = []
  values = {
    key: {record.seed: (record.run, one) for record in own if (one := value(record)) is not None}
    for key, own in by_kind(records, summary).items()
  }
  for (row, size), own in values.items():
    base = values.get((summary.reference or "", size), {})
    both = [seed for seed in own if seed in base] if row != summary.reference else []
    if not own:
      continue
    less = of_seeds([own[seed][1] - base[seed][1] for seed in both])
    found.append(
      Group(
        **vars(of_seeds([one for _, one in own.values()])),
        row=row,
        size=size,
        seeds=tuple(own),
        runs=tuple(run for run, _ in own.values()),
        difference=Paired(**vars(less), to=summary.reference or "", seeds=tuple(both)) if both else None,
      )
    )
  return found


class OfSize(Protocol):
  """What is of one size of a study."""

  @property
  def size(self) -> int:
    """The number of training examples; 0 in a study of one size."""


One = TypeVar("One", bound=OfSize)


def of_largest_size(groups: Sequence[One]) -> list[One]:
  """Of a study of several sizes the groups of the largest."""
  size = max((one.size for one in groups), default=0)
  return [one for one in groups if one.size == size]


def at_size(size: int) -> str:
  """The words for a size, with the space before them; none for a study of one.

  >>> at_size(512), at_size(0)
  (' with 512 training examples', '')
  """
  return f" with {size:,} training examples" if size else ""
