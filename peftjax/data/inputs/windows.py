"""The input `windows`: a question and its context as token ids, in as many windows as a long context takes.

Every window is a row of its own, and all of a question's rows have its `index`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.inputs.base import Batch, Random, Shapes, Sizes
from peftjax.data.inputs.collating import token_shapes
from peftjax.data.inputs.text import TextInput
from peftjax.data.inputs.tokenizing import Window
from peftjax.data.measuring import Measured
from peftjax.data.sources.types import Example, Header
from peftjax.errors import UserError

if TYPE_CHECKING:
  from peftjax.tasks import Task

NOWHERE = -1  # the characters of tokens that are none of the context


class Windows(TextInput):
  """Arrays of a batch: `input_ids`, `attention_mask` and, if the model knows them, `token_type_ids` [B, L] int32;
  `characters` [B, L, 2] int32, the first character of each token of the context and the one after its last, `NOWHERE`
  at other tokens; `labels` [B, 2] int32, the first and the last token of the example's first answer, both 0 (the token
  that opens the row) in a window that does not hold it whole.

  Settings: `doc_stride`, tokens of the context that neighbouring windows share; 0: a third of `data.max_length`.
  """

  settings = {**TextInput.settings, "doc_stride": 0}
  measures_all = True  # an example gives several rows

  def __init__(self, config: ConfigDict, header: Header, task: Task, folder: Path | None = None):
    super().__init__(config, header, task, folder)
    longest = int(self.data.max_length)
    self.shared = int(self.options.doc_stride) or longest // 3
    if not 0 <= self.shared < longest:
      raise UserError(
        f"input.doc_stride={self.shared}: expected fewer than data.max_length={longest}, and no less than 0"
      )

  def spec(self, rows: int, length: int) -> Shapes:
    shapes = {"characters": (rows, length, 2), "labels": (rows, 2)}
    return token_shapes(self.columns, rows, length) | {
      name: jax.ShapeDtypeStruct(shape, np.dtype(np.int32)) for name, shape in shapes.items()
    }

  @functools.cached_property
  def fills(self) -> dict[str, Any]:  # type: ignore[override]
    """Padding tokens have no characters."""
    return {"input_ids": self.tokenizer.pad_id, "characters": NOWHERE}

  def encode(self, example: Example, rng: Random) -> Batch:
    window = self._windows(example)[example.get("part", 0)]
    arrays = {
      "input_ids": window.ids,
      "attention_mask": np.ones_like(window.ids),
      "characters": np.where(window.in_context[:, None], window.offsets, NOWHERE),
      "labels": np.array(answer_tokens(window, example["answers"]), np.int32),
    }
    return arrays | ({"token_type_ids": window.type_ids} if self.gives_type_ids else {})

  def collate(self, encoded: Sequence[Batch], rows: int, length: int) -> Batch:
    batch = super().collate(encoded, rows, length)
    batch["attention_mask"][len(encoded) :, 0] = 1  # so that no softmax runs over nothing
    return batch

  def length(self, example: Example) -> int:
    return max(len(one.ids) for one in self._windows(example))

  def sizes(self, examples: Sequence[Example]) -> Sizes:
    windows = [self._windows(one) for one in examples]
    lengths = np.array([len(one.ids) for each in windows for one in each], np.int32)
    return Sizes(lengths, counts=np.array([len(each) for each in windows], np.int32))

  def fingerprint(self) -> str:
    return f"windows {self.shared} of {self.data.max_length} {self.tokenizer.fingerprint()}"

  def notes(self, measured: Measured | None) -> list[str]:
    assert measured is not None and measured.counts is not None
    several = int((measured.counts > 1).sum())
    share = f"{several:,} of {len(measured.counts):,} questions take several windows"
    return [f"train: {share}, {len(measured.lengths):,} windows of at most {self.data.max_length} tokens"]

  def _windows(self, example: Example) -> list[Window]:
    # Some questions open with white space, which would count towards the window.
    return self.tokenizer.encode_windows(example["question"].lstrip(), example["context"], self.shared)


def answer_tokens(window: Window, answers: Sequence[dict[str, Any]]) -> tuple[int, int]:
  """The first and the last token of the first answer; (0, 0) if the window does not hold it whole, or there is none."""
  places = np.flatnonzero(window.in_context)
  if not answers or not len(places):
    return 0, 0
  begin = answers[0]["answer_start"]
  end = begin + len(answers[0]["text"])
  starts, ends = window.offsets[places].T
  if starts[0] > begin or ends[-1] < end:
    return 0, 0
  return int(places[np.flatnonzero(starts <= begin)[-1]]), int(places[np.flatnonzero(ends >= end)[0]])
