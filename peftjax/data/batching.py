"""Which examples stand in which batch, decided by numbers alone.

Every order here is a sort by a hash of (seed, epoch, example id), so it is the same on every machine, with every number
of devices and processes and with every version of NumPy, and the batch of step n is found without going through the
n - 1 before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from peftjax.errors import UserError

FILL = -1  # the example id of a row that only fills its batch
MEGABATCH = 32  # batches whose examples are sorted by length together
_SUBSET_STREAM = 0xDA7A  # any constant: subsets must not depend on the seed


def scores(count: int, *stream: int) -> np.ndarray:
  """[count] uint64: a pseudo-random number for each of 0 .. count-1, a pure function of it and the stream's numbers.

  SplitMix64's finaliser (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014), once for each
  number of the stream.
  """
  value = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
  for number in stream:
    value ^= _mix(np.array([number % 2**64], np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    _mix(value)
  return value


def _mix(value: np.ndarray) -> np.ndarray:
  """In place: of ten million examples each further array holds 80 MB."""
  value ^= value >> np.uint64(30)
  value *= np.uint64(0xBF58476D1CE4E5B9)
  value ^= value >> np.uint64(27)
  value *= np.uint64(0x94D049BB133111EB)
  value ^= value >> np.uint64(31)
  return value


def subset(count: int, size: int) -> np.ndarray:
  """The ids of the first `size` of `count` examples in an order that no seed changes, so smaller subsets lie in larger.

  `size` 0 means all.

  Raises:
    UserError: `size` is negative or more than there are.
  """
  if not 0 <= size <= count:
    raise UserError(f"data.train_examples={size}: the training split has {count} examples")
  return np.argsort(scores(count, _SUBSET_STREAM), kind="stable")[: size or count]


def bucket_lengths(buckets: Sequence[int], max_length: int) -> tuple[int, ...]:
  """The padded lengths in use, ascending: the buckets below `max_length`, and `max_length`.

  >>> bucket_lengths((16, 64, 256), 128)
  (16, 64, 128)

  Raises:
    UserError: a bucket is no positive integer.
  """
  for bucket in buckets:
    if not isinstance(bucket, (int, np.integer)) or bucket < 1:
      raise UserError(f"data.buckets={tuple(buckets)}: {bucket!r} is no positive number of tokens")
  return (*sorted({int(bucket) for bucket in buckets if bucket < max_length}), max_length)


@dataclasses.dataclass(frozen=True)
class Batches:
  """The batches of one pass.

  Attributes:
    ids: [n, B] int64 example ids, `FILL` where a row only fills up. Fills stand at the end of a row.
    lengths: [n] int64, the padded length of each batch.
  """

  ids: np.ndarray
  lengths: np.ndarray


def training_batches(
  ids: np.ndarray, lengths: np.ndarray, batch_size: int, buckets: Sequence[int], seed: int, epoch: int
) -> Batches:
  """One epoch: every example once, in an order of its own; similar lengths together.

  The shuffled examples are taken in runs of `MEGABATCH` batches; inside a run they are sorted by length and cut into
  batches; then the batches of the epoch are shuffled. Each batch is padded to the smallest bucket that holds its
  longest example. If the batch size does not divide the epoch, one batch has `FILL` rows.

  Args:
    ids: [n] example ids.
    lengths: [n] tokens of each of them, at most the last bucket.
    batch_size: examples in a batch, over all processes.
    buckets: ascending.
    seed: of the run.
    epoch: from 0.
  """
  order = np.argsort(scores(len(ids), seed, epoch), kind="stable")
  run = MEGABATCH * batch_size
  order = np.concatenate(
    [part[np.argsort(lengths[part], kind="stable")] for part in np.split(order, range(run, len(order), run))]
  )
  batches = cut(ids[order], lengths[order], batch_size, buckets)
  shuffled = np.argsort(scores(len(batches.ids), seed, epoch, 1), kind="stable")
  return Batches(batches.ids[shuffled], batches.lengths[shuffled])


Made = TypeVar("Made")  # what an order keeps of an epoch


class Order(Generic[Made]):
  """The batches of every epoch; a kind says what an epoch is, `made`.

  Attributes:
    examples: in an epoch.
    steps_per_epoch: batches in an epoch; the last partial one counts.
  """

  def __init__(self, examples: int, batch_size: int):
    self.examples = examples
    self.steps_per_epoch = -(-examples // batch_size)
    self._epochs: dict[int, Made] = {}

  def made(self, epoch: int) -> Made:
    """What is kept of an epoch while it is read, a function of its number."""
    raise NotImplementedError

  def at(self, epoch: int, number: int) -> tuple[Any, int]:
    """(some batches, the place among them) of a batch of an epoch."""
    return self.epoch(epoch), number

  def epoch(self, epoch: int) -> Made:
    """What `made` gives, kept. Threads may ask at once: they would compute the same."""
    found = self._epochs.get(epoch)
    if found is None:
      found = self._epochs[epoch] = self.made(epoch)
      for old in [one for one in self._epochs if one < epoch - 1]:
        self._epochs.pop(old, None)
    return found


class TrainingOrder(Order[Batches]):
  """The batches of every epoch, over examples whose lengths are known."""

  def __init__(self, ids: np.ndarray, lengths: np.ndarray, batch_size: int, buckets: Sequence[int], seed: int):
    super().__init__(len(ids), batch_size)
    self._ids, self._lengths, self._batch_size, self._buckets, self._seed = ids, lengths, batch_size, buckets, seed

  def made(self, epoch: int) -> Batches:
    return training_batches(self._ids, self._lengths, self._batch_size, self._buckets, self._seed, epoch)


def evaluation_batches(lengths: np.ndarray, batch_size: int, buckets: Sequence[int]) -> Batches:
  """All examples once, shortest first, in an order that never changes; `FILL` rows in the last batch."""
  order = np.argsort(lengths, kind="stable")
  return cut(order, lengths[order], batch_size, buckets)


def cut(ids: np.ndarray, lengths: np.ndarray, batch_size: int, buckets: Sequence[int]) -> Batches:
  """The examples in the order given, cut into batches, each padded to the smallest bucket that holds its longest."""
  count = -(-len(ids) // batch_size)
  filled = np.full(count * batch_size, FILL, np.int64)
  filled[: len(ids)] = ids
  longest = np.zeros(count * batch_size, np.int64)
  longest[: len(ids)] = lengths
  longest = longest.reshape(count, batch_size).max(axis=1)
  return Batches(filled.reshape(count, batch_size), np.asarray(buckets)[np.searchsorted(buckets, longest)])


def rows(batch_size: int, process_index: int, process_count: int) -> slice:
  """The rows of a global batch that one process feeds to its devices.

  Raises:
    UserError: the processes do not divide the batch.
  """
  if batch_size % process_count:
    raise UserError(f"a batch of {batch_size} does not divide over {process_count} processes")
  each = batch_size // process_count
  return slice(process_index * each, (process_index + 1) * each)
