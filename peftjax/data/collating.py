"""Examples to padded arrays: one function a task. The plan of batches knows nothing of what they hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from peftjax.data.sources import Example
from peftjax.data.tokenizing import IGNORED, Encoded, Tokenizer

Batch = dict[str, np.ndarray]
Collate = Callable[[Sequence[Example], np.ndarray, int], Batch]


def encode_examples(tokenizer: Tokenizer, examples: Sequence[Example]) -> Encoded:
  """The token ids of examples, and the tags of those that have them."""
  if examples and "tokens" in examples[0]:
    tags = [one["tags"] for one in examples] if "tags" in examples[0] else None
    return tokenizer.encode_words([one["tokens"] for one in examples], tags)
  pairs = [one["text_pair"] for one in examples] if examples and "text_pair" in examples[0] else None
  return tokenizer.encode([one["text"] for one in examples], pairs)


@dataclasses.dataclass(frozen=True)
class TextCollate:
  """Makes batches of texts with labels, tags or neither.

  Attributes:
    tokenizer: cuts no shorter than the length asked for.
    template: any example; a process whose rows only fill up learns from it what arrays there are.
  """

  tokenizer: Tokenizer
  template: Example

  def __call__(self, examples: Sequence[Example], ids: np.ndarray, length: int) -> Batch:
    """One batch.

    Args:
      examples: those of the rows whose id is not negative.
      ids: [B] example ids; negative at the end, for rows that fill up.
      length: L, tokens in a row.

    Returns:
      `input_ids` and `attention_mask` [B, L] int32, `token_type_ids` alike if the model knows them, `weight` [B]
      float32 (0 for filling rows), `index` [B] int32 (the id), and `labels`: [B] int32, [B] float32 (a number), [B, C]
      float32 (several labels) or [B, L] int32 with -100 where a token has no tag. Filling rows hold one padding token
      that is attended to, so that no softmax runs over nothing.
    """
    encoded = encode_examples(self.tokenizer, examples)
    batch = {
      "input_ids": _padded(encoded.ids, len(ids), length, self.tokenizer.pad_id),
      "attention_mask": _padded([np.ones_like(one) for one in encoded.ids], len(ids), length, 0),
      "weight": (ids >= 0).astype(np.float32),
      "index": ids.astype(np.int32),
    }
    batch["attention_mask"][len(examples) :, 0] = 1
    if self.tokenizer.gives_type_ids:
      batch["token_type_ids"] = _padded(encoded.type_ids, len(ids), length, 0)
    if "tags" in self.template:
      batch["labels"] = _padded(encoded.tags or [], len(ids), length, IGNORED)
    elif "label" in self.template:
      label = np.asarray(self.template["label"])
      batch["labels"] = np.zeros((len(ids), *label.shape), np.float32 if label.dtype.kind == "f" else np.int32)
      for row, one in enumerate(examples):
        batch["labels"][row] = one["label"]
    return batch


def _padded(arrays: Sequence[np.ndarray], count: int, length: int, fill: int) -> np.ndarray:
  padded = np.full((count, length), fill, np.int32)
  for row, array in zip(padded, arrays, strict=False):
    row[: len(array)] = array
  return padded
