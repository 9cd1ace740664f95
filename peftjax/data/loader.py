"""Batches in their order, read ahead by grain, with a position that can be saved and restored exactly.

loaders = make_loaders(config, tokenizer)
for batch in loaders.train: ...                       # never ends; loaders.train.steps_per_epoch says where epochs do
state = loaders.train.get_state()                     # plain JSON; set_state(state) goes on with the next batch
for batch in loaders.evals["validation"]: ...         # every example once; rows with weight 0 fill the last batch
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from peftjax.data.batching import FILL, Batches, TrainingPlan, bucket_lengths, evaluation_batches, rows, subset
from peftjax.data.extra_sets import RETAINED, open_retained, open_shifted
from peftjax.data.flipping import flipped
from peftjax.data.inputs.collating import Batch, Collate, TextCollate
from peftjax.data.inputs.language import UNCUT, CausalCollate, Form, Seq2SeqCollate
from peftjax.data.inputs.packing import PackedBatches, PackedPlan, packed_batch, pieces_of
from peftjax.data.inputs.tokenizing import Tokenizer
from peftjax.data.measuring import Measured, measure
from peftjax.data.sources import CAUSAL_LM, SEQ2SEQ_LM, Dataset, Example, Source, open_data
from peftjax.errors import UserError

PLAIN = Form()
_THREADS = 2
_AHEAD = 8  # batches


@dataclasses.dataclass(frozen=True)
class Share:
  """Which of the processes this is; each takes its own rows of every global batch."""

  index: int = 0
  count: int = 1


class _Reader:
  """Reads the batch of a plan: a random-access sequence for grain."""

  def __init__(self, source: Source, collate: Collate, share: Share):
    self._source, self._collate, self._share = source, collate, share

  def read(self, batches: Batches, number: int) -> Batch:
    ids = batches.ids[number]
    ids = ids[rows(len(ids), self._share.index, self._share.count)]
    examples = [self._source[int(index)] for index in ids if index != FILL]
    return self._collate(examples, ids, int(batches.lengths[number]))


class _PackedReader:
  """The same for rows of several sequences."""

  def __init__(self, source: Source, collate: CausalCollate, share: Share, plan: PackedPlan):
    self._source, self._collate, self._share = source, collate, share
    self._pieces, self._capacity = plan.pieces, plan.capacity

  def read(self, batches: PackedBatches, number: int) -> Batch:
    ids = batches.ids[number]
    ids = ids[rows(len(ids), self._share.index, self._share.count)]
    contents = [
      [
        (self._source[int(self._pieces.examples[piece])], int(self._pieces.starts[piece]))
        for piece in batches.rows[row]
      ]
      for row in ids
      if row != FILL
    ]
    return packed_batch(self._collate, contents, ids, self._capacity)


class _TrainingSteps:
  """The batch of step first, first + 1, ...: without end, as far as anyone will train."""

  def __init__(self, plan: Any, reader: Any, first: int):
    self._plan, self._reader, self._first = plan, reader, first

  def __len__(self) -> int:
    return 2**31 - 1

  def __getitem__(self, index: int) -> Batch:
    epoch, number = divmod(self._first + int(index), self._plan.steps_per_epoch)
    return self._reader.read(self._plan.epoch(epoch), number)


class _EvaluationSteps:
  def __init__(self, batches: Batches, reader: _Reader):
    self._batches, self._reader = batches, reader

  def __len__(self) -> int:
    return len(self._batches.ids)

  def __getitem__(self, index: int) -> Batch:
    return self._reader.read(self._batches, int(index))


class TrainLoader:
  """An iterator over training batches that never ends.

  Each example comes once an epoch. Where the batch size does not divide the epoch, one batch of it is filled up with
  rows of weight 0.

  Attributes:
    examples: in an epoch; of packed data the rows.
    steps_per_epoch: batches in an epoch.
    measured: lengths of all examples of the split, and what was cut.
    notes: lines for the log about how the data is laid out.
  """

  def __init__(
    self,
    plan: TrainingPlan | PackedPlan,
    reader: _Reader | _PackedReader,
    measured: Measured,
    identity: Mapping[str, Any],
    workers: int,
  ):
    self._plan, self._reader, self._identity, self._workers = plan, reader, dict(identity), workers
    self.measured = measured
    self.notes: list[str] = []
    if isinstance(plan, PackedPlan):
      count, kind = len(plan.pieces.lengths), f"{plan.examples:,} rows of {plan.capacity} tokens"
      self.notes.append(f"train: {count:,} sequences packed into {kind}, {plan.fill:.1%} of them tokens")
    self.examples = plan.examples
    self.steps_per_epoch = plan.steps_per_epoch
    self._step = 0
    self._batches: Iterator[Batch] | None = None

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    if self._batches is None:
      steps = _TrainingSteps(self._plan, self._reader, self._step)
      self._batches = _read_ahead(steps, self._workers)
    batch = next(self._batches)
    self._step += 1
    return batch

  def get_state(self) -> dict[str, Any]:
    """The position, as plain JSON: the next batch is that of step ``state["step"]``."""
    return {"step": self._step, "identity": dict(self._identity)}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes to a saved position, at once, however far it lies; the number of processes and workers may have changed.

    Raises:
      UserError: the state is of other data, or of the same data in another order.
    """
    saved = state["identity"]
    for name, value in self._identity.items():
      if saved.get(name) != value:
        raise UserError(f"the saved position in the data does not fit: {name} was {saved.get(name)!r}, is {value!r}")
    self._step = int(state["step"])
    self._batches = None


