"""GGUF files (llama.cpp's format) of LLaMA-like models: config, weights and tokenizer, read as a Hugging Face folder's.

A folder may hold a config.json and one *.gguf instead of *.safetensors; `prepare_folder` makes one from a lone file.
Quantised tensors are dequantised to float32 one at a time. For the architecture "llama" GGUF stores the rows of q and k
and their biases in pairs of neighbours (r₀ r_D/2 r₁ ...); Hugging Face's order is the halves one after the other.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.errors import UserError, nearest
from peftjax.kinds import FLAG, NAME, Kind, list_of, number, whole
from peftjax.models import gguf_pieces
from peftjax.models.config_fields import EPSILON, FEATURES, HEADS, LAYERS, POSITIONS, POSITIVE
from peftjax.models.gguf_file import MOST_ENTRIES, GGUFFile
from peftjax.models.tensor_files import BLOCK_BYTES, Block
from peftjax.outputs import new_folder

# general.architecture -> (model_type, class, whether q and k rows are interleaved)
_ARCHITECTURES = {
  "llama": ("llama", "LlamaForCausalLM", True),
  "qwen2": ("qwen2", "Qwen2ForCausalLM", False),
  "qwen3": ("qwen3", "Qwen3ForCausalLM", False),
  "gemma3": ("gemma3_text", "Gemma3ForCausalLM", False),
}
_LAYER_NAMES = {
  "input_layernorm": "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "post_attention_layernorm": "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
}
# Gemma 3 has a norm on either side of attention and MLP.
_GEMMA3_NAMES = {
  **_LAYER_NAMES,
  "post_attention_layernorm": "post_attention_norm",
  "pre_feedforward_layernorm": "ffn_norm",
  "post_feedforward_layernorm": "post_ffw_norm",
}
_GEMMA3_LAYERS_OF_27B = 62
_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
# Fields that llama.cpp acts on and config.json has no entry for here -> kind, and the only value that can be read.
_HEAD = "head_dim"  # the size of a head
_CAP, _CAPPED = "final_logit_softcapping", number(0.0, 1e9)
_ONLY: dict[str, tuple[Kind, Any]] = {
  "attention.causal": (FLAG, True),
  "attention.value_length": (FEATURES, _HEAD),
  "rope.dimension_count": (FEATURES, _HEAD),
  "rope.scale_linear": (POSITIVE, 1.0),
  "rope.scaling.attn_factor": (POSITIVE, 1.0),
  "rope.scaling.yarn_ext_factor": (POSITIVE, 1.0),
  "rope.scaling.yarn_attn_factor": (POSITIVE, 1.0),
  "rope.scaling.yarn_beta_fast": (POSITIVE, 32.0),
  "rope.scaling.yarn_beta_slow": (POSITIVE, 1.0),
  _CAP: (_CAPPED, 0.0),
}
_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens
_ID = whole(0, 2**31 - 1)
_SCORE = number(-1e9, 1e9)

# tokenizer.ggml.pre -> how text is split before byte-level BPE; Hugging Face's names of the steps.
_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS: dict[str, list[dict[str, Any]]] = {
  "smollm": [_DIGITS, _BYTES],
  "gpt-2": [_BYTES],
  "default": [_BYTES],
  "llama-bpe": [{"split": _LLAMA3}],
  "qwen2": [{"split": _QWEN2}],
}


class GGUFCheckpoint:
  """The tensors of a GGUF file under Hugging Face's keys, dequantised when read."""

  def __init__(self, path: Path):
    self._file = GGUFFile(path)
    model_type, _, self._interleaved = _architecture(self._file)
    self._adds_one = model_type == "gemma3_text"  # to the weights of norms, which Hugging Face stores less one
    self._heads = {}
    if self._interleaved:
      heads = self._file.field("llama.attention.head_count", HEADS)
      self._heads = {"q_proj": heads, "k_proj": self._file.field("llama.attention.head_count_kv", HEADS, heads)}
    if "rope_freqs.weight" in self._file.tensors:
      raise UserError(
        f"{path}: its rope frequencies are a table, which config.json cannot say; use the original weights"
      )
    layer_names = _GEMMA3_NAMES if self._adds_one else _LAYER_NAMES
    self._names = {_hugging_face_key(name, layer_names): name for name in self._file.tensors}

  def keys(self) -> list[str]:
    """All tensor names."""
    return list(self._names)

  def shape(self, key: str) -> tuple[int, ...]:
    """A tensor's shape, without reading it."""
    return self._file.tensors[self._names[key]].shape

  def blocks(self, key: str) -> Iterator[Block]:
    """A tensor's rows as float32, up to `BLOCK_BYTES` of them at a time, but q and k as a whole."""
    name, shape = self._names[key], self.shape(key)
    stored, kind = self._file.stored(name), self._file.tensors[name].kind
    is_pairs = self._interleaved and key.rpartition(".")[0].endswith((".q_proj", ".k_proj"))
    width = 4 * math.prod(shape[1:])
    step = shape[0] if is_pairs or len(shape) == 1 else max(1, BLOCK_BYTES // width)
    for start in range(0, shape[0], step):
      rows = slice(start, min(start + step, shape[0]))
      block = self._floats(key, stored if len(shape) == 1 else stored[rows], kind).reshape(-1, *shape[1:])
      if is_pairs:
        block = self._halves(key, block)
      if self._adds_one and key.endswith("norm.weight"):
        block = block - 1
      yield rows, block
    self._forget()

  def _floats(self, key: str, stored: np.ndarray, kind: int) -> np.ndarray:
    from gguf import GGMLQuantizationType, dequantize

    quantization = GGMLQuantizationType(kind)
    try:
      return np.asarray(dequantize(np.ascontiguousarray(stored), quantization), np.float32)
    except NotImplementedError:
      raise UserError(f"{self._file.path}: {key!r} is {quantization.name}, which cannot be read as floats") from None

  def _halves(self, key: str, rows: np.ndarray) -> np.ndarray:
    heads = self._heads[key.split(".")[-2]]
    if len(rows) % (2 * heads):
      raise UserError(
        f"{self._file.path}: the {len(rows)} rows of {key!r} do not divide into pairs among {heads} heads"
      )
    return halves_of(rows, heads)

  def _forget(self) -> None:
    """Gives the pages of the mapped file back, so that they do not pile up."""
    if hasattr(mmap, "MADV_DONTNEED"):
      self._file.data._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def halves_of(rows: np.ndarray, heads: int) -> np.ndarray:
  """Each head's rows from interleaved (0, D/2, 1, D/2 + 1, ...) to halves (0, 1, ..., D/2, D/2 + 1, ...) order."""
  pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
  return np.ascontiguousarray(np.swapaxes(pairs, 1, 2)).reshape(rows.shape)


def read_config(path: Path) -> dict[str, Any]:
  """What a config.json for the file's model would say.

  Raises:
    UserError: no GGUF file, of an architecture that is not known, or a field is missing, of another kind, or of a
      value that only llama.cpp acts on.
  """
  file = GGUFFile(path)
  model_type, class_name, _ = _architecture(file)
  name = file.field("general.architecture", NAME)

  def field(key: str, kind: Kind, *default: Any) -> Any:
    return file.field(f"{name}.{key}", kind, *default)

  if "token_embd.weight" not in file.tensors:
    raise UserError(f"{path}: no tensor 'token_embd.weight'; {nearest('token_embd.weight', file.tensors, 1)}")
  heads, width = field("attention.head_count", HEADS), field("embedding_length", FEATURES)
  positions = field("context_length", POSITIONS)
  config = {
    "architectures": [class_name],
    "model_type": model_type,
    "vocab_size": file.tensors["token_embd.weight"].shape[0],
    "hidden_size": width,
    "intermediate_size": field("feed_forward_length", FEATURES),
    "num_hidden_layers": field("block_count", LAYERS),
    "num_attention_heads": heads,
    "num_key_value_heads": field("attention.head_count_kv", HEADS, heads),
    "head_dim": field("attention.key_length", FEATURES, width // heads),
    "max_position_embeddings": positions,
    "rms_norm_eps": round(field("attention.layer_norm_rms_epsilon", EPSILON), 12),
    "rope_theta": field("rope.freq_base", POSITIVE, 10000.0),
    "tie_word_embeddings": "output.weight" not in file.tensors,
    "hidden_act": "silu",
  }
  if model_type == "llama" and any(one.endswith(".attn_q.bias") for one in file.tensors):
    config["attention_bias"] = True
  if model_type == "gemma3_text":
    config = _of_gemma3(config, field)
  for key, (kind, only) in _ONLY.items():
    wanted = config["head_dim"] if only is _HEAD else only
    if key not in config and (found := field(key, kind, wanted)) != wanted:
      raise UserError(f"{path}: {name}.{key}={found}: only {wanted} can be read; use the original weights")
  if (scaling := field("rope.scaling.type", NAME, "none")) != "none":
    config["rope_scaling"] = {
      "rope_type": scaling,
      "factor": field("rope.scaling.factor", POSITIVE, 1.0),
      "original_max_position_embeddings": field("rope.scaling.original_context_length", POSITIONS, positions),
    }
  for ours, theirs in (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")):
    config[ours] = file.field(f"tokenizer.ggml.{theirs}_token_id", _ID, None)
  return config


def _of_gemma3(config: dict[str, Any], field: Callable[..., Any]) -> dict[str, Any]:
  """With what Gemma 3's config.json says besides: its windows, and the two bases of its rope."""
  heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
  scale = config["hidden_size"] // heads if layers == _GEMMA3_LAYERS_OF_27B else config["head_dim"]
  return {
    **{name: value for name, value in config.items() if name != "hidden_act"},
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_theta": field("rope.freq_base", POSITIVE, 1e6),
    "rope_local_base_freq": field("rope.freq_base_swa", POSITIVE, 1e4),
    "sliding_window": field("attention.sliding_window", FEATURES),
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": float(scale),
    "attn_logit_softcapping": None,
    _CAP: field(_CAP, _CAPPED, 0.0) or None,
  }


def tokenizer_files(path: Path) -> dict[str, dict[str, Any]]:
  """{"tokenizer.json": ..., "tokenizer_config.json": ...} of the tokenizer and chat template within a GGUF file.

  Raises:
    UserError: a tokenizer that is neither byte-level BPE nor SentencePiece's BPE, or that splits text in a way that is
      not known; a field is missing or of another kind.
  """
  file = GGUFFile(path)
  kind, split = (file.field(f"tokenizer.ggml.{name}", NAME, "") for name in ("model", "pre"))
  if kind not in ("gpt2", "llama"):
    raise UserError(
      f"{path}: its tokenizer is {kind!r}; byte-level BPE (gpt2) and SentencePiece's (llama) can be read; bring "
      "tokenizer.json"
    )
  if kind == "gpt2" and split not in _SPLITS:
    raise UserError(f"{path}: unknown way to split text {split!r}; {nearest(split, _SPLITS)}")
  tokens = file.field("tokenizer.ggml.tokens", list_of(NAME, MOST_ENTRIES))
  kinds = file.field("tokenizer.ggml.token_type", list_of(whole(0, 255), MOST_ENTRIES))
  merges = []
  if kind == "gpt2":
    merges = [merge.split(" ") for merge in file.field("tokenizer.ggml.merges", list_of(NAME, MOST_ENTRIES))]
  if len(tokens) != len(kinds):
    raise UserError(f"{path}: tokenizer.ggml.token_type has {len(kinds)} entries for {len(tokens)} tokens")
  if len(set(tokens)) != len(tokens):
    raise UserError(f"{path}: tokenizer.ggml.tokens has a token twice")
  if any(len(parts) != 2 for parts in merges):
    raise UserError(f"{path}: tokenizer.ggml.merges: expected two tokens with a space between them in each entry")
  added = [
    {"id": index, "content": token, "special": kind == _CONTROL, "single_word": False, "lstrip": False,
     "rstrip": False, "normalized": False}
    for index, (token, kind) in enumerate(zip(tokens, kinds))
    if kind in (_CONTROL, _USER_DEFINED)
  ]  # fmt: skip
  model = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": split == "llama-bpe",
    "vocab": {token: index for index, token in enumerate(tokens)},
    "merges": merges,
  }
  steps: dict[str, Any] = {"normalizer": None, "decoder": {**_BYTES, "add_prefix_space": True}}
  if kind == "llama":
    scores = file.field("tokenizer.ggml.scores", list_of(_SCORE, MOST_ENTRIES))
    if len(scores) != len(tokens):
      raise UserError(f"{path}: tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens")
    model = gguf_pieces.model_of(tokens, kinds, scores)
    steps = gguf_pieces.steps_of(file.field("tokenizer.ggml.add_space_prefix", FLAG, True))
  else:
    steps["pre_tokenizer"] = _pre_tokenizer(_SPLITS[split])
  starts = file.field("tokenizer.ggml.add_bos_token", FLAG, kind == "llama")
  settings: dict[str, Any] = {"add_bos_token": starts}
  for name, theirs in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")):
    index = file.field(f"tokenizer.ggml.{theirs}_token_id", whole(0, len(tokens) - 1), None)
    if index is not None:
      settings[name] = tokens[index]
  if settings["add_bos_token"] and "bos_token" not in settings:
    raise UserError(f"{path}: tokenizer.ggml.add_bos_token, and no tokenizer.ggml.bos_token_id says which it is")
  if template := file.field("tokenizer.chat_template", NAME, ""):
    settings["chat_template"] = template
  start = settings.get("bos_token", "")
  tokenizer = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": added,
    **steps,
    "post_processor": _post_processor(start, tokens.index(start)) if settings["add_bos_token"] else None,
    "model": model,
  }
  return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}


