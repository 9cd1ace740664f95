"""How many places every example of a split needs: what buckets are chosen by, found once and kept in the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from peftjax.data.packages import cache_folder

if TYPE_CHECKING:
  from peftjax.data.inputs.base import Input
  from peftjax.data.sources.types import Dataset, Source

MEASURED_AT_ONCE = 200_000  # examples of a split; where it has more, lengths are measured as they are needed
_CHUNK = 512  # examples encoded together


@dataclasses.dataclass(frozen=True)
class Measured:
  """What encoding a split showed; of its examples what `Sizes` says.

  Attributes:
    lengths: [r] int32, places that each row needs, after cutting.
    cut: examples that did not fit.
    lost: what training was to learn and nothing carries.
    counts: [n] int32, the rows that each example gives; None: one each.
  """

  lengths: np.ndarray
  cut: int
  lost: int
  counts: np.ndarray | None = None


def measure(dataset: Dataset, split: str, inputs: Input) -> Measured:
  """Encodes a split once; later calls with equal data and input read the cache."""
  key = hashlib.sha256(f"{dataset.fingerprint()} {split} {inputs.fingerprint()}".encode()).hexdigest()
  path = cache_folder("lengths") / f"{key}.npz"
  if (saved := _load(path)) is not None:
    return saved
  source = dataset.split(split)
  measured = measure_some(source, np.arange(len(source)), inputs)
  _save(path, measured)
  return measured


def measure_some(source: Source, ids: np.ndarray, inputs: Input) -> Measured:
  """What encoding some examples shows: rows and counts in the order of `ids`."""
  lengths, counts, cut, lost = [np.zeros(0, np.int32)], [], 0, 0
  for start in range(0, len(ids), _CHUNK):
    sizes = inputs.sizes([source[int(index)] for index in ids[start : start + _CHUNK]])
    lengths.append(sizes.lengths)
    counts += [] if sizes.counts is None else [sizes.counts]
    cut += sizes.cut
    lost += sizes.lost
  return Measured(np.concatenate(lengths), cut, lost, np.concatenate(counts) if counts else None)


def measure_for(dataset: Dataset, split: str, inputs: Input, ids: np.ndarray) -> tuple[Measured, Measured]:
  """(what is told of the examples that are read, what `measure` gives of their split).

  Of fewer than `MEASURED_AT_ONCE` examples of a split of more the others are not encoded: they have no places and no
  rows, and nothing of them is told.

  Args:
    ids: [m] int64, those that are read.
  """
  count = dataset.splits[split]
  if not len(ids) < MEASURED_AT_ONCE < count:
    whole = measure(dataset, split, inputs)
    return whole, whole
  ids = np.sort(ids)
  some = measure_some(dataset.split(split), ids, inputs)
  spread = np.zeros(count, np.int32)
  if some.counts is not None:  # the rows of ascending examples stand as they would among all
    spread[ids] = some.counts
    return some, dataclasses.replace(some, counts=spread)
  spread[ids] = some.lengths
  return some, dataclasses.replace(some, lengths=spread)


def _load(path: Path) -> Measured | None:
  try:
    with path.open("rb") as file, np.load(file) as saved:
      counts = saved.get("counts")
      return Measured(saved["lengths"], int(saved["cut"]), int(saved["lost"]), counts)
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # not there, or cut short by a crash
    return None


def _save(path: Path, measured: Measured) -> None:
  with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
    np.savez(file, **{name: value for name, value in dataclasses.asdict(measured).items() if value is not None})
  os.replace(file.name, path)
