"""Text to token ids, by the `tokenizers` library, from the files of a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from peftjax.data.inputs.base import IGNORED
from peftjax.data.inputs.tokenizer_folder import TokenizerFolder, read_tokenizer, refusing
from peftjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Token ids of some examples, ragged.

  Attributes:
    ids: int32 arrays, special tokens included, none longer than the tokenizer's `max_length`.
    type_ids: int32 arrays, 0 for the first text and 1 for the second.
    tags: int32 arrays with `IGNORED` at tokens without a tag; None where there are no tags.
    cut: [n] bool, the text did not fit.
    lost_words: words whose tag no token carries, because they were cut off or are nothing to the tokenizer.
  """

  ids: list[np.ndarray]
  type_ids: list[np.ndarray]
  tags: list[np.ndarray] | None
  cut: np.ndarray
  lost_words: int


@dataclasses.dataclass(frozen=True)
class Window:
  """One window over a context, behind its question.

  Attributes:
    ids, type_ids: [L] int32, special tokens included.
    offsets: [L, 2] int32, the first character of each token and the one after its last, in its own text.
    in_context: [L] bool, the tokens of the context.
  """

  ids: np.ndarray
  type_ids: np.ndarray
  offsets: np.ndarray
  in_context: np.ndarray


class Tokenizer:
  """A fast tokenizer that cuts at `max_length` tokens and pads nothing. Pickles; equal texts give equal ids.

  Attributes:
    size: number of tokens, special ones included.
    max_length: tokens, special ones included.
    gives_type_ids: the model was trained with token type ids.
    made_for: tokens of the longest text that the model is made for, by the tokenizer's `model_max_length`; None: it
      does not say.
    mask_id: the token that hides another; None if there is none.
  """

  def __init__(self, made: TokenizerFolder, max_length: int, embedded: list[int] | None = None):
    self._made = made
    self._rows = embedded or [2**31]  # that the model embeds; one list for all that are cut from this one
    specials = made.fast.num_special_tokens_to_add(is_pair=False)
    if max_length <= specials:
      raise UserError(f"data.max_length={max_length}: expected more than the {specials} special tokens of a text")
    self._fast = tokenizers.Tokenizer.from_str(made.fast.to_str())
    self._fast.encode_special_tokens = made.splits_special_tokens
    self._fast.enable_truncation(max_length, direction=made.truncation_side)
    self.size = made.fast.get_vocab_size(with_added_tokens=True)
    self.max_length = max_length
    self.gives_type_ids = made.gives_type_ids
    self.made_for = made.model_max_length
    self._words_open_with_a_space = self._glues_words()
    self._cutting: dict[int, Any] = {}
    self._special_ids = [index for token in made.tokens.values() if (index := made.fast.token_to_id(token)) is not None]
    mask = made.tokens.get("mask_token")
    self.mask_id: int | None = None if mask is None else made.fast.token_to_id(mask)

  def __reduce__(self) -> tuple[Any, ...]:
    return Tokenizer, (self._made, self.max_length, self._rows)

  def cut_to(self, max_length: int) -> Tokenizer:
    """The same tokenizer with another `max_length`."""
    return Tokenizer(self._made, max_length, self._rows)

  def fingerprint(self) -> str:
    """Hex sha256 of everything that decides the ids."""
    parts = (self._fast.to_str(), self._made.splits_special_tokens, self._made.pad_id, self.gives_type_ids)
    return hashlib.sha256(repr(parts).encode()).hexdigest()

  @property
  def pad_id(self) -> int:
    """The id that fills a batch: padding is masked, so any does where the model does not embed the tokenizer's."""
    return self._made.pad_id if self._made.pad_id < self._rows[0] else 0

  @property
  def eos_id(self) -> int | None:
    """The token that ends a text; None if there is none.

    Raises:
      UserError: the model, which `check_fits` was told, does not embed it.
    """
    end, rows = self._made.eos_id, self._rows[0]
    if end is not None and end >= rows:
      raise UserError(
        f"a text ends with token {end}, by the tokenizer's files or config.json, and the model embeds {rows}"
      )
    return end

  def check_fits(self, vocab_size: int, positions: int = 0) -> None:
    """Checks against the model's embedding rows and, if given, its longest sequence.

    From then on a text is refused that holds a token of the tokenizer's class which the model does not embed.

    Raises:
      UserError: the model cannot embed what the tokenizer gives.
    """
    if self._made.stated_size > vocab_size:
      has = f"{self.size} ids" if self.size > vocab_size else f"the id {self._made.stated_size - 1}"
      raise UserError(f"the tokenizer has {has} but the model embeds {vocab_size}: they do not belong together")
    self._rows[0] = vocab_size
    if positions and self.max_length > positions:
      raise UserError(f"data.max_length={self.max_length}, but the model has {positions} positions")

  def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Encoded:
    """Encodes texts, or pairs of them (the longer of the two is cut first)."""
    inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
    return self._gather(self._encodings(inputs))

  def encode_bare(self, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts without special tokens of the tokenizer's own."""
    return [list(one.ids) for one in self._encodings(list(texts), add_special_tokens=False)]

  def encode_words(self, tokens: Sequence[Sequence[str]], tags: Sequence[Sequence[int]] | None = None) -> Encoded:
    """Encodes texts given word by word; the first token of a word carries its tag."""
    if self._words_open_with_a_space:  # as in running text, whose words these tokenizers know by the space before
      tokens = [[f" {word}" for word in words] for words in tokens]
    encodings = self._encodings([list(words) for words in tokens], is_pretokenized=True)
    if tags is None:
      return self._gather(encodings)
    aligned, lost = [], 0
    for encoding, one in zip(encodings, tags, strict=True):
      places = first_tokens(encoding.word_ids)
      row = np.full(len(encoding.ids), IGNORED, np.int32)
      for word, place in places.items():
        row[place] = one[word]
      aligned.append(row)
      lost += len(one) - len(places)
    return dataclasses.replace(self._gather(encodings), tags=aligned, lost_words=lost)

  def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """(ids, first character and the one after the last of each) of a text that holds its special tokens itself."""
    (encoding,) = self._encodings([text], add_special_tokens=False)
    return list(encoding.ids), list(encoding.offsets)

  def encode_apart(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, type ids, the word that each token is of, -1 of special tokens), int32 [L] each, of one text."""
    (one,) = self._encodings([text])
    ids = np.array(one.ids, np.int32)
    words = np.array([-1 if word is None else word for word in one.word_ids], np.int32)
    return ids, np.array(one.type_ids, np.int32), np.where(np.isin(ids, self._special_ids), -1, words)

  def encode_windows(self, question: str, context: str, shared: int) -> list[Window]:
    """A question with its context, in as many windows of at most `max_length` tokens as the context takes.

    Args:
      shared: tokens of the context that neighbouring windows share.

    Raises:
      UserError: the question leaves no room.
    """
    pair = self._made.fast.num_special_tokens_to_add(is_pair=True)
    (bare,) = self._encodings([question], add_special_tokens=False)
    if (taken := len(bare.ids) + sum(len(one.ids) for one in bare.overflowing) + pair) + shared >= self.max_length:
      raise UserError(
        f"a question of {taken - pair} tokens leaves no room for its context in a window of "
        f"data.max_length={self.max_length} with {shared} tokens shared: {question!r:.60}"
      )
    fast = self._windows_of(shared)
    first = fast.encode(question, context)
    found = [first, *first.overflowing]
    self._check_embedded(found)
    return [
      Window(
        np.array(one.ids, np.int32),
        np.array(one.type_ids, np.int32),
        np.array(one.offsets, np.int32).reshape(-1, 2),
        np.array([place == 1 for place in one.sequence_ids], bool),
      )
      for one in found
    ]

  def id_of(self, token: str) -> int | None:
    """The id of a token, None if the tokenizer has none of that spelling."""
    found: int | None = self._fast.token_to_id(token)
    return found

  def token_of(self, index: int) -> str:
    """The spelling of an id, "" where the tokenizer has none."""
    return str(self._fast.id_to_token(index) or "")

  def unlike(self, other: Tokenizer) -> list[str]:
    """The tokens that another tokenizer has not, or by another id, sorted."""
    known = other._fast.get_vocab(with_added_tokens=True)
    own = self._fast.get_vocab(with_added_tokens=True)
    return sorted(token for token, index in own.items() if known.get(token) != index)

  def decode(self, ids: Sequence[int]) -> str:
    """The text of some ids, special tokens left out."""
    with refusing("the tokenizer cannot decode tokens"):
      text: str = self._fast.decode(list(ids), skip_special_tokens=True)
    return _without_odd_spaces(text) if self._made.cleans_up else text

  def _glues_words(self) -> bool:
    """Whether words given one by one lose the space that tells them apart in running text."""
    (joined,) = self._encodings(["x x"], add_special_tokens=False)
    words = [["x", "x"], [" x", " x"]]
    apart, spaced = self._encodings(words, is_pretokenized=True, add_special_tokens=False)
    return bool(apart.ids != joined.ids and spaced.ids[1:] == joined.ids[1:])

  def _encodings(self, inputs: list[Any], **how: bool) -> list[Any]:
    with refusing("the tokenizer cannot encode a text"):  # such as an unknown word where it has no unknown token
      found: list[Any] = self._fast.encode_batch(inputs, **how)
    self._check_embedded(found)
    return found

  def _check_embedded(self, found: Sequence[Any]) -> None:
    rows = self._rows[0]
    if rows < 2**31 and rows < self._ids:
      beyond = next((index for one in found for index in one.ids if index >= rows), None)
      if beyond is not None:
        shown = self._fast.id_to_token(beyond)
        raise UserError(f"a text holds {shown!r}, token {beyond}, and the model embeds {rows}")

  @functools.cached_property
  def _ids(self) -> int:
    """One more than the highest id that a text may get, be it the post-processor's."""
    around = [*self._fast.encode("").ids, *self._fast.encode("", "").ids]
    return 1 + max([*self._fast.get_vocab(with_added_tokens=True).values(), *around], default=-1)

  def _windows_of(self, shared: int) -> Any:
    """The tokenizer that cuts the second text of a pair alone, and keeps what it cuts off."""
    if shared not in self._cutting:
      fast = tokenizers.Tokenizer.from_str(self._made.fast.to_str())
      fast.encode_special_tokens = self._made.splits_special_tokens
      fast.enable_truncation(self.max_length, stride=shared, strategy="only_second")
      self._cutting[shared] = fast
    return self._cutting[shared]

  def _gather(self, encodings: Sequence[Any]) -> Encoded:
    return Encoded(
      ids=[np.array(one.ids, np.int32) for one in encodings],
      type_ids=[np.array(one.type_ids, np.int32) for one in encodings],
      tags=None,
      cut=np.array([bool(one.overflowing) for one in encodings], bool),
      lost_words=0,
    )


_ODD_SPACES = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def _without_odd_spaces(text: str) -> str:
  for odd in _ODD_SPACES:
    text = text.replace(odd, odd.strip())
  return text


def first_tokens(word_ids: Sequence[int | None]) -> dict[int, int]:
  """Word -> the place of its first token.

  >>> first_tokens([None, 0, 0, 1, None])
  {0: 1, 1: 3}
  """
  places: dict[int, int] = {}
  for place, word in enumerate(word_ids):
    if word is not None:
      places.setdefault(word, place)
  return places


def load_tokenizer(folder: str | Path, max_length: int = 128) -> Tokenizer:
  """The tokenizer of a model folder, cutting at `max_length`; `tokenizer_folder` says which files make it.

  Raises:
    UserError: no tokenizer there, or one that cannot be read.
  """
  return Tokenizer(read_tokenizer(folder), max_length)
