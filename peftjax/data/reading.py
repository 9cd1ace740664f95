"""Reading batches by number, ahead of time, in threads or processes."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import grain
import numpy as np
from absl import flags

from peftjax.data.batching import FILL, Batches, rows

if TYPE_CHECKING:
  from peftjax.data.inputs.base import Batch, Input
  from peftjax.data.sources.types import Source

_THREADS = 2
_AHEAD = 8  # batches


@dataclasses.dataclass(frozen=True)
class Share:
  """Which of the processes this is; each takes its own rows of every global batch."""

  index: int = 0
  count: int = 1

  def of(self, ids: np.ndarray) -> np.ndarray:
    """This process's part of a batch's rows."""
    return ids[rows(len(ids), self.index, self.count)]


def example_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
  """The random numbers of an example in an epoch: a function of the three alone, so a resumed run draws the same."""
  content = struct.pack("<3Q", *(number % 2**64 for number in (seed, epoch, index)))
  key = hashlib.blake2b(content, digest_size=16).digest()
  return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


class Reader:
  """Reads the batches in their order."""

  def __init__(self, source: Source, inputs: Input, share: Share, seed: int = 0):
    self._source, self._inputs, self._share, self._seed = source, inputs, share, seed

  def read(self, batches: Batches, number: int, epoch: int | None = None) -> Batch:
    """A batch of one epoch; without epoch nothing is drawn for its examples."""
    ids = self._share.of(batches.ids[number])
    real = [int(index) for index in ids if index != FILL]
    examples = [self._source[index] for index in real]
    rngs = (None if epoch is None else example_rng(self._seed, epoch, index) for index in real)
    return self._inputs.batch(examples, ids, int(batches.lengths[number]), rngs)


class TrainingSteps:
  """The batch of step first, first + 1, ...: without end, as far as anyone will train."""

  def __init__(self, order: Any, reader: Any, first: int):
    self._order, self._reader, self._first = order, reader, first

  def __len__(self) -> int:
    return 2**31 - 1

  def __getitem__(self, index: int) -> Batch:
    epoch, number = divmod(self._first + int(index), self._order.steps_per_epoch)
    batches, place = self._order.at(epoch, number)
    return self._reader.read(batches, place, epoch)


WHOLE = Share()


class EvaluationSteps:
  """The batches of one pass."""

  def __init__(self, batches: Batches, reader: Reader):
    self._batches, self._reader = batches, reader

  def __len__(self) -> int:
    return len(self._batches.ids)

  def __getitem__(self, index: int) -> Batch:
    return self._reader.read(self._batches, int(index))


def read_ahead(steps: Any, workers: int) -> Iterator[Batch]:
  """The batches of a random-access sequence in order, some of them made before they are asked for.

  Args:
    workers: processes that make them; 0: threads of this one.
  """
  options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
  batches = grain.MapDataset.source(steps).to_iter_dataset(options)
  if workers:
    if not flags.FLAGS.is_parsed():  # grain reads absl flags, which a program that is no absl app never parses
      flags.FLAGS(sys.argv[:1])
    batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_AHEAD))
  return iter(batches)
