"""Splits that depend on nothing but the text: the same example falls on the same side for ever, duplicates together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

Labelled = tuple[str, str]  # label, text


def normalised(text: str) -> str:
  """The text as duplicates are told: lower case, words only; a text without a word stays as it is.

  >>> normalised("  Well worth -- the MONEY!")
  'well worth the money'
  """
  words = " ".join(re.findall(r"\w+", text.lower()))
  return words or text.strip()


def hashed_split(text: str, shares: Mapping[str, float], salt: str = "") -> str:
  """The name of the split that a text belongs to.

  Args:
    text: compared by its `normalised` form, so copies that differ in case or punctuation fall together.
    shares: split name -> share of all texts; they sum to 1.
    salt: another salt gives an independent split.

  >>> {hashed_split(text, {"train": 0.7, "test": 0.3}) for text in ("a pretentious mess", "A pretentious mess.")}
  {'test'}
  """
  digest = hashlib.sha256(f"{salt}\0{normalised(text)}".encode()).digest()
  position = int.from_bytes(digest[:8], "big") / 2**64
  reached = 0.0
  for name, share in shares.items():
    reached += share
    if position < reached:
      return name
  return name


def divide(train: list[Labelled], test: list[Labelled]) -> dict[str, list[Labelled]]:
  """A published pair of splits as three: the test set as it is, texts it holds taken out of training, and one text
  in ten of the rest as the validation set."""
  held_out = {normalised(text) for _, text in test}
  train = [row for row in train if normalised(row[1]) not in held_out]
  shares = {"train": 0.9, "validation": 0.1}
  divided = {name: [row for row in train if hashed_split(row[1], shares) == name] for name in shares}
  return {**divided, "test": test}
