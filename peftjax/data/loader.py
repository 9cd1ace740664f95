"""Batches in their order, read ahead by grain, with a position that can be saved and restored exactly.

loaders = make_loaders(config, dataset, over)
for batch in loaders.train: ...                       # never ends; loaders.train.steps_per_epoch says where epochs do
state = loaders.train.get_state()                     # plain JSON; set_state(state) goes on with the next batch
for batch in loaders.evals["validation"]: ...         # every example once; rows with weight 0 fill the last batch
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from peftjax.data.batching import FILL, Batches, evaluation_batches, rows, subset
from peftjax.data.extra_sets import RETAINED, open_retained, open_shifted
from peftjax.data.flipping import flipped
from peftjax.data.inputs.base import Batch, Input
from peftjax.data.measuring import MEASURED_AT_ONCE, Measured, measure_for, measure_some
from peftjax.data.own_identity import difference, own_code, own_identity
from peftjax.data.parts import rows_of
from peftjax.data.reading import WHOLE, EvaluationSteps, Reader, Share, TrainingSteps, read_ahead
from peftjax.data.sources.types import Dataset, Header, Source
from peftjax.data.unmeasured import UnmeasuredOrder
from peftjax.errors import UserError
from peftjax.named_code import check_code


class TrainLoader:
  """An iterator over training batches that never ends.

  Each example comes once an epoch. Where the batch size does not divide the epoch, one batch of it is filled up with
  rows of weight 0.

  Attributes:
    examples: in an epoch; the rows where they are packed or give several.
    steps_per_epoch: batches in an epoch.
    measured: lengths of all examples of the split, and what was cut; None of inputs of one size, and of more than
      `MEASURED_AT_ONCE` examples.
    notes: lines for the log about what does not reach the model and how the data is laid out.
  """

  def __init__(
    self,
    order: Any,
    reader: Any,
    measured: Measured | None,
    identity: Mapping[str, Any],
    workers: int,
    notes: list[str],
    code: Mapping[str, str],
    code_changed: bool = False,
  ):
    self._order, self._reader, self._identity, self._workers = order, reader, dict(identity), workers
    self.measured, self.notes, self._code, self._code_changed = measured, notes, dict(code), code_changed
    self.examples = order.examples
    self.steps_per_epoch = order.steps_per_epoch
    self._step = 0
    self._batches: Iterator[Batch] | None = None

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    if self._batches is None:
      self._batches = read_ahead(TrainingSteps(self._order, self._reader, self._step), self._workers)
    batch = next(self._batches)
    self._step += 1
    return batch

  def first(self) -> Batch:
    """The batch of step 0; the position stays."""
    return TrainingSteps(self._order, self._reader, 0)[0]

  def get_state(self) -> dict[str, Any]:
    """The position, as plain JSON: the next batch is that of step ``state["step"]``."""
    return {"step": self._step, "identity": dict(self._identity)} | ({"code": dict(self._code)} if self._code else {})

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes to a saved position, at once, however far it lies; the number of processes and workers may have changed.

    Raises:
      UserError: the state is of other data, of the same data in another order, or of other code of the user's own.
    """
    found = state if isinstance(state, Mapping) else {}
    saved, code, step = found.get("identity"), found.get("code", {}), found.get("step")
    if not (isinstance(saved, Mapping) and isinstance(code, Mapping) and isinstance(step, int) and step >= 0):
      raise UserError("the saved position in the data is none: expected a step and the identity of the data")
    if differs := difference(saved, self._identity):
      raise UserError(f"the saved position in the data does not fit: {differs}")
    check_code(code, self._code, "the saved position in the data does not fit: it", self._code_changed)
    self._step = step
    self._batches = None


class EvalLoader:
  """All batches of a split, in one order, as often as it is iterated; the split is first read when it is needed.

  Attributes:
    name: of the split, as the run has it.
    examples: read of the split.
    dataset, split: what is read.
    inputs: makes the batches.
  """

  def __init__(
    self,
    dataset: Dataset,
    split: str,
    inputs: Input,
    batch_size: int,
    share: Share = WHOLE,
    limit: int = 0,
    name: str = "",
  ):
    _positive("train.eval_batch_size", batch_size)
    rows(batch_size, share.index, share.count)
    count = dataset.splits[split]
    self._ids = np.sort(subset(count, min(limit, count))) if limit else np.arange(count)
    self.examples = len(self._ids)
    self.name = name or split
    self.dataset, self.split, self.inputs = dataset, split, inputs
    self._batch_size, self._share = batch_size, share

  @property
  def source(self) -> Source:
    """The split's examples as they are stored."""
    return self.dataset.split(self.split)

  @functools.cached_property
  def measured(self) -> Measured | None:
    """Lengths of all examples that are read, and what was cut; None of inputs of one size."""
    return measure_for(self.dataset, self.split, self.inputs, self._ids)[1] if self.inputs.buckets else None

  @functools.cached_property
  def _steps(self) -> EvaluationSteps:
    found = rows_of(self.source, self._ids, self.measured)
    batches = evaluation_batches(found.lengths, self._batch_size, self.inputs.buckets or (0,))
    ids = np.where(batches.ids == FILL, FILL, found.ids[batches.ids])
    return EvaluationSteps(Batches(ids, batches.lengths), Reader(found.source, self.inputs, self._share))

  def __len__(self) -> int:
    return len(self._steps)

  def __iter__(self) -> Iterator[Batch]:
    return read_ahead(self._steps, workers=0)

  def first(self) -> Batch:
    """The batch that an iteration begins with."""
    return self._steps[0]