class EvalLoader:
  """All batches of a split, in one order, as often as it is iterated; the split is first read when it is needed.

  Attributes:
    examples: read of the split.
    collate: makes the batches.
  """

  def __init__(
    self,
    dataset: Dataset,
    split: str,
    collate: Collate,
    batch_size: int,
    buckets: Sequence[int],
    share: Share = Share(),
    limit: int = 0,
  ):
    _positive("train.eval_batch_size", batch_size)
    rows(batch_size, share.index, share.count)
    count = dataset.splits[split]
    self._ids = np.sort(subset(count, min(limit, count))) if limit else np.arange(count)
    self.examples = len(self._ids)
    self._dataset, self._split, self.collate, self._share = dataset, split, collate, share
    self._batch_size, self._buckets = batch_size, buckets

  @property
  def source(self) -> Source:
    """The split's examples as they are stored."""
    return self._dataset.split(self._split)

  @functools.cached_property
  def measured(self) -> Measured:
    """Lengths of all examples, and what was cut."""
    return measure(self._dataset, self._split, self.collate)

  @functools.cached_property
  def _steps(self) -> _EvaluationSteps:
    reader = _Reader(self._dataset.split(self._split), self.collate, self._share)
    batches = evaluation_batches(self.measured.lengths[self._ids], self._batch_size, self._buckets)
    ids = np.where(batches.ids == FILL, FILL, self._ids[batches.ids])
    return _EvaluationSteps(Batches(ids, batches.lengths), reader)

  def __len__(self) -> int:
    return -(-self.examples // self._batch_size)

  def __iter__(self) -> Iterator[Batch]:
    return _read_ahead(self._steps, workers=0)


def _read_ahead(steps: Any, workers: int) -> Iterator[Batch]:
  options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
  batches = grain.MapDataset.source(steps).to_iter_dataset(options)
  if workers:
    if not flags.FLAGS.is_parsed():  # grain reads absl flags, which a program that is no absl app never parses
      flags.FLAGS(sys.argv[:1])
    batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_AHEAD))
  return iter(batches)


@dataclasses.dataclass(frozen=True)
class Loaders:
  """What a run reads.

  Attributes:
    dataset: what was opened.
    train: batches of the training split.
    evals: split name -> all its batches: of "train" those of the examples that are trained on; of the sets of
      `data.shifted`, by their names; of `data.retained`, as "retained".
  """

  dataset: Dataset
  train: TrainLoader
  evals: dict[str, EvalLoader]


