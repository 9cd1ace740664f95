"""Wrong labels on purpose: what a run memorises shows in the training examples whose label was flipped."""

from __future__ import annotations

import dataclasses

import numpy as np

from peftjax.data.batching import scores
from peftjax.data.sources import Dataset, Example, Source
from peftjax.errors import UserError

_WHICH, _TO = 0xF11B, 0xF11C  # any constants: flips depend on no seed


@dataclasses.dataclass(frozen=True)
class FlippedSource:
  """A `Source` of which some examples have another label."""

  source: Source
  labels: dict[int, int]  # id -> the label that is given instead

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> Example:
    example = self.source[index]
    return example | {"label": self.labels[index]} if index in self.labels else example


def flipped_ids(ids: np.ndarray, count: int, share: float) -> np.ndarray:
  """Which of the examples that are trained on have a flipped label: the same for every method and seed.

  Args:
    ids: of the training examples.
    count: examples of the whole training split.
    share: of `ids` that is flipped, rounded to whole examples.
  """
  order = np.argsort(scores(count, _WHICH)[ids], kind="stable")
  return np.sort(ids[order[: round(share * len(ids))]])


def flipped(dataset: Dataset, ids: np.ndarray, share: float) -> Dataset:
  """The data set with a share of the labels of its training examples `ids` replaced by others, drawn by hash.

  Raises:
    UserError: a share outside [0, 1), or data whose examples have no single label of a set.
  """
  if not 0 <= share < 1:
    raise UserError(f"data.flip_labels={share}: expected a share of the training examples, from 0 to below 1")
  if not share:
    return dataset
  names, source = dataset.label_names, dataset.split("train")
  if len(names) < 2 or not isinstance(source[0].get("label"), int):
    raise UserError(f"data.flip_labels: {dataset.name} has no single label of several for each example")
  jumps = 1 + scores(len(source), _TO) % np.uint64(len(names) - 1)
  labels = {
    int(index): (source[int(index)]["label"] + int(jumps[index])) % len(names)
    for index in flipped_ids(ids, len(source), share)
  }
  read = dataset.read
  return dataclasses.replace(
    dataset, read=lambda split: FlippedSource(read(split), labels) if split == "train" else read(split)
  )
