"""Examples to padded arrays. The order of batches knows nothing of what they hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.inputs.base import IGNORED, Batch, Shapes, Sizes, weight_and_index
from peftjax.data.inputs.tokenizing import Encoded, Tokenizer
from peftjax.data.sources.types import Example, Header

if TYPE_CHECKING:
  from peftjax.data.inputs.language import Form


class Collate(Protocol):
  """Makes the rows of a batch of examples, for one kind of task."""

  @classmethod
  def make(cls, tokenizer: Tokenizer, form: Form, data: ConfigDict, header: Header) -> Collate:
    """By `config.data`, for the data that a header describes; `form` is that of prompts and sources."""
    raise NotImplementedError

  @classmethod
  def spec(cls, data: ConfigDict, header: Header, rows: int, length: int, type_ids: bool) -> Shapes:
    """What a batch of rows holds, beside `index`, `weight` and the labels of whole examples.

    Args:
      type_ids: whether first and second texts are told apart.
    """
    raise NotImplementedError

  @classmethod
  def reads(cls, header: Header) -> tuple[str, ...]:
    """The fields of `HOW` that mean something to it over such data, beside those of all texts."""
    del header
    return ()

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
class TextCollate(Collate):
  """Makes rows of texts, or of words with tags.

  Attributes:
    tokenizer: cuts no shorter than the length asked for.
    tagged: whether words have tags.
  """

  tokenizer: Tokenizer
  tagged: bool = False

  @classmethod
  def make(cls, tokenizer: Tokenizer, form: Form, data: ConfigDict, header: Header) -> TextCollate:
    del form
    return cls(tokenizer.cut_to(data.max_length), "tags" in header.fields)

  @classmethod
  def spec(cls, data: ConfigDict, header: Header, rows: int, length: int, type_ids: bool) -> Shapes:
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if type_ids else [])]
    return token_shapes([*names, *(["labels"] if "tags" in header.fields else [])], rows, length)

  def sizes(self, examples: Sequence[Example]) -> Sizes:
    """Tokens, texts that are cut, words that lose their tags."""
    encoded = encode_examples(self.tokenizer, examples)
    return Sizes(np.array([len(ids) for ids in encoded.ids], np.int32), int(encoded.cut.sum()), encoded.lost_words)

  def fingerprint(self) -> str:
    """Hex digest of all that decides the arrays: the tokenizer's."""
    return self.tokenizer.fingerprint()

  def __call__(self, examples: Sequence[Example], ids: np.ndarray, length: int) -> Batch:
    """One batch; see `Collate`.

    Returns:
      `input_ids` and `attention_mask` [B, L] int32, `token_type_ids` alike if the model knows them, `weight` [B]
      float32 (0 for filling rows), `index` [B] int32 (the id), and of words with tags `labels` [B, L] int32, -100 where
      a token has none. Filling rows hold one padding token that is attended to, so that no softmax runs over nothing.
    """
    encoded = encode_examples(self.tokenizer, examples)
    batch = {
      "input_ids": padded(encoded.ids, len(ids), length, self.tokenizer.pad_id),
      "attention_mask": padded([np.ones_like(one) for one in encoded.ids], len(ids), length, 0),
      **weight_and_index(ids),
    }
    batch["attention_mask"][len(examples) :, 0] = 1
    if self.tokenizer.gives_type_ids:
      batch["token_type_ids"] = padded(encoded.type_ids, len(ids), length, 0)
    if self.tagged:
      batch["labels"] = padded(encoded.tags or [], len(ids), length, IGNORED)
    return batch


def padded(arrays: Sequence[Sequence[int] | np.ndarray], count: int, length: int, fill: int) -> np.ndarray:
  """[count, length] int32: the arrays as the first rows, `fill` elsewhere."""
  filled = np.full((count, length), fill, np.int32)
  for row, array in zip(filled, arrays, strict=False):
    row[: len(array)] = array
  return filled


def token_shapes(names: Sequence[str], rows: int, length: int) -> Shapes:
  """int32 [rows, length] under each name."""
  return {name: jax.ShapeDtypeStruct((rows, length), np.dtype(np.int32)) for name in names}
