"""What of a GGUF file is read, value by value, and what is refused, in one line that names the field."""

from __future__ import annotations

import json
import struct
import time

import gguf
import numpy as np
import pytest

from peftjax.errors import UserError
from peftjax.loading import load
from peftjax.models.gguf import GGUFCheckpoint, prepare_folder, read_config
from peftjax.models.gguf_pieces import merges_of
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


@pytest.mark.parametrize(
  ("key", "kind", "value", "only"),
  [
    ("rope.dimension_count", "uint32", 2, 4),
    ("attention.value_length", "uint32", 8, 4),
    ("attention.causal", "bool", False, True),
    ("rope.scale_linear", "float32", 4.0, 1.0),
    ("rope.scaling.attn_factor", "float32", 0.5, 1.0),
    ("rope.scaling.yarn_beta_fast", "float32", 8.0, 32.0),
    ("final_logit_softcapping", "float32", 30.0, 0.0),
  ],
)
def test_a_field_that_config_json_cannot_say_has_one_value(tmp_path, key, kind, value, only):
  """Read as if it were not there, the model would compute something else."""

  def given(one):
    return lambda writer: getattr(writer, f"add_{kind}")(f"llama.{key}", one)

  small_gguf(tmp_path / "odd.gguf", given(value))
  with pytest.raises(UserError, match=rf"llama\.{key}={value}: only {only} can be read"):
    read_config(tmp_path / "odd.gguf")
  small_gguf(tmp_path / "same.gguf", given(only))
  small_gguf(tmp_path / "plain.gguf")
  assert read_config(tmp_path / "same.gguf") == read_config(tmp_path / "plain.gguf")


KINDS = [kind for kind in gguf.GGMLQuantizationType if gguf.GGML_QUANT_SIZES[kind][0] == 256 or kind.name == "NVFP4"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_blocks_of_every_kind_are_as_the_gguf_package_has_them(tmp_path, kind):
  """Of random bytes, in odd numbers of blocks; the rows of q and k in Hugging Face's order. Others are refused."""
  size, length = gguf.GGML_QUANT_SIZES[kind]
  stored = np.random.default_rng(0).integers(0, 256, (30, 3 * length), np.uint8)
  heads = {"q_proj": 5, "k_proj": 3}

  def add(writer):
    for name in ("attn_q", "attn_k", "attn_v"):
      writer.add_tensor(f"blk.1.{name}.weight", stored, raw_dtype=kind)

  small_gguf(tmp_path / "some.gguf", add, heads.values())
  checkpoint = GGUFCheckpoint(tmp_path / "some.gguf")
  with np.errstate(all="ignore"):
    for name in (*heads, "v_proj"):
      key = f"model.layers.1.self_attn.{name}.weight"
      assert checkpoint.shape(key) == (30, 3 * size)
      try:
        values = gguf.quants.dequantize(stored, kind)
      except NotImplementedError:
        with pytest.raises(UserError, match=f"is {kind.name}, which cannot be read as floats"):
          list(checkpoint.blocks(key))
        continue
      found = np.concatenate([block for _, block in checkpoint.blocks(key)])
      if name in heads:  # as llama.cpp's convert_hf_to_gguf.py lays them
        pairs = found.reshape(heads[name], 2, -1, found.shape[-1])
        found = np.swapaxes(pairs, 1, 2).reshape(found.shape)
      np.testing.assert_array_equal(found, values)


def test_several_files_in_one_folder_are_not_chosen_among(tmp_path):
  for name in ("a-Q4_K_M", "b-Q8_0"):
    small_gguf(tmp_path / f"{name}.gguf")
  with pytest.raises(UserError, match=r"has 2 \*\.gguf, and one is a model: give its path, such as .*a-Q4_K_M\.gguf"):
    load(tmp_path)
  (tmp_path / "config.json").write_text(json.dumps(read_config(tmp_path / "a-Q4_K_M.gguf")))
  with pytest.raises(UserError, match=r"has 2 \*\.gguf"):
    load(tmp_path)


def test_a_long_piece_costs_little():
  before = time.process_time()
  assert merges_of(["a" * 400_000, "a", "a" * 399_999], [1] * 3, [0, 0, 0])[0] == ["a", "a" * 399_999]
  assert time.process_time() - before < 1.0
