"""Several short sequences in one row: which stand together, and the arrays of such rows.

Best-fit decreasing: sequences go longest first into the row that they leave the least room in. The lengths alone decide
how rows are divided, so each epoch has the same number of rows and the batch of step n is still found at once; which of
the sequences of equal length stands where is drawn anew for every epoch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from peftjax.data.batching import FILL, Order, scores
from peftjax.data.inputs.base import IGNORED, Batch, Shapes, weight_and_index
from peftjax.data.inputs.collating import padded, token_shapes
from peftjax.data.inputs.language import CausalCollate
from peftjax.data.reading import Share
from peftjax.data.sources.types import Example, Source

COLUMNS = ("input_ids", "labels", "segment_ids", "position_ids")


@dataclasses.dataclass(frozen=True)
class Pieces:
  """What is packed: stretches of examples.

  Attributes:
    examples: [n] int64 example ids.
    starts: [n] int64, the first token of each.
    lengths: [n] int64, tokens of each, at most a row's.
  """

  examples: np.ndarray
  starts: np.ndarray
  lengths: np.ndarray


def pieces_of(ids: np.ndarray, lengths: np.ndarray, capacity: int) -> Pieces:
  """Every example in stretches of at most `capacity` tokens; empty examples have none.

  >>> pieces_of(np.array([4, 7]), np.array([3, 8]), 5).starts.tolist()
  [0, 0, 5]
  """
  counts = -(-lengths.astype(np.int64) // capacity)
  first = np.repeat(np.cumsum(counts) - counts, counts)
  starts = (np.arange(counts.sum()) - first) * capacity
  return Pieces(np.repeat(ids, counts), starts, np.minimum(np.repeat(lengths, counts) - starts, capacity))


def best_fit(lengths: Sequence[int] | np.ndarray, capacity: int) -> np.ndarray:
  """[n] int64: the row of each sequence, taken in the order given; rows are numbered as they are opened.

  >>> best_fit([6, 5, 4, 3, 2], 10).tolist()
  [0, 1, 0, 1, 1]
  """
  rows = np.zeros(len(lengths), np.int64)
  open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]  # by the room that is left
  rooms = 0  # bit r is set where there is an open row with room r
  opened = 0
  for index, length in enumerate(int(one) for one in lengths):
    fitting = rooms >> length
    if fitting:
      room = length + (fitting & -fitting).bit_length() - 1
      row = open_rows[room].pop()
      if not open_rows[room]:
        rooms &= ~(1 << room)
    else:
      room, row, opened = capacity, opened, opened + 1
    rows[index] = row
    if room > length:
      open_rows[room - length].append(row)
      rooms |= 1 << (room - length)
  return rows


@dataclasses.dataclass(frozen=True)
class PackedBatches:
  """The batches of one epoch.

  Attributes:
    ids: [n, B] int64 row numbers, `FILL` where a batch is only filled up.
    rows: row number -> numbers of its pieces, in their order.
  """

  ids: np.ndarray
  rows: list[np.ndarray]


class PackedOrder(Order[PackedBatches]):
  """The batches of every epoch, as `batching.TrainingOrder` has them for single sequences.

  Attributes:
    pieces: what is packed.
    examples: rows in an epoch.
    fill: share of the rows' places that hold a token.
  """

  def __init__(self, pieces: Pieces, capacity: int, batch_size: int, seed: int):
    self._row_of = best_fit(np.sort(pieces.lengths)[::-1], capacity)
    super().__init__(int(self._row_of.max()) + 1 if len(self._row_of) else 0, batch_size)
    self.pieces, self.capacity = pieces, capacity
    self._batch_size, self._seed = batch_size, seed
    self.fill = float(pieces.lengths.sum() / (self.examples * capacity)) if self.examples else 0.0

  def made(self, epoch: int) -> PackedBatches:
    drawn = np.argsort(scores(len(self.pieces.lengths), self._seed, epoch), kind="stable")
    longest_first = drawn[np.argsort(-self.pieces.lengths[drawn], kind="stable")]
    together = np.argsort(self._row_of, kind="stable")
    rows = np.split(longest_first[together], np.cumsum(np.bincount(self._row_of))[:-1])
    order = np.argsort(scores(self.examples, self._seed, epoch, 1), kind="stable")
    ids = np.full(self.steps_per_epoch * self._batch_size, FILL, np.int64)
    ids[: self.examples] = order
    return PackedBatches(ids.reshape(self.steps_per_epoch, self._batch_size), rows)


def packed_batch(
  collate: CausalCollate, rows: Sequence[Sequence[tuple[Example, int]]], ids: np.ndarray, length: int
) -> Batch:
  """Rows of several sequences.

  Args:
    rows: of each real row its (example, first token) pairs.
    ids: [B] row numbers, negative for rows that fill up, at the end.
    length: L, tokens in a row, and in a piece at most.

  Returns:
    `input_ids`, `labels`, `segment_ids` (from 1; 0 is padding) and `position_ids` (from 0 in every segment) [B, L]
    int32, `weight` [B] float32, `index` [B] int32, the row numbers.
  """
  columns: dict[str, list[list[int]]] = {name: [] for name in COLUMNS}
  for row in rows:
    encoded = collate.encode([example for example, _ in row])
    parts = [(ids[at : at + length], labels[at : at + length]) for (ids, labels), (_, at) in zip(encoded, row)]
    columns["input_ids"].append([token for part, _ in parts for token in part])
    columns["labels"].append([label for _, labels in parts for label in labels])
    columns["segment_ids"].append([number for number, (part, _) in enumerate(parts, 1) for _ in part])
    columns["position_ids"].append([place for part, _ in parts for place in range(len(part))])
  fills = {"input_ids": collate.tokenizer.pad_id, "labels": IGNORED, "segment_ids": 0, "position_ids": 0}
  batch = {name: padded(columns[name], len(ids), length, fill) for name, fill in fills.items()}
  return batch | weight_and_index(ids)


def packed_spec(rows: int, length: int) -> Shapes:
  """What `packed_batch` gives, beside `weight` and `index`."""
  return token_shapes(COLUMNS, rows, length)


class PackedReader:
  """Reads the batches of a `PackedOrder`."""

  def __init__(self, source: Source, collate: CausalCollate, share: Share, order: PackedOrder):
    self._source, self._collate, self._share = source, collate, share
    self._pieces, self._capacity = order.pieces, order.capacity

  def read(self, batches: PackedBatches, number: int, epoch: int) -> Batch:
    """A batch of one epoch, in which nothing is drawn."""
    del epoch
    ids = self._share.of(batches.ids[number])
    contents = [
      [
        (self._source[int(self._pieces.examples[piece])], int(self._pieces.starts[piece]))
        for piece in batches.rows[row]
      ]
      for row in ids
      if row != FILL
    ]
    return packed_batch(self._collate, contents, ids, self._capacity)
