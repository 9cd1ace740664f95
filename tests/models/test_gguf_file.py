"""What of a GGUF file is refused, in one line that names the field."""

from __future__ import annotations

import struct

import pytest

from peftjax.errors import UserError
from peftjax.models.gguf import GGUFCheckpoint, prepare_folder, read_config
from tests.fuzz.test_folders import small_gguf


@pytest.fixture(scope="module")
def good(tmp_path_factory):
  return small_gguf(tmp_path_factory.mktemp("gguf") / "good.gguf")


def packed(text: str) -> bytes:
  return struct.pack("<Q", len(text)) + text.encode()


def field(key: str, kind: int, value: bytes) -> bytes:
  return packed(key) + struct.pack("<I", kind) + value


BLOCKS = field("llama.block_count", 4, struct.pack("<I", 1))
TOKENS = packed("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 5)
END = field("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 4))
NORM = packed("output_norm.weight") + struct.pack("<IQ", 1, 8)


@pytest.mark.parametrize(
  ("old", "new", "says"),
  [
    (b"llama.block_count", b"llama.block_counX", "no field 'llama.block_count'; did you mean 'llama.block_counX'?"),
    (BLOCKS, field("llama.block_count", 6, struct.pack("<f", 1.0)), "llama.block_count=1.0: expected a whole number"),
    (BLOCKS, field("llama.block_count", 4, struct.pack("<I", 2**31)), "expected a whole number from 1 to 4096"),
    (BLOCKS, BLOCKS[:-8] + struct.pack("<II", 13, 1), "the field 'llama.block_count' has type 13"),
    (b"ggml.merges", b"ggml.tokens", "the field 'tokenizer.ggml.tokens' is there twice"),
    (TOKENS, TOKENS[:-8] + struct.pack("<Q", 2**60), "'tokenizer.ggml.tokens' has 1,152,921,504,606,846,976 entries"),
    (TOKENS, TOKENS[:-12] + struct.pack("<IQ", 9, 5), "the field 'tokenizer.ggml.tokens' has type 9"),
    (END, END[:-4] + struct.pack("<I", 5), "eos_token_id=5: expected a whole number from 0 to 4"),
    (NORM, NORM[:-8] + struct.pack("<Q", 2**40), "'output_norm.weight' does not fill a place of its own"),
    (NORM, NORM[:-12] + struct.pack("<IQ", 9, 8), "'output_norm.weight' has 9 axes"),
    (b"gpt-2", b"gpt-9", "unknown way to split text 'gpt-9'; did you mean 'gpt-2'?"),
    (packed("a b"), packed("a_b"), "tokenizer.ggml.merges: expected two tokens"),
    (packed("ab"), struct.pack("<Q", 2) + b"\xff\xff", "is not UTF-8"),
    (b"GGUF\3", b"GGUF\1", "version 1; expected 2 or 3"),
    (b"blk.0.attn_k", b"blk.0.attn_q", "the tensor 'blk.0.attn_q.weight' is there twice"),
  ],
  ids=range(15),
)
def test_a_damaged_field_is_one_line(good, tmp_path, old, new, says):
  assert good.count(old) == 1
  path = tmp_path / "odd.gguf"
  path.write_bytes(good.replace(old, new))
  with pytest.raises(UserError) as caught:
    prepare_folder(path, tmp_path / "model")
  assert str(path) in str(caught.value) and says in str(caught.value)


def test_tensors_that_share_their_bytes_are_refused(good, tmp_path):
  """As overlapping safetensors are."""
  names = (b"output_norm.weight", b"blk.0.attn_k.weight")
  offsets = []
  for name, axes in zip(names, (1, 2)):
    at = good.index(name) + len(name) + 4 + 8 * axes + 4
    offsets.append((at, good[at : at + 8]))
  path = tmp_path / "odd.gguf"
  at, _ = offsets[1]
  path.write_bytes(good[:at] + offsets[0][1] + good[at + 8 :])
  with pytest.raises(UserError, match="does not fill a place of its own in it"):
    GGUFCheckpoint(path)


@pytest.mark.parametrize("size", [0, 3, 23, 40, 700])
def test_a_file_that_ends_early_is_one_line(good, tmp_path, size):
  path = tmp_path / "short.gguf"
  path.write_bytes(good[:size])
  with pytest.raises(UserError, match="is no whole GGUF file"):
    read_config(path)
