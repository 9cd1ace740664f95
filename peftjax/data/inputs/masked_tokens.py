"""The input `masked_tokens`: texts of which some tokens are hidden, drawn anew for each example in every epoch."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ml_collections import ConfigDict

from peftjax.data.inputs.base import IGNORED, Batch, Random, Shapes, Sizes, example_ids, weight_and_index
from peftjax.data.inputs.collating import padded, token_shapes
from peftjax.data.inputs.text import TextInput
from peftjax.data.measuring import Measured
from peftjax.data.sources.types import Example, Header
from peftjax.errors import UserError
from peftjax.files import read_json

if TYPE_CHECKING:
  from peftjax.model import Model
  from peftjax.tasks import Task

_MASKED, _REPLACED = 0.8, 0.1  # shares of the chosen tokens; the rest stays as it is


class MaskedTokens(TextInput):
  """BERT's masking (Devlin et al. 2019, section 3.1): each token but special ones is chosen by a chance of `rate`; of
  those chosen, eight in ten become the mask token, one in ten any token, and one in ten stays.

  Arrays of a batch: `input_ids`, `attention_mask` and, if the model knows them, `token_type_ids` [B, L] int32; `labels`
  [B, L] int32, the token that stood there where one was chosen, else `IGNORED`.

  In evaluations the choice is a function of the text alone. Settings: `rate`; `whole_words`, all tokens of a word are
  chosen or none, and share their fate.
  """

  settings = {**TextInput.settings, "rate": 0.15, "whole_words": False}

  def __init__(self, config: ConfigDict, header: Header, task: Task, folder: Path | None = None):
    super().__init__(config, header, task, folder)
    rate = self.options.rate
    if not isinstance(rate, float) or not 0 < rate < 1:
      raise UserError(f"input.rate={rate!r}: expected a share of the tokens, above 0 and below 1")

  @functools.cached_property
  def mask_id(self) -> int:
    """The id of the mask token.

    Raises:
      UserError: the tokenizer has none.
    """
    assert self.folder is not None
    index = self.tokenizer.mask_id
    if index is None:
      raise UserError(f"{self.folder}: the tokenizer has no mask token")
    return index

  def spec(self, rows: int, length: int) -> Shapes:
    return token_shapes((*self.columns, "labels"), rows, length)

  def encode(self, example: Example, rng: Random) -> Batch:
    ids, type_ids, words = self.tokenizer.encode_apart(text_of(example))
    hidden, labels = self._hidden(ids, words, rng)
    arrays = {"input_ids": hidden, "attention_mask": np.ones_like(ids), "labels": labels}
    return arrays | ({"token_type_ids": type_ids} if self.gives_type_ids else {})

  def batch(self, examples: Sequence[Example], ids: np.ndarray, length: int, rngs: Iterable[Random]) -> Batch:
    encoded = [self.encode(one, rng) for one, rng in zip(examples, rngs)]
    fills = {"input_ids": self.tokenizer.pad_id, "labels": IGNORED}
    batch = {
      name: padded([one[name] for one in encoded], len(ids), length, fills.get(name, 0))
      for name in self.spec(1, length)
    }
    batch["attention_mask"][len(encoded) :, 0] = 1  # so that no softmax runs over nothing
    return batch | weight_and_index(example_ids(examples, ids))

  def sizes(self, examples: Sequence[Example]) -> Sizes:
    encoded = self.tokenizer.encode([text_of(one) for one in examples])
    return Sizes(np.array([len(one) for one in encoded.ids], np.int32), int(encoded.cut.sum()))

  def fingerprint(self) -> str:
    how = (self.tokenizer.fingerprint(), self.mask_id, self.options.rate, self.options.whole_words)
    return hashlib.sha256(repr(("masked", *how)).encode()).hexdigest()

  def check(self, model: Model) -> None:
    super().check(model)
    if self.mask_id >= int(model.hf_config["vocab_size"]):
      raise UserError(f"the mask token has the id {self.mask_id}, which the model does not embed")

  def notes(self, measured: Measured | None) -> list[str]:
    assert measured is not None
    share = f"{measured.cut:,} of {len(measured.lengths):,} texts"
    return [f"train: {share} are cut at {self.data.max_length} tokens"] if measured.cut else []

  @functools.cached_property
  def _choices(self) -> int:
    """The tokens that one may be replaced by: all that the tokenizer gives and the model embeds."""
    assert self.folder is not None
    return min(self.tokenizer.size, int(read_json(self.folder / "config.json").get("vocab_size", self.tokenizer.size)))

  def _hidden(self, ids: np.ndarray, words: np.ndarray, rng: Random) -> tuple[np.ndarray, np.ndarray]:
    """(what the model reads, its labels), both [L] int32; `words` is the word of each token, -1 of special ones."""
    if rng is None:
      digest = hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
      rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    units = np.unique(words, return_inverse=True)[1] if self.options.whole_words else np.arange(len(ids))
    chosen, fate = rng.random((2, len(ids)))[:, units]
    any_token = rng.integers(self._choices, size=len(ids)).astype(np.int32)
    is_label = (chosen < self.options.rate) & (words >= 0)
    fates = [is_label & (fate < _MASKED), is_label & (fate >= _MASKED) & (fate < _MASKED + _REPLACED)]
    hidden = np.select(fates, [np.full_like(ids, self.mask_id), any_token], ids)
    return hidden, np.where(is_label, ids, np.int32(IGNORED))


def text_of(example: Example) -> str:
  """The whole text of an example, whatever it is labelled with: parts stand under each other."""
  if "messages" in example:
    return "\n".join(one["content"] for one in example["messages"])
  if "tokens" in example:
    return " ".join(example["tokens"])
  return "\n".join(example[name] for name in ("text", "text_pair", "source", "target") if name in example)
