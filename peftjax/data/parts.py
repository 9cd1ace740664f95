"""Examples that give several rows, as a long document gives windows: which rows there are, and each by its number."""

from __future__ import annotations

import dataclasses

import numpy as np

from peftjax.data.measuring import Measured
from peftjax.data.sources.types import Example, Source


@dataclasses.dataclass(frozen=True)
class Rows:
  """The rows of a pass over some examples.

  Attributes:
    ids: [r] int64, what batches know each row by: its number here, or its example's id where each example gives one.
    lengths: [r] int64, the places that each needs; 0 of inputs of one size.
    source: row by id.
  """

  ids: np.ndarray
  lengths: np.ndarray
  source: Source


@dataclasses.dataclass(frozen=True)
class Parts:
  """A `Source` of rows: an example with its number, "example", and which of its rows is wanted, "part"."""

  source: Source
  examples: np.ndarray  # [r] int64
  parts: np.ndarray  # [r] int64

  def __len__(self) -> int:
    return len(self.examples)

  def __getitem__(self, index: int) -> Example:
    example = int(self.examples[index])
    return {**self.source[example], "example": example, "part": int(self.parts[index])}


def rows_of(source: Source, ids: np.ndarray, measured: Measured | None) -> Rows:
  """The rows of the examples `ids`, in their order.

  Args:
    source: of the split.
    ids: [m] example ids.
    measured: of the whole split; None of inputs of one size.
  """
  if measured is None:
    return Rows(ids, np.zeros(len(ids), np.int64), source)
  if measured.counts is None:
    return Rows(ids, measured.lengths[ids], source)
  own = measured.counts[ids].astype(np.int64)
  parts = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
  first = np.cumsum(measured.counts, dtype=np.int64) - measured.counts
  lengths = measured.lengths[np.repeat(first[ids], own) + parts]
  return Rows(np.arange(len(parts)), lengths, Parts(source, np.repeat(ids, own), parts))
