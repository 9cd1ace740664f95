"""How many places every example of a split needs: what buckets are chosen by, found once and kept in the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peftjax.data.own_identity import is_own, own_code
from peftjax.data.packages import cache_folder
from peftjax.data.sources.types import Dataset, Source, WrongExample, WrongRow

if TYPE_CHECKING:
  from peftjax.data.inputs.base import Input

MEASURED_AT_ONCE = 200_000  # examples of a split; where it has more, lengths are measured as they are needed
_CHUNK = 512  # examples encoded together
_TRIED = 32  # examples of a user's own that are measured again before what was kept is believed


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
  """Encodes a split once; later calls with equal data and input read the cache.

  What was kept of a user's own code is used where the code is the same, and some examples have the lengths that it
  says; data without an identity are measured each time.
  """
  path = cache_folder("lengths") / f"{_key(dataset, split, inputs)}.npz"
  if dataset.identity and (saved := _load(path)) is not None and _fits(saved, dataset, split, inputs):
    return saved
  source = dataset.split(split)
  measured = measure_some(source, np.arange(len(source)), inputs)
  if dataset.identity:
    _save(path, measured)
  return measured


def _key(dataset: Dataset, split: str, inputs: Input) -> str:
  parts: list[Any] = [dataset.fingerprint(), split, inputs.fingerprint()]
  if is_own(dataset, inputs):
    parts += [dataset.name, dataset.own, dataset.splits.get(split), own_code(dataset, inputs)]
    parts += [int(one) for one in inputs.buckets]
  return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()


def _fits(saved: Measured, dataset: Dataset, split: str, inputs: Input) -> bool:
  """Whether what was kept can be of these examples; of a user's own, whose identity may say too little, some are
  measured again."""
  count = len(saved.lengths if saved.counts is None else saved.counts)
  whole = saved.counts is None or int(saved.counts.sum()) == len(saved.lengths)
  if not whole or count < dataset.splits.get(split, 0):
    return False
  if not is_own(dataset, inputs):
    return True
  source = dataset.split(split)
  ids = np.unique(np.linspace(0, count - 1, _TRIED).astype(np.int64)) if count else np.zeros(0, np.int64)
  if count != len(source):
    return False
  some = measure_some(source, ids, inputs)
  if saved.counts is None:
    return some.counts is None and np.array_equal(some.lengths, saved.lengths[ids])
  return some.counts is not None and np.array_equal(some.counts, saved.counts[ids])


def measure_some(source: Source, ids: np.ndarray, inputs: Input) -> Measured:
  """What encoding some examples shows: rows and counts in the order of `ids`."""
  lengths, counts, cut, lost = [np.zeros(0, np.int32)], [], 0, 0
  for start in range(0, len(ids), _CHUNK):
    examples = [source[int(index)] for index in ids[start : start + _CHUNK]]
    try:
      sizes = inputs.sizes(examples)
    except WrongRow as error:
      raise WrongExample(ids[start + error.row], inputs.header.name, f": {error}") from error.__cause__
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