def make_loaders(
  config: ConfigDict,
  tokenizer: Tokenizer,
  dataset: Dataset | None = None,
  process_index: int = 0,
  process_count: int = 1,
  task: str = "",
  form: Form = PLAIN,
) -> Loaders:
  """The loaders of a run, from `config.data`, `config.train`, `config.seed` and `config.task.name`.

  Args:
    config: see `peftjax.config`.
    tokenizer: the model's; cut to `config.data.max_length` here.
    dataset: opened already; else `config.data.name` is opened.
    process_index: which process of `process_count` this is.
    process_count: each feeds its own rows of every batch.
    task: what the batches are for; empty: `config.task.name`, or else what the data is for.
    form: of prompts and sources, for language models.

  Raises:
    UserError: the data cannot be opened, does not suit the task, or a size does not fit.
  """
  data, share = config.data, Share(process_index, process_count)
  if dataset is None:
    dataset = open_data(data.name, data.text_column, data.label_column, data.source_column, data.target_column)
  task = task or ("" if config.task.name == "auto" else config.task.name)
  _check_task(task, dataset)
  task = task or dataset.task
  _positive("train.batch_size", config.train.batch_size)
  rows(config.train.batch_size, share.index, share.count)
  buckets = bucket_lengths(data.buckets, data.max_length)
  ids = subset(dataset.splits["train"], data.train_examples)
  dataset = flipped(dataset, ids, data.get("flip_labels", 0.0))
  source = dataset.split("train")
  collate = _collate(config, task, tokenizer, form, source[0])
  in_pieces = bool(data.packing) and not {"source", "messages"} & set(source[0])
  identity = {
    "data.name": dataset.name,
    "data's content": dataset.fingerprint(),
    "tokenizer": collate.fingerprint(),
    "data.train_examples": int(data.train_examples),
    "data.buckets": list(buckets),
    "train.batch_size": int(config.train.batch_size),
    "seed": int(config.seed),
  }
  if data.get("flip_labels", 0.0):
    identity["data.flip_labels"] = float(data.flip_labels)
  plan: TrainingPlan | PackedPlan
  reader: _Reader | _PackedReader
  if data.packing:
    if not isinstance(collate, CausalCollate):
      raise UserError(f"data.packing: only causal_lm packs several texts into a row, not {task}")
    packed = dataclasses.replace(collate, in_pieces=in_pieces)
    measured = measure(dataset, "train", packed)
    plan = PackedPlan(
      pieces_of(ids, measured.lengths[ids], data.max_length), data.max_length, config.train.batch_size, config.seed
    )
    reader = _PackedReader(source, packed, share, plan)
    identity["data.packing"] = int(data.max_length)
  else:
    measured = measure(dataset, "train", collate)
    plan = TrainingPlan(ids, measured.lengths[ids], config.train.batch_size, buckets, config.seed)
    reader = _Reader(source, collate, share)
  if measured.teaches_nothing:
    raise UserError(
      f"data.max_length={data.max_length}: none of the {len(measured.lengths):,} training examples has a response left "
      "when cut there; raise it, or try data.format='plain' if a chat template fills the rows"
    )
  train = TrainLoader(plan, reader, measured, identity, int(data.workers))
  limit = _limit(data.eval_examples)

  def evaluated(one: Dataset, split: str, reader: Collate, count: int = limit) -> EvalLoader:
    return EvalLoader(one, split, reader, config.train.eval_batch_size, buckets, share, count)

  evals = {split: evaluated(dataset, split, collate) for split in dataset.splits if split != "train"}
  evals["train"] = evaluated(dataset, "train", collate, min(limit or len(ids), len(ids)))
  evals |= {name: evaluated(other, split, collate) for name, (other, split) in open_shifted(data, dataset).items()}
  if (retained := open_retained(data)) is not None:
    if task not in (CAUSAL_LM, SEQ2SEQ_LM):
      raise UserError(f"data.retained: only a language model has a loss on text, not {task}")
    template = retained[0].split(retained[1])[0]
    evals[RETAINED] = evaluated(*retained, _collate(config, task, tokenizer, form, template))
  return Loaders(dataset, train, evals)


def _collate(config: ConfigDict, task: str, tokenizer: Tokenizer, form: Form, template: Example) -> Collate:
  longest = config.data.max_length
  if task == CAUSAL_LM:
    return CausalCollate(tokenizer.cut_to(UNCUT), form, longest)
  if task == SEQ2SEQ_LM:
    return Seq2SeqCollate(tokenizer.cut_to(longest), form, min(config.data.max_target_length or longest, longest))
  return TextCollate(tokenizer.cut_to(longest), template)


def _check_task(task: str, dataset: Dataset) -> None:
  if task == CAUSAL_LM or (task in ("", SEQ2SEQ_LM) and dataset.task == SEQ2SEQ_LM):
    return
  if dataset.task == CAUSAL_LM:
    raise UserError(
      f"{dataset.name} has no label column that is known by its name; set data.label_column to one of "
      f"{', '.join(dataset.columns)}, or data.source_column and data.target_column, or task.name=causal_lm"
    )
  if task not in ("", dataset.task):
    raise UserError(f"task.name={task!r}, but {dataset.name} holds data for {dataset.task!r}")


def _limit(count: int) -> int:
  if count < 0:
    raise UserError(f"data.eval_examples={count}: expected a number of examples, or 0 for all")
  return count


def _positive(name: str, value: int) -> None:
  if value < 1:
    raise UserError(f"{name}={value}: expected a positive number of examples")