def file_in(folder: Path) -> Path:
  """The GGUF file of a folder that holds one.

  Raises:
    UserError: there are several: other quantisations, or the parts of one that is split.
  """
  file, *others = sorted(folder.glob("*.gguf"))
  if others:
    raise UserError(f"{folder} has {1 + len(others)} *.gguf, and one is a model: give its path, such as {file}")
  return file


def prepared_folder(path: Path, cache: Path) -> Path:
  """The model folder of a GGUF file, or of a folder that holds nothing else, made in `cache` the first time."""
  file = path if path.is_file() else file_in(path)
  folder = cache / f"{file.stem}-{_identity(file.resolve())}"
  if not folder.is_dir():
    prepare_folder(file, folder)
  return folder


_HEAD_BYTES = 2**24  # more than the fields and the tokenizer of a file


def _identity(file: Path) -> str:
  """What tells a file from all others: where it is, when it was written, and its first and last bytes."""
  stat = file.stat()
  digest = hashlib.sha256(repr((str(file), stat.st_ino, stat.st_size, stat.st_mtime_ns)).encode())
  with file.open("rb") as stream:
    digest.update(stream.read(_HEAD_BYTES))
    stream.seek(max(0, stat.st_size - 2**16))
    digest.update(stream.read())
  return digest.hexdigest()[:32]