@dataclasses.dataclass(frozen=True)
class Loaders:
  """What a run reads.

  Attributes:
    dataset: what was opened.
    inputs: what reads it.
    train: batches of the training split.
    evals: split name -> all its batches: of "train" those of the examples that are trained on; of the sets of
      `data.shifted`, by their names; of `data.retained`, as "retained".
  """

  dataset: Dataset
  inputs: Input
  train: TrainLoader
  evals: dict[str, EvalLoader]


def make_loaders(
  config: ConfigDict, dataset: Dataset, over: Callable[[Header], Input], process_index: int = 0, process_count: int = 1
) -> Loaders:
  """The loaders of a run, from `config.data`, `config.train` and `config.seed`.

  Args:
    config: see `peftjax.config`.
    dataset: `config.data.name`, opened.
    over: the header of a data set -> the input that reads it.
    process_index: which process of `process_count` this is.
    process_count: each feeds its own rows of every batch.

  Raises:
    UserError: further data cannot be opened, or a size does not fit.
  """
  data, share = config.data, Share(process_index, process_count)
  _positive("train.batch_size", config.train.batch_size)
  rows(config.train.batch_size, share.index, share.count)
  ids = subset(dataset.splits["train"], data.train_examples)
  dataset = flipped(dataset, ids, data.get("flip_labels", 0.0))
  inputs = over(dataset)
  limit = _limit(data.eval_examples)

  def evaluated(one: Dataset, split: str, reading: Input, count: int = limit, name: str = "") -> EvalLoader:
    return EvalLoader(one, split, reading, config.train.eval_batch_size, share, count, name)

  evals = {split: evaluated(dataset, split, inputs) for split in dataset.splits if split != "train"}
  evals["train"] = evaluated(dataset, "train", inputs, min(limit or len(ids), len(ids)))
  for name, (other, split) in open_shifted(data, dataset).items():
    evals[name] = evaluated(other, split, over(other), name=name)
  if (retained := open_retained(data)) is not None:
    if not inputs.task.needs_no_labels:
      raise UserError(f"data.retained: only a language model has a loss on text, not {inputs.task.name}")
    evals[RETAINED] = evaluated(*retained, over(retained[0]), name=RETAINED)
  return Loaders(dataset, inputs, _train_loader(config, dataset, inputs.training(), ids, share), evals)


def _train_loader(config: ConfigDict, dataset: Dataset, inputs: Input, ids: np.ndarray, share: Share) -> TrainLoader:
  seed, batch_size, source = int(config.seed), config.train.batch_size, dataset.split("train")
  as_they_come = bool(inputs.buckets) and not inputs.measures_all and len(ids) > MEASURED_AT_ONCE
  measured = told = None
  if inputs.buckets and not as_they_come:
    told, measured = measure_for(dataset, "train", inputs, ids)
  found = rows_of(source, ids, measured)
  order: Any
  if as_they_come:
    order = UnmeasuredOrder(ids, functools.partial(_lengths, source, inputs), batch_size, inputs.buckets, seed)
    first = measure_some(source, order.ids_of(0, 0), inputs)
    what = f"train: {len(ids):,} examples are measured as they come; of the first {len(first.lengths):,}:"
    notes = [what, *inputs.notes(first)]
  else:
    order = inputs.order(found.ids, found.lengths, batch_size, seed)
    notes = inputs.notes(told)
  identity = {
    "data.name": dataset.name,
    "data's content": dataset.fingerprint(),
    "data.train_examples": int(config.data.train_examples),
    "train.batch_size": int(batch_size),
    "seed": seed,
  } | inputs.identity()
  if config.data.get("flip_labels", 0.0):
    identity["data.flip_labels"] = float(config.data.flip_labels)
  if as_they_come:
    identity["the order of the examples"] = "measured as they come"
  identity |= own_identity(dataset, inputs)
  reader = inputs.reader(found.source, share, seed, order)
  notes = [*dataset.notes, *notes]
  changed = bool(config.data.get("code_changed", False))
  code = own_code(dataset, inputs)
  return TrainLoader(order, reader, measured, identity, int(config.data.workers), notes, code, changed)


def _lengths(source: Source, inputs: Input, ids: np.ndarray) -> np.ndarray:
  return measure_some(source, ids, inputs).lengths


def _limit(count: int) -> int:
  if count < 0:
    raise UserError(f"data.eval_examples={count}: expected a number of examples, or 0 for all")
  return count


def _positive(name: str, value: int) -> None:
  if value < 1:
    raise UserError(f"{name}={value}: expected a positive number of examples")
