"""Whisper as CTranslate2 stores it (`model.bin`, version 6), and a Hugging Face folder from it.

The file is little-endian: u32 version, name of the specification, u32 revision, u32 count of variables; of each its
name, u8 rank, u32 sizes, u8 type, u32 bytes, the bytes; at last u32 count of (alias, name). A text is u16 length and so
many bytes, the last of them zero. Projections that read the same states are one matrix, [out, in], below each other.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.errors import UserError
from peftjax.files import read_json
from peftjax.models.pretrained import CONFIG, WEIGHTS
from peftjax.models.tensor_files import write_tensors
from peftjax.outputs import new_folder

MODEL = "model.bin"
VERSION, SPECIFICATION = 6, "WhisperSpec"
MULTILINGUAL = 51_865  # tokens of the smallest vocabulary with other languages than English
TRAINED_SECONDS, RATE, HOP = 30, 16_000, 160
_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_ACTIVATIONS = {0: "relu", 1: "gelu_new", 2: "swish", 3: "gelu"}
_NORM = {"gamma": "weight", "beta": "bias"}
# Below a layer: CTranslate2's module -> Hugging Face's, or several that stand below each other in one matrix.
_MODULES: dict[str, tuple[str, ...]] = {
  "self_attention/layer_norm": ("self_attn_layer_norm",),
  "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
  "self_attention/linear_1": ("self_attn.out_proj",),
  "attention/layer_norm": ("encoder_attn_layer_norm",),
  "attention/linear_0": ("encoder_attn.q_proj",),
  "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
  "attention/linear_2": ("encoder_attn.out_proj",),
  "ffn/layer_norm": ("final_layer_norm",),
  "ffn/linear_0": ("fc1",),
  "ffn/linear_1": ("fc2",),
}


def is_ctranslate2(folder: Path) -> bool:
  """Whether a folder holds CTranslate2's file and no weights in Hugging Face's format."""
  return (folder / MODEL).is_file() and not any(folder.glob("*.safetensors"))


def whisper_folder(folder: Path, cache: Path) -> Path:
  """The Hugging Face folder of the Whisper in `folder`, made in `cache` the first time.

  Raises:
    UserError: the file holds no Whisper in floats, or is damaged; there is no tokenizer.json beside it.
  """
  file = folder / MODEL
  with file.open("rb") as stream:
    made = cache / f"whisper-{hashlib.file_digest(stream, 'sha256').hexdigest()[:16]}"
  if not made.is_dir():
    variables = read_variables(file)
    tensors = tensors_of(variables, str(file))
    beside = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    tokens = _special_tokens(folder)
    config = config_of(variables, tensors, tokens, str(file))
    texts = {
      CONFIG: config,
      "generation_config.json": generation_of(config, beside, tokens),
      "preprocessor_config.json": _processor(config),
      "tokenizer_config.json": _tokenizer(config),
    }
    with new_folder(made) as temporary:
      write_tensors(temporary / WEIGHTS, tensors)
      (temporary / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
      for name, content in texts.items():
        (temporary / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
  return made


def read_variables(path: Path) -> dict[str, np.ndarray]:
  """Name -> array of all variables of a file.

  Raises:
    UserError: it cannot be read, is of another version or model, or ends too early.
  """
  try:
    content = memoryview(path.read_bytes())
    reader = _Reader(content)
    version = reader.number("I")
    if version != VERSION:
      raise UserError(f"{path}: version {version} of CTranslate2's format; expected {VERSION}")
    if (name := reader.text()) != SPECIFICATION:
      raise UserError(f"{path} holds {name!r:.60}; expected {SPECIFICATION}")
    reader.number("I")
    found = dict(reader.variable() for _ in range(reader.number("I")))
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from None
  except (struct.error, ValueError, KeyError) as error:
    raise UserError(f"{path} is damaged: {error}") from None
  return found


class _Reader:
  def __init__(self, content: memoryview):
    self.content, self.at = content, 0

  def number(self, kind: str) -> int:
    (value,) = struct.unpack_from(f"<{kind}", self.content, self.at)
    self.at += struct.calcsize(f"<{kind}")
    return int(value)

  def text(self) -> str:
    return bytes(self._taken(self.number("H"))).rstrip(b"\0").decode("utf-8")

  def variable(self) -> tuple[str, np.ndarray]:
    name = self.text()
    shape = tuple(self.number("I") for _ in range(self.number("B")))
    dtype = _DTYPES[self.number("B")]
    return name, np.frombuffer(self._taken(self.number("I")), np.dtype(dtype).newbyteorder("<")).reshape(shape)

  def _taken(self, size: int) -> memoryview:
    if self.at + size > len(self.content):
      raise ValueError("it ends too early")
    taken = self.content[self.at : self.at + size]
    self.at += size
    return taken


def tensors_of(variables: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
  """The model's tensors under Hugging Face's names.

  Raises:
    UserError: a variable is not known, weights are quantised, or keys have a bias.
  """
  found: dict[str, np.ndarray] = {}
  for name, array in sorted(variables.items()):
    if not array.ndim or name == "decoder/alignment_heads":  # settings
      continue
    if array.dtype not in (np.float16, np.float32) or name.endswith("_scale"):
      raise UserError(f"{where}: {name} is quantised; expected weights in float16 or float32")
    module, _, leaf = name.rpartition("/")
    half, _, rest = module.partition("/")
    if layer := re.fullmatch(r"layer_(\d+)/(.*)", rest):
      modules = tuple(f"layers.{layer[1]}.{one}" for one in _MODULES.get(layer[2], ()))
    elif rest in ("conv1", "conv2", "layer_norm"):
      modules = (rest,)
    else:
      modules = {"position_encodings": ("embed_positions",), "embeddings": ("embed_tokens",)}.get(rest, ())
    if half not in ("encoder", "decoder") or not modules or len(array) % len(modules):
      raise UserError(f"{where}: {name} {list(array.shape)} is no part of a Whisper that is known")
    leaf = "weight" if leaf == "encodings" else _NORM.get(leaf, leaf)
    for one, part in zip(modules, np.split(array, len(modules))):
      if one.endswith("k_proj") and leaf == "bias":
        if np.any(part):
          raise UserError(f"{where}: {name}: keys have a bias, which Whisper's have not")
        continue
      found[f"model.{half}.{one}.{leaf}"] = np.ascontiguousarray(part)
  return found


def _layers(tensors: Mapping[str, np.ndarray], half: str) -> int:
  return len({name.split(".")[3] for name in tensors if name.startswith(f"model.{half}.layers.")})


def config_of(
  variables: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray], tokens: Mapping[str, int], where: str
) -> dict[str, Any]:
  """config.json, from the shapes and settings.

  Raises:
    UserError: one of them is missing.
  """
  try:
    vocabulary, hidden = tensors["model.decoder.embed_tokens.weight"].shape
    return {
      "architectures": ["WhisperForConditionalGeneration"],
      "model_type": "whisper",
      "vocab_size": vocabulary,
      "d_model": hidden,
      "num_mel_bins": tensors["model.encoder.conv1.weight"].shape[1],
      "encoder_layers": _layers(tensors, "encoder"),
      "decoder_layers": _layers(tensors, "decoder"),
      "encoder_attention_heads": int(variables["encoder/num_heads"]),
      "decoder_attention_heads": int(variables["decoder/num_heads"]),
      "encoder_ffn_dim": len(tensors["model.encoder.layers.0.fc1.weight"]),
      "decoder_ffn_dim": len(tensors["model.decoder.layers.0.fc1.weight"]),
      "activation_function": _ACTIVATIONS[int(variables["decoder/activation"])],
      "max_source_positions": len(tensors["model.encoder.embed_positions.weight"]),
      "max_target_positions": len(tensors["model.decoder.embed_positions.weight"]),
      "bos_token_id": tokens["<|startoftranscript|>"],
      "decoder_start_token_id": tokens["<|startoftranscript|>"],
      "eos_token_id": tokens["<|endoftext|>"],
      "pad_token_id": tokens["<|endoftext|>"],
      "is_encoder_decoder": True,
    }
  except KeyError as error:
    raise UserError(f"{where} has no {error.args[0]}; a Whisper with its tokenizer was expected") from None


def _special_tokens(folder: Path) -> dict[str, int]:
  if not (folder / "tokenizer.json").is_file():
    raise UserError(f"{folder} has no tokenizer.json beside {MODEL}")
  return {str(one["content"]): int(one["id"]) for one in read_json(folder / "tokenizer.json").get("added_tokens", [])}


def generation_of(config: Mapping[str, Any], beside: Mapping[str, Any], tokens: Mapping[str, int]) -> dict[str, Any]:
  """generation_config.json as Hugging Face's Whispers have it, from what stands in CTranslate2's config.json."""
  is_multilingual = config["vocab_size"] >= MULTILINGUAL
  said: dict[str, Any] = {
    "bos_token_id": config["bos_token_id"],
    "decoder_start_token_id": config["decoder_start_token_id"],
    "eos_token_id": config["eos_token_id"],
    "pad_token_id": config["pad_token_id"],
    "max_length": config["max_target_positions"],
    "is_multilingual": is_multilingual,
    "no_timestamps_token_id": tokens.get("<|notimestamps|>"),
    "suppress_tokens": beside.get("suppress_ids"),
    "begin_suppress_tokens": beside.get("suppress_ids_begin"),
    "alignment_heads": beside.get("alignment_heads"),
  }
  if is_multilingual:
    said["lang_to_id"] = {name: index for name, index in tokens.items() if index in set(beside.get("lang_ids", ()))}
    said["task_to_id"] = {
      name: tokens[f"<|{name}|>"] for name in ("transcribe", "translate") if f"<|{name}|>" in tokens
    }
  return {name: value for name, value in said.items() if value is not None}


def _processor(config: Mapping[str, Any]) -> dict[str, Any]:
  return {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "processor_class": "WhisperProcessor",
    "feature_size": config["num_mel_bins"],
    "sampling_rate": RATE,
    "hop_length": HOP,
    "chunk_length": TRAINED_SECONDS,
    "n_fft": 400,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": False,
  }


def _tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
  end = "<|endoftext|>"
  return {
    "tokenizer_class": "WhisperTokenizer",
    "processor_class": "WhisperProcessor",
    "bos_token": end,
    "eos_token": end,
    "unk_token": end,
    "pad_token": end,
    "model_max_length": config["max_target_positions"],
  }