def prepare_folder(path: Path, folder: Path) -> None:
  """Makes a model folder of a GGUF file: config.json, the tokenizer's files, and the file, linked if possible."""
  files = {"config.json": read_config(path), **tokenizer_files(path)}
  with new_folder(folder) as temporary:
    for name, content in files.items():
      (temporary / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    try:
      os.link(path.resolve(), temporary / path.name)
    except OSError:
      shutil.copyfile(path, temporary / path.name)


def _pre_tokenizer(steps: list[dict[str, Any]]) -> dict[str, Any]:
  if "split" not in steps[0]:
    return {"type": "Sequence", "pretokenizers": steps}
  split = {"type": "Split", "pattern": {"Regex": steps[0]["split"]}, "behavior": "Isolated", "invert": False}
  return {"type": "Sequence", "pretokenizers": [split, {**_BYTES, "use_regex": False}]}


def _post_processor(token: str, index: int) -> dict[str, Any]:
  start = {"SpecialToken": {"id": token, "type_id": 0}}
  first, second = ({"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1)))
  return {
    "type": "TemplateProcessing",
    "single": [start, first],
    "pair": [start, first, start, second],
    "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
  }


def _hugging_face_key(name: str, layer_names: Mapping[str, str]) -> str:
  stem, _, leaf = name.rpartition(".")
  for ours, theirs in _NAMES.items():
    if stem == theirs:
      return f"{ours}.{leaf}"
  block, _, part = stem.removeprefix("blk.").partition(".")
  for ours, theirs in layer_names.items():
    if part == theirs:
      return f"model.layers.{block}.{ours}.{leaf}"
  return name


def _architecture(file: GGUFFile) -> tuple[str, str, bool]:
  name = file.field("general.architecture", NAME, "")
  if name not in _ARCHITECTURES:
    raise UserError(f"{file.path}: GGUF architecture {name!r} is not supported; {nearest(name, _ARCHITECTURES)}")
  return _ARCHITECTURES[name]
