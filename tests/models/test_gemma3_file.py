"""A real file of Gemma 3 against transformers, which reads the same file by code of its own.

PEFTJAX_GEMMA3_GGUF names it, for instance gemma-3-270m-it-Q4_K_M.gguf. It is not among the packaged models, because
Gemma's terms (https://ai.google.dev/gemma/terms) have to be accepted by who downloads it. docs/models.md says how.
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import gguf
import numpy as np
import pytest

from peftjax import load
from peftjax.data.inputs.tokenizing import load_tokenizer
from peftjax.models.generate import generate
from peftjax.models.gguf import prepare_folder
from peftjax.models.sampling import Sampling

FILE = os.environ.get("PEFTJAX_GEMMA3_GGUF", "")
TEXTS = ["The capital of France is", "grüße aus Köln,\n  ça va 🙂 2026", "def fib(n):\n    return"]
MOST = 12

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not FILE, reason="PEFTJAX_GEMMA3_GGUF names no file of Gemma 3"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  made = tmp_path_factory.mktemp("gemma") / "folder"
  prepare_folder(Path(FILE), made)
  return made


def pieces_of(vocabulary, text):
  """By SentencePiece's rules: first the longest pieces of its users' own; then neighbours that make the likeliest piece
  become one (Kudo & Richardson 2018, https://arxiv.org/abs/1808.06226); what is no piece is its bytes.

  Args:
    vocabulary: piece -> (id, score, whether of its users' own); such ones are stored with spaces, the others with "▁".
  """
  found = []
  own = sorted((one for one, (_, _, is_own) in vocabulary.items() if is_own), key=len, reverse=True)
  for part in filter(None, re.split("(" + "|".join(map(re.escape, own)) + ")", text)):
    parts = [part] if part in own else list(part.replace(" ", "▁"))
    while True:
      both = ["".join(pair) for pair in itertools.pairwise(parts)]
      likely = max(((vocabulary[one][1], -at) for at, one in enumerate(both) if one in vocabulary), default=None)
      if likely is None:
        break
      at = -likely[1]
      parts[at : at + 2] = [both[at]]
    found += [token for one in parts for token in ([one] if one in vocabulary else _bytes(one))]
  return [vocabulary[one][0] for one in found]


def _bytes(piece):
  return [f"<0x{byte:02X}>" for byte in piece.encode()]


def test_tokens_are_those_of_sentencepiece(folder):
  tokenizer, reader = load_tokenizer(folder), gguf.GGUFReader(FILE)
  pieces, scores, kinds = (
    reader.get_field(f"tokenizer.ggml.{name}").contents() for name in ("tokens", "scores", "token_type")
  )
  own = gguf.TokenType.USER_DEFINED
  vocabulary = {one: (at, scores[at], kinds[at] == own) for at, one in enumerate(pieces)}
  first = reader.get_field("tokenizer.ggml.bos_token_id").contents()
  for text in TEXTS:
    assert tokenizer.encode([text]).ids[0].tolist() == [first, *pieces_of(vocabulary, text)], text


def test_logits_and_greedy_tokens_are_those_of_transformers(folder):
  import torch
  import transformers

  model, tokenizer = load(folder), load_tokenizer(folder)
  path = Path(FILE)
  oracle = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
  for text in TEXTS:
    ids = tokenizer.encode([text]).ids
    given = torch.tensor(np.asarray(ids))
    with torch.no_grad():
      wanted = oracle.eval()(given).logits.numpy()
      said = oracle.generate(given, max_new_tokens=MOST, do_sample=False, eos_token_id=None)[0, given.shape[1] :]
    found = np.asarray(model(input_ids=ids)["logits"])
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max(), text
    tokens = generate(model, [ids[0].tolist()], Sampling(max_new_tokens=MOST, eos_ids=(), pad_id=tokenizer.pad_id))
    assert list(tokens[0]) == said.tolist(), text
    print(repr(text), repr(tokenizer.decode(list(tokens[0]))))
