"""Examples to padded arrays. The plan of batches knows nothing of what they hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from peftjax.data.inputs.tokenizing import IGNORED, Encoded, Tokenizer
from peftjax.data.sources import Example

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What tokenising some examples shows.

  Attributes:
    lengths: [n] int32, the tokens that each needs room for.
    cut: examples that did not fit.
    lost: what training was to learn and no token carries: words with a tag; responses of which nothing is left.
  """

  lengths: np.ndarray
  cut: int
  lost: int


class Collate(Protocol):
  """Makes batches of examples, for one kind of task."""

  def sizes(self, examples: Sequence[Example]) -> Sizes: ...

  def fingerprint(self) -> str:
    """Equal where equal examples give equal batches."""

  def __call__(self, examples: Sequence[Example], ids: np.ndarray, length: int) -> Batch:
    """A batch.

    Args:
      examples: those of the rows whose id is not negative.
      ids: [B] example ids; negative at the end, for rows that fill up.
      length: L, tokens in a row.
    """


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

  def sizes(self, examples: Sequence[Example]) -> Sizes:
    """Tokens, texts that are cut, words that lose their tags."""
    encoded = encode_examples(self.tokenizer, examples)
    return Sizes(np.array([len(ids) for ids in encoded.ids], np.int32), int(encoded.cut.sum()), encoded.lost_words)

  def fingerprint(self) -> str:
    """The tokenizer's."""
    return self.tokenizer.fingerprint()

  def __call__(self, examples: Sequence[Example], ids: np.ndarray, length: int) -> Batch:
    """One batch; see `Collate`.

    Returns:
      `input_ids` and `attention_mask` [B, L] int32, `token_type_ids` alike if the model knows them, `weight` [B]
      float32 (0 for filling rows), `index` [B] int32 (the id), and `labels`: [B] int32, [B] float32 (a number), [B, C]
      float32 (several labels) or [B, L] int32 with -100 where a token has no tag. Filling rows hold one padding token
      that is attended to, so that no softmax runs over nothing.
    """
    encoded = encode_examples(self.tokenizer, examples)
    batch = {
      "input_ids": padded(encoded.ids, len(ids), length, self.tokenizer.pad_id),
      "attention_mask": padded([np.ones_like(one) for one in encoded.ids], len(ids), length, 0),
      "weight": (ids >= 0).astype(np.float32),
      "index": ids.astype(np.int32),
    }
    batch["attention_mask"][len(examples) :, 0] = 1
    if self.tokenizer.gives_type_ids:
      batch["token_type_ids"] = padded(encoded.type_ids, len(ids), length, 0)
    if "tags" in self.template:
      batch["labels"] = padded(encoded.tags or [], len(ids), length, IGNORED)
    elif "label" in self.template:
      label = np.asarray(self.template["label"])
      batch["labels"] = np.zeros((len(ids), *label.shape), np.float32 if label.dtype.kind == "f" else np.int32)
      for row, one in enumerate(examples):
        batch["labels"][row] = one["label"]
    return batch


def padded(arrays: Sequence[Sequence[int] | np.ndarray], count: int, length: int, fill: int) -> np.ndarray:
  """[count, length] int32: the arrays as the first rows, `fill` elsewhere."""
  filled = np.full((count, length), fill, np.int32)
  for row, array in zip(filled, arrays, strict=False):
    row[: len(array)] = array
  return filled
