"""How long every example of a split is in tokens: what buckets are chosen by, found once and kept in the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from peftjax.data.inputs.collating import Collate
from peftjax.data.packages import cache_folder
from peftjax.data.sources import Dataset

_CHUNK = 512  # examples tokenised together


@dataclasses.dataclass(frozen=True)
class Measured:
  """What tokenising a split showed.

  Attributes:
    lengths: [n] int32, tokens of each example after cutting.
    cut: examples that did not fit.
    lost_words: words whose tag no token carries, or responses that are cut off as a whole.
  """

  lengths: np.ndarray
  cut: int
  lost_words: int
  has_responses: bool = False

  @property
  def teaches_nothing(self) -> bool:
    """Whether every response is cut off as a whole."""
    return self.has_responses and self.lost_words == len(self.lengths)

  def notes(self, what: str, max_length: int) -> list[str]:
    """Lines for the log about what does not reach the model; none if everything does."""
    lines = []
    lost = "words lose their tags, being cut off or unknown to the tokenizer"
    if self.has_responses:
      lost = "examples have no response left and teach nothing; raise data.max_length"
    if self.cut:
      share = self.cut / len(self.lengths)
      lines.append(f"{what}: {self.cut:,} of {len(self.lengths):,} texts ({share:.1%}) are cut at {max_length} tokens")
    if self.lost_words:
      lines.append(f"{what}: {self.lost_words:,} {lost}")
    return lines


def measure(dataset: Dataset, split: str, collate: Collate) -> Measured:
  """Tokenises a split once; later calls with equal data and tokenizer read the cache."""
  key = hashlib.sha256(f"{dataset.fingerprint()} {split} {collate.fingerprint()}".encode()).hexdigest()
  path = cache_folder("lengths") / f"{key}.npz"
  if (saved := _load(path)) is not None:
    return saved
  source = dataset.split(split)
  lengths, cut, lost = [np.zeros(0, np.int32)], 0, 0
  for start in range(0, len(source), _CHUNK):
    examples = [source[index] for index in range(start, min(start + _CHUNK, len(source)))]
    sizes = collate.sizes(examples)
    lengths.append(sizes.lengths)
    cut += sizes.cut
    lost += sizes.lost
  measured = Measured(np.concatenate(lengths), cut, lost, "text" not in source[0] and "tokens" not in source[0])
  _save(path, measured)
  return measured


def _load(path: Path) -> Measured | None:
  try:
    with path.open("rb") as file, np.load(file) as saved:
      return Measured(saved["lengths"], int(saved["cut"]), int(saved["lost_words"]), bool(saved["has_responses"]))
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # not there, or cut short by a crash
    return None


def _save(path: Path, measured: Measured) -> None:
  with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
    np.savez(file, **dataclasses.asdict(measured))
  os.replace(file.name, path)
