"""The order of examples that are too many to measure before the first step.

Buckets need lengths. `batching.training_batches` has those of a whole split; here the lengths of a run of batches are
asked for when its first batch is. What is lost is that the batches of an epoch are shuffled within their run alone,
whose examples are a random draw of the epoch's anyhow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from peftjax.data.batching import MEGABATCH, Batches, Order, cut, scores

_KEPT = 3  # runs: the one in use, and those that are read ahead


class UnmeasuredOrder(Order[np.ndarray]):
  """The batches of every epoch, as `batching.TrainingOrder` has them, a run of `MEGABATCH` batches at a time; what is
  kept of an epoch are the places in `ids`, [n] int32, in its order.

  Args:
    ids: [n] example ids.
    lengths_of: [m] example ids -> [m] places of each, at most the last bucket.
    batch_size: examples in a batch, over all processes.
    buckets: ascending.
    seed: of the run.
  """

  def __init__(
    self,
    ids: np.ndarray,
    lengths_of: Callable[[np.ndarray], np.ndarray],
    batch_size: int,
    buckets: Sequence[int],
    seed: int,
  ):
    super().__init__(len(ids), batch_size)
    self._ids, self._lengths_of, self._batch_size = ids, lengths_of, batch_size
    self._buckets, self._seed = tuple(buckets), seed
    self._runs: dict[tuple[int, int], Batches] = {}
    self._lock = threading.Lock()

  def made(self, epoch: int) -> np.ndarray:
    return np.argsort(scores(self.examples, self._seed, epoch), kind="stable").astype(np.int32)

  def at(self, epoch: int, number: int) -> tuple[Batches, int]:
    """(some batches, the place among them) of a batch of an epoch."""
    run, place = divmod(number, MEGABATCH)
    with self._lock:  # threads that read ahead would measure the same
      found = self._runs.get((epoch, run))
      if found is None:
        found = self._runs[epoch, run] = self._run(epoch, run)
        for old in list(self._runs)[:-_KEPT]:
          del self._runs[old]
      return found, place

  def ids_of(self, epoch: int, run: int) -> np.ndarray:
    """The examples of a run of batches."""
    size = MEGABATCH * self._batch_size
    return self._ids[self.epoch(epoch)[run * size : (run + 1) * size]]

  def _run(self, epoch: int, run: int) -> Batches:
    ids = self.ids_of(epoch, run)
    lengths = self._lengths_of(ids)
    order = np.argsort(lengths, kind="stable")
    batches = cut(ids[order], lengths[order], self._batch_size, self._buckets)
    shuffled = np.argsort(scores(len(batches.ids), self._seed, epoch, 1, run), kind="stable")
    return Batches(batches.ids[shuffled], batches.lengths[shuffled])

  def __getstate__(self) -> dict[str, Any]:
    return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_runs", "_epochs")}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state, _lock=threading.Lock(), _runs={}, _epochs={})
