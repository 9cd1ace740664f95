"""Text to token ids, by the `tokenizers` library, from the files of a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from peftjax.errors import UserError
from peftjax.files import read_json

IGNORED = -100  # the tag of a token that has none


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


class Tokenizer:
  """A fast tokenizer that cuts at `max_length` tokens and pads nothing. Pickles; equal texts give equal ids.

  Attributes:
    pad_id: the id that fills a batch.
    size: number of ids, special tokens included.
    max_length: tokens, special ones included.
    gives_type_ids: the model was trained with token type ids.
    eos_id: the token that ends a text; None if there is none.
  """

  def __init__(
    self,
    fast: tokenizers.Tokenizer,
    pad_id: int,
    gives_type_ids: bool,
    max_length: int,
    eos_id: int | None = None,
  ):
    specials = fast.num_special_tokens_to_add(is_pair=False)
    if max_length <= specials:
      raise UserError(f"data.max_length={max_length}: expected more than the {specials} special tokens of a text")
    self._fast = tokenizers.Tokenizer.from_str(fast.to_str())
    self._fast.no_padding()
    self._fast.enable_truncation(max_length)
    self.pad_id = pad_id
    self.size = fast.get_vocab_size(with_added_tokens=True)
    self.max_length = max_length
    self.gives_type_ids = gives_type_ids
    self.eos_id = eos_id
    pre = json.loads(fast.to_str())["pre_tokenizer"] or {}
    self._words_open_with_a_space = any(
      step["type"] == "ByteLevel" and not step["add_prefix_space"] for step in pre.get("pretokenizers", [pre]) if step
    )

  def cut_to(self, max_length: int) -> Tokenizer:
    """The same tokenizer with another `max_length`."""
    return Tokenizer(self._fast, self.pad_id, self.gives_type_ids, max_length, self.eos_id)

  def fingerprint(self) -> str:
    """Hex sha256 of everything that decides the ids."""
    return hashlib.sha256(f"{self._fast.to_str()}{self.pad_id}{self.gives_type_ids}".encode()).hexdigest()

  def check_fits(self, vocab_size: int, positions: int = 0) -> None:
    """Checks against the model's embedding rows and, if given, its longest sequence.

    Raises:
      UserError: the model cannot embed what the tokenizer gives.
    """
    if self.size > vocab_size:
      raise UserError(
        f"the tokenizer has {self.size} ids but the model embeds {vocab_size}: they do not belong together"
      )
    if positions and self.max_length > positions:
      raise UserError(f"data.max_length={self.max_length}, but the model has {positions} positions")

  def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Encoded:
    """Encodes texts, or pairs of them (the longer of the two is cut first)."""
    inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
    return self._gather(self._fast.encode_batch(inputs))

  def encode_bare(self, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts without special tokens of the tokenizer's own."""
    return [list(one.ids) for one in self._fast.encode_batch(list(texts), add_special_tokens=False)]

  def encode_words(self, tokens: Sequence[Sequence[str]], tags: Sequence[Sequence[int]] | None = None) -> Encoded:
    """Encodes texts given word by word; the first token of a word carries its tag."""
    if self._words_open_with_a_space:  # as in running text, whose words these tokenizers know by the space before
      tokens = [[f" {word}" for word in words] for words in tokens]
    encodings = self._fast.encode_batch([list(words) for words in tokens], is_pretokenized=True)
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

  def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
    """(ids, where in the text each starts) of a text that holds its special tokens itself; none are added."""
    encoding = self._fast.encode(text, add_special_tokens=False)
    return list(encoding.ids), [start for start, _ in encoding.offsets]

  def id_of(self, token: str) -> int | None:
    """The id of a token, None if the tokenizer has none of that spelling."""
    found: int | None = self._fast.token_to_id(token)
    return found

  def decode(self, ids: Sequence[int]) -> str:
    """The text of some ids, special tokens left out."""
    return self._fast.decode(list(ids), skip_special_tokens=True)

  def _gather(self, encodings: Sequence[Any]) -> Encoded:
    return Encoded(
      ids=[np.array(one.ids, np.int32) for one in encodings],
      type_ids=[np.array(one.type_ids, np.int32) for one in encodings],
      tags=None,
      cut=np.array([bool(one.overflowing) for one in encodings], bool),
      lost_words=0,
    )


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
  """Reads ``tokenizer.json``, or else builds WordPiece from ``vocab.txt`` or byte-level BPE from ``vocab.json`` and
  ``merges.txt``.

  Raises:
    UserError: none of these files is there, or one is damaged.
  """
  folder = Path(folder)
  settings = {**_json(folder / "config.json"), **_json(folder / "tokenizer_config.json")}
  settings |= {name: value for name, value in _json(folder / "special_tokens_map.json").items() if name not in settings}
  try:
    if (folder / "tokenizer.json").is_file():
      fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    elif (folder / "vocab.txt").is_file():
      fast = _word_piece(folder, settings)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
      fast = _byte_level_bpe(folder, settings)
    else:
      raise UserError(f"{folder} has no tokenizer.json, vocab.txt, or vocab.json with merges.txt")
  except UserError:
    raise
  except Exception as error:  # the library raises bare Exception
    raise UserError(f"the tokenizer files in {folder} are damaged: {error}") from None
  fast.no_padding()
  gives_type_ids = "token_type_ids" in settings.get("model_input_names", ()) or _tells_pairs_apart(fast)
  return Tokenizer(fast, _pad_id(fast, settings), gives_type_ids, max_length, _eos_id(fast, settings))


