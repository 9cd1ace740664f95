"""Tokenizer folders drawn at random, against transformers' `AutoTokenizer` on the same folder: equal, or refused.

Compared are the ids of texts, pairs and bare texts, token types, characters of tokens, decoded text, special tokens and
their ids, sides and lengths.
"""

from __future__ import annotations

import collections
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from peftjax.data.inputs.tokenizer_folder import read_tokenizer
from peftjax.data.inputs.tokenizing import load_tokenizer
from peftjax.errors import UserError
from tests.oracles.tokenizer_folders import PAIRS, TEXTS, draw

QUICK, ALL = 200, 3000


def theirs(folder: Path, length: int) -> dict[str, Any]:
  tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
  # As saved and read back: a token that was added twice with different flags leaves traces until then.
  tokenizer._tokenizer = tokenizers.Tokenizer.from_str(tokenizer._tokenizer.to_str())
  found: dict[str, Any] = {}
  for name, pairs in (("texts", None), ("pairs", PAIRS)):
    encoded = tokenizer(TEXTS, pairs, truncation=True, max_length=length)
    found[name] = (encoded["input_ids"], encoded.get("token_type_ids"))
  bare = tokenizer(TEXTS, add_special_tokens=False, return_offsets_mapping=True)
  longest = tokenizer.model_max_length
  return found | {
    "bare": bare["input_ids"],
    "places": bare["offset_mapping"],
    "decoded": [tokenizer.decode(ids, skip_special_tokens=True) for ids in bare["input_ids"]],
    "tokens": dict(tokenizer.special_tokens_map),
    "sizes": (len(tokenizer), longest if longest < 2**31 else None),
    "sides": (tokenizer.padding_side, tokenizer.truncation_side),
    "pad": tokenizer.pad_token_id,
    "eos": tokenizer.eos_token_id,
  }


def ours(folder: Path, length: int) -> dict[str, Any]:
  made, tokenizer = read_tokenizer(folder), load_tokenizer(folder, length)
  uncut = tokenizer.cut_to(10**6)
  found: dict[str, Any] = {}
  for name, pairs in (("texts", None), ("pairs", PAIRS)):
    encoded = tokenizer.encode(TEXTS, pairs)
    types = [ids.tolist() for ids in encoded.type_ids] if tokenizer.gives_type_ids else None
    found[name] = ([ids.tolist() for ids in encoded.ids], types)
  bare = uncut.encode_bare(TEXTS)
  return found | {
    "bare": bare,
    "places": [uncut.encode_with_places(text)[1] for text in TEXTS],
    "decoded": [tokenizer.decode(ids) for ids in bare],
    "tokens": dict(made.tokens),
    "sizes": (tokenizer.size, made.model_max_length),
    "sides": (made.padding_side, made.truncation_side),
    "pad": tokenizer.pad_id if "pad_token" in made.tokens else None,
    "eos": tokenizer.eos_id,
  }


@pytest.mark.parametrize(
  "seeds", [range(QUICK), pytest.param(range(QUICK, ALL), marks=pytest.mark.slow)], ids=["quick", "all"]
)
def test_drawn_folders_give_what_transformers_gives(seeds, tmp_path, record_property):
  counts: collections.Counter[str] = collections.Counter()
  for seed in seeds:
    rng = random.Random(seed)
    folder = tmp_path / str(seed)
    folder.mkdir()
    drawn, length = draw(rng, folder), rng.randrange(4, 14)
    try:
      right = theirs(folder, length)
    except Exception:
      right = None
    try:
      found = ours(folder, length)
    except UserError:
      counts["refused here" if right is not None else "refused by both"] += 1
      continue
    if right is None:
      counts["read here alone"] += 1
      continue
    for name, value in right.items():
      assert found[name] == value, f"seed {seed}: {name} of {drawn}"
    counts["equal"] += 1
  parts = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
  record_property("counted", f"compared with AutoTokenizer: {len(seeds):,} drawn tokenizer folders ({parts})")
  assert counts["equal"] > 0.85 * len(seeds)
  assert counts["refused here"] < 0.05 * len(seeds)
