"""Whisper in CTranslate2's format, written here field by field, and what is none."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file

from peftjax.errors import UserError
from peftjax.loading import from_config
from peftjax.models import ctranslate2
from peftjax.models.pretrained import read_config

TOKENS = {"<|endoftext|>": 7, "<|startoftranscript|>": 8, "<|en|>": 9, "<|notimestamps|>": 12}


def text(value):
  content = value.encode() + b"\0"
  return struct.pack("<H", len(content)) + content


def written(variables, version=6, name="WhisperSpec"):
  parts = [struct.pack("<I", version), text(name), struct.pack("<II", 3, len(variables))]
  for key, array in variables.items():
    kind = {"float32": 0, "int8": 1, "int16": 2, "float16": 4}[str(array.dtype)]
    sizes = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
    parts += [text(key), sizes, struct.pack("<BI", kind, array.nbytes), array.tobytes()]
  return b"".join([*parts, struct.pack("<I", 0)])


def variables(hidden=6, wide=10, bins=5, dtype=np.float16):
  random = np.random.default_rng(0)

  def draw(*shape):
    return random.normal(size=shape).astype(dtype)

  found = {
    "encoder/num_heads": np.array(3, np.int16),
    "decoder/num_heads": np.array(2, np.int16),
    "decoder/activation": np.array(3, np.int8),
    "decoder/alignment_heads": np.zeros((2, 2), np.int16),
    "encoder/conv1/weight": draw(hidden, bins, 3),
    "encoder/conv1/bias": draw(hidden),
    "encoder/conv2/weight": draw(hidden, hidden, 3),
    "encoder/conv2/bias": draw(hidden),
    "encoder/position_encodings/encodings": draw(9, hidden),
    "decoder/position_encodings/encodings": draw(11, hidden),
    "decoder/embeddings/weight": draw(17, hidden),
  }
  for half, layers, width in (("encoder", 2, wide), ("decoder", 1, wide + 2)):
    norms = [f"{half}/layer_norm"]
    for index in range(layers):
      layer = f"{half}/layer_{index}"
      linears = {"self_attention/linear_0": (3 * hidden, hidden), "self_attention/linear_1": (hidden, hidden),
                 "ffn/linear_0": (width, hidden), "ffn/linear_1": (hidden, width)}  # fmt: skip
      norms += [f"{layer}/self_attention/layer_norm", f"{layer}/ffn/layer_norm"]
      if half == "decoder":
        norms.append(f"{layer}/attention/layer_norm")
        linears |= {"attention/linear_0": (hidden, hidden), "attention/linear_1": (2 * hidden, hidden),
                    "attention/linear_2": (hidden, hidden)}  # fmt: skip
      for name, shape in linears.items():
        found[f"{layer}/{name}/weight"], bias = draw(*shape), draw(shape[0])
        if name == "self_attention/linear_0":
          bias[hidden : 2 * hidden] = 0
        if name == "attention/linear_1":
          bias[:hidden] = 0
        found[f"{layer}/{name}/bias"] = bias
    found |= {f"{name}/{leaf}": draw(hidden) for name in norms for leaf in ("gamma", "beta")}
  return found


def folder(path, content):
  path.mkdir()
  (path / "model.bin").write_bytes(content)
  added = [{"id": index, "content": name} for name, index in TOKENS.items()]
  (path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
  (path / "config.json").write_text(json.dumps({"suppress_ids": [1, 2], "suppress_ids_begin": [3], "lang_ids": [9]}))
  return path


def test_a_folder_with_every_tensor_in_its_place(tmp_path):
  given = variables()
  source = folder(tmp_path / "ct2", written(given))
  assert ctranslate2.is_ctranslate2(source)
  made = ctranslate2.whisper_folder(source, tmp_path / "cache")
  assert ctranslate2.whisper_folder(source, tmp_path / "cache") == made and not ctranslate2.is_ctranslate2(made)
  tensors, config = load_file(made / "model.safetensors"), read_config(made)
  first = "model.encoder.layers.1.self_attn"
  fused = given["encoder/layer_1/self_attention/linear_0/weight"]
  np.testing.assert_array_equal(tensors[f"{first}.k_proj.weight"], fused[6:12])
  np.testing.assert_array_equal(
    tensors[f"{first}.v_proj.bias"], given["encoder/layer_1/self_attention/linear_0/bias"][12:]
  )
  np.testing.assert_array_equal(
    tensors["model.decoder.layers.0.encoder_attn.v_proj.weight"],
    given["decoder/layer_0/attention/linear_1/weight"][6:],
  )
  assert f"{first}.k_proj.bias" not in tensors
  assert sum(one.size for one in tensors.values()) == sum(leaf.size for leaf in _leaves(from_config(config).params)), (
    "all that the model has"
  )
  assert (config["encoder_layers"], config["decoder_layers"], config["num_mel_bins"]) == (2, 1, 5)
  assert (config["encoder_attention_heads"], config["decoder_attention_heads"]) == (3, 2)
  generation = json.loads((made / "generation_config.json").read_text())
  assert generation["suppress_tokens"] == [1, 2] and generation["no_timestamps_token_id"] == 12
  assert generation["is_multilingual"] is False


def _leaves(tree):
  return [one for value in tree.values() for one in (_leaves(value) if isinstance(value, dict) else [value])]


WHOLE = written(variables())


@pytest.mark.parametrize(
  ("content", "said"),
  [
    (b"", "model.bin is damaged"),
    (WHOLE[:-200], "model.bin is damaged: it ends too early"),
    (WHOLE[:40], "model.bin is damaged"),
    (written({}, version=7), "version 7 of CTranslate2's format; expected 6"),
    (written({}, name="TransformerSpec"), "holds 'TransformerSpec'; expected WhisperSpec"),
    (written({"encoder/conv1/weight": np.zeros((2, 2), np.int8)}), "encoder/conv1/weight is quantised"),
    (written({"encoder/what/weight": np.zeros((2, 2), np.float16)}), "encoder/what/weight .* is no part of a Whisper"),
    (written({"encoder/layer_0/self_attention/linear_0/bias": np.ones(6, np.float16)}), "keys have a bias"),
    (written({}), "has no model.decoder.embed_tokens.weight"),
  ],
)
def test_what_is_no_whisper_takes_one_line(tmp_path, content, said):
  with pytest.raises(UserError, match=said):
    ctranslate2.whisper_folder(folder(tmp_path / "ct2", content), tmp_path / "cache")
