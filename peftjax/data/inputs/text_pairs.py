"""The input `text_pairs`: two texts of an example, each a sequence of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.inputs.base import Batch, Random, Shapes, Sizes
from peftjax.data.inputs.text import TextInput
from peftjax.data.measuring import Measured
from peftjax.data.sources.types import Example, Header
from peftjax.errors import UserError

if TYPE_CHECKING:
  from peftjax.tasks import Task

PAIR = "pair_"  # before the names of the second text's arrays
SIDES = {"text": "", "text_pair": PAIR}


class TextPairs(TextInput):
  """Arrays of a batch: `input_ids`, `attention_mask` and, if the model knows them, `token_type_ids` [B, L] int32 of the
  first texts, and the same of the second ones with `PAIR` before the name; `labels` [B] float32 where pairs have a
  score. A text that is longer than `data.max_length` is cut."""

  def __init__(self, config: ConfigDict, header: Header, task: Task, folder: Path | None = None):
    super().__init__(config, header, task, folder)
    self._positive = getattr(task, "positive_score", -np.inf)

  def spec(self, rows: int, length: int) -> Shapes:
    shape = jax.ShapeDtypeStruct((rows, length), np.dtype(np.int32))
    return {f"{side}{name}": shape for side in SIDES.values() for name in self.columns}

  @property
  def fills(self) -> dict[str, Any]:  # type: ignore[override]
    """The padding token of both texts."""
    return {f"{side}input_ids": self.tokenizer.pad_id for side in SIDES.values()}

  def encode(self, example: Example, rng: Random) -> Batch:
    encoded = self.tokenizer.encode([example[name] for name in SIDES])
    arrays: Batch = {}
    for side, ids, type_ids in zip(SIDES.values(), encoded.ids, encoded.type_ids):
      arrays |= {f"{side}input_ids": ids, f"{side}attention_mask": np.ones_like(ids)}
      arrays |= {f"{side}token_type_ids": type_ids} if self.gives_type_ids else {}
    return arrays

  def collate(self, encoded: Sequence[Batch], rows: int, length: int) -> Batch:
    batch = super().collate(encoded, rows, length)
    for side in SIDES.values():
      batch[f"{side}attention_mask"][len(encoded) :, 0] = 1  # so that no softmax runs over nothing
    return batch

  def length(self, example: Example) -> int:
    return int(self.sizes([example]).lengths[0])

  def sizes(self, examples: Sequence[Example]) -> Sizes:
    """The longer of both; how many are cut; how many are negatives only."""
    sides = [self.tokenizer.encode([one[name] for one in examples]) for name in SIDES]
    lengths = [max(len(one), len(other)) for one, other in zip(*(side.ids for side in sides))]
    cut = sides[0].cut | sides[1].cut
    lost = sum(one["label"] < self._positive for one in examples if "label" in one)
    return Sizes(np.array(lengths, np.int32), int(cut.sum()), lost)

  def fingerprint(self) -> str:
    return f"pairs of {self.data.max_length} from {self._positive} on {self.tokenizer.fingerprint()}"

  def notes(self, measured: Measured | None) -> list[str]:
    assert measured is not None
    count = len(measured.lengths)
    if measured.lost == count:
      raise UserError(f"task.positive_score={self._positive}: none of the {count:,} training pairs has such a score")
    lines = []
    if measured.cut:
      lines.append(f"train: {measured.cut:,} of {count:,} pairs are cut at {self.data.max_length} tokens")
    if measured.lost:
      lines.append(f"train: {measured.lost:,} of {count:,} pairs score below {self._positive}: negatives only")
    return lines
