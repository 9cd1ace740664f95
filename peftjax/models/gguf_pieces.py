"""SentencePiece's tokenizers in GGUF files (LLaMA 2, Mistral, Gemma; `tokenizer.ggml.model` "llama") as tokenizer.json.

Such a file holds pieces with scores. SentencePiece's BPE joins the two neighbours whose union scores best; in
tokenizer.json the pairs are listed, best first, which gives the same tokens.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # kinds of tokens
_SPACE = "▁"


def model_of(tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float]) -> dict[str, Any]:
  """The section "model" of tokenizer.json.

  Args:
    tokens: the pieces, by their ids.
    kinds: of each piece, as GGUF numbers them.
    scores: of each piece; the best is joined first.
  """
  unknown = next((token for token, kind in zip(tokens, kinds) if kind == UNKNOWN), None)
  return {
    "type": "BPE",
    "dropout": None,
    "unk_token": unknown,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": True,
    "byte_fallback": BYTE in kinds,
    "ignore_merges": False,
    "vocab": {token: index for index, token in enumerate(tokens)},
    "merges": merges_of(tokens, kinds, scores),
  }


def merges_of(tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float]) -> list[list[str]]:
  """[left, right] of every way to make a normal piece of two others, by the score of the piece, best first.

  >>> merges_of(["a", "b", "c", "ab", "abc"], [1] * 5, [0, 0, 0, -1, -2])
  [['a', 'b'], ['ab', 'c']]
  """
  normal = {token: index for index, (token, kind) in enumerate(zip(tokens, kinds)) if kind == NORMAL}
  lengths = sorted({len(token) for token in normal} - {0})  # a long piece is cut where another one could end alone
  found = []
  for piece, index in normal.items():
    for cut in lengths[: bisect.bisect_left(lengths, len(piece))]:
      left, right = piece[:cut], piece[cut:]
      if left in normal and right in normal:
        found.append((-scores[index], normal[left], normal[right], left, right))
  found.sort(key=lambda one: one[:3])
  return [[left, right] for *_, left, right in found]


def steps_of(adds_prefix: bool) -> dict[str, Any]:
  """The sections "normalizer", "pre_tokenizer" and "decoder": spaces are `_SPACE`, bytes that no piece has are tokens.

  Args:
    adds_prefix: a text is read as if a space stood before it.
  """
  spaces: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
  decoders: list[dict[str, Any]] = [
    {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
  ]
  normalizer = spaces
  if adds_prefix:
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _SPACE}, spaces]}
    decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
  return {
    "normalizer": normalizer,
    "pre_tokenizer": None,
    "decoder": {"type": "Sequence", "decoders": decoders},
  }
