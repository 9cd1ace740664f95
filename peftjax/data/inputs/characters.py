"""The letters that a model with a CTC output writes, from vocab.json and tokenizer_config.json, as transformers'
`Wav2Vec2CTCTokenizer` reads them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peftjax.errors import UserError
from peftjax.files import read_json
from peftjax.kinds import FLAG, NAME, value_of, whole

VOCABULARY, SETTINGS = "vocab.json", "tokenizer_config.json"
_ID = whole(0, 2**31 - 1)


@dataclasses.dataclass(frozen=True)
class Characters:
  """Letters by number.

  Attributes:
    ids: letter, or special token -> id.
    blank: the token that stands for no letter.
    space: the token that stands for a space.
    unknown: the token of letters that are not there.
    upper: texts are read in upper case and written in lower case.
  """

  ids: Mapping[str, int]
  blank: str = "<pad>"
  space: str = "|"
  unknown: str = "<unk>"
  upper: bool = False

  @property
  def blank_id(self) -> int:
    """The id of no letter."""
    return self.ids[self.blank]

  @functools.cached_property
  def _letters(self) -> Mapping[str, int]:
    """`ids` without the two tokens that are no letter, whatever they are called."""
    return {letter: index for letter, index in self.ids.items() if letter not in (self.blank, self.unknown)}

  @property
  def size(self) -> int:
    """One more than the largest id."""
    return max(self.ids.values()) + 1

  def encode(self, text: str) -> list[int]:
    """The ids of a text's letters; one that is not there in its own case is taken in the other."""
    letters = (text.upper() if self.upper else text).replace(" ", self.space)
    return [self._letters.get(self._known(letter), self.ids[self.unknown]) for letter in letters]

  def known(self, text: str) -> str:
    """A text as it could be written: letters that are not there are left out."""
    letters = (" " if letter.isspace() else self._known(letter) for letter in text)
    kept = "".join(letter for letter in letters if letter == " " or letter in self._letters)
    return " ".join((kept.lower() if self.upper else kept).split())

  def decode(self, best: Iterable[int]) -> str:
    """What the likeliest ids of frames say: repeated ones count once, blanks and special tokens not at all."""
    names = {index: letter for letter, index in self._letters.items()}
    letters = [names.get(int(index), "") for index, _ in itertools.groupby(best)]
    text = "".join(" " if one == self.space else one for one in letters if one == self.space or len(one) == 1).strip()
    return text.lower() if self.upper else text

  def _known(self, letter: str) -> str:
    letter = letter.upper() if self.upper else letter
    return next((one for one in (letter, letter.upper(), letter.lower()) if one in self._letters), "")


def read_characters(folder: Path) -> Characters:
  """The letters of a model's folder.

  Raises:
    UserError: there is no vocab.json, it holds something else, or a special token is not in it.
  """
  path = folder / VOCABULARY
  if not path.is_file():
    raise UserError(f"{folder} has no {VOCABULARY}: which letters does the model write?")
  found: dict[str, Any] = read_json(path)
  ids = {letter: int(value_of(str(path), letter, index, _ID)) for letter, index in found.items()}
  if len(set(ids.values())) < len(ids) or not ids:
    raise UserError(f"{path}: two letters have one number, or there are none")
  said = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
  where = str(folder / SETTINGS)
  names = {"blank": "pad_token", "space": "word_delimiter_token", "unknown": "unk_token"}
  default = Characters({})
  tokens = {field: _token(said.get(name), where, name) or getattr(default, field) for field, name in names.items()}
  for field, name in names.items():
    if tokens[field] not in ids:
      raise UserError(f"{path}: {name} {tokens[field]!r} is not in it")
  return Characters(ids, **tokens, upper=bool(value_of(where, "do_lower_case", said.get("do_lower_case", False), FLAG)))


def _token(value: Any, where: str, name: str) -> str:
  given = value.get("content") if isinstance(value, dict) else value
  return "" if given is None else str(value_of(where, name, given, NAME))