def _json(path: Path) -> dict[str, Any]:
  return read_json(path) if path.is_file() else {}


def _token(settings: dict[str, Any], name: str) -> str:
  """The text of a special token: "" if the folder does not say."""
  value = settings.get(name) or ""
  return value["content"] if isinstance(value, dict) else value


def _word_piece(folder: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
  names = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "cls_token": "[CLS]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
  }
  specials = {name: _token(settings, name) or usual for name, usual in names.items()}
  return tokenizers.BertWordPieceTokenizer(
    str(folder / "vocab.txt"),
    **specials,
    lowercase=settings.get("do_lower_case", True),
    strip_accents=settings.get("strip_accents"),
    handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
  )._tokenizer


def _byte_level_bpe(folder: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
  fast = tokenizers.Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
  fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.get("add_prefix_space", False))
  fast.decoder = tokenizers.decoders.ByteLevel()
  roberta = settings.get("model_type") == "roberta" or "Roberta" in settings.get("tokenizer_class", "")
  usual = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
  names = {name: _token(settings, name) or (token if roberta else "") for name, token in usual.items()}
  known = dict.fromkeys(token for token in names.values() if token and fast.token_to_id(token) is not None)
  fast.add_special_tokens([tokenizers.AddedToken(token, special=True, lstrip=token == "<mask>") for token in known])
  if roberta:
    end, start = (_with_id(fast, names[name]) for name in ("eos_token", "bos_token"))
    fast.post_processor = processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)
  else:
    fast.post_processor = processors.ByteLevel(trim_offsets=False)
  return fast


def _with_id(fast: tokenizers.Tokenizer, token: str) -> tuple[str, int]:
  index = fast.token_to_id(token)
  if index is None:
    raise UserError(f"the vocabulary lacks the special token {token!r}")
  return token, index


def _pad_id(fast: tokenizers.Tokenizer, settings: dict[str, Any]) -> int:
  """The padding id; where a decoder has none any id does, since padding is masked."""
  for token in (_token(settings, "pad_token"), "[PAD]", "<pad>", _token(settings, "eos_token")):
    if token and (index := fast.token_to_id(token)) is not None:
      return index
  return int(settings.get("pad_token_id") or 0)


def _eos_id(fast: tokenizers.Tokenizer, settings: dict[str, Any]) -> int | None:
  """The id of the folder's end token."""
  token = _token(settings, "eos_token")
  if token:
    index: int | None = fast.token_to_id(token)
    return index
  ids = settings.get("eos_token_id")
  ids = ids[0] if isinstance(ids, list) and ids else ids
  return ids if isinstance(ids, int) else None


def _tells_pairs_apart(fast: tokenizers.Tokenizer) -> bool:
  return any(fast.encode("a", "b").type_ids)
