"""Folders and files of models and adapters on inputs that nobody meant them for: config.json over real small folders,
generation_config.json, safetensors and their index, adapter_config.json and peftjax.json, GGUF.
"""

from __future__ import annotations

import functools
import json
import shutil
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

import peftjax
from peftjax import loading, text_generation
from peftjax.interop import peft
from peftjax.methods import HRA, IA3, LoRA, Prefix, Prompt, PTuning, TrainableTokens, VeRA
from peftjax.models.generation_config import stated
from peftjax.models.gguf import GGUFCheckpoint, read_config, tokenizer_files
from peftjax.models.pretrained import weight_files
from peftjax.models.tensor_files import Checkpoint
from tests.fuzz.test_runs import json_bytes
from tests.fuzz.test_text import VALUES, mangled

SMALL = {"vocab_size": 19, "initializer_range": 0.02}
CONFIGS: dict[str, dict[str, Any]] = {
  "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
            "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "eos_token_id": 1},
  "bert": {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 6,
           "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 10, "max_position_embeddings": 9,
           "id2label": {"0": "a", "1": "b"}, "hidden_act": "gelu"},
  "gpt2": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 6, "n_layer": 1, "n_head": 2,
           "n_positions": 9, "scale_attn_weights": True},
  "t5": {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 6, "d_kv": 2, "d_ff": 10,
         "num_layers": 1, "num_heads": 3, "feed_forward_proj": "relu", "decoder_start_token_id": 0},
}  # fmt: skip
METHODS = {
  "lora": LoRA(rank=2), "ia3": IA3(), "vera": VeRA(rank=2), "hra": HRA(rank=2),
  "prompt": Prompt(num_virtual_tokens=2), "prefix": Prefix(num_virtual_tokens=2),
  "p_tuning": PTuning(num_virtual_tokens=2), "tokens": TrainableTokens(token_indices=(3, 5)),
}  # fmt: skip


def counts(quick: int, full: int) -> list[Any]:
  return [pytest.param(quick, id="quick"), pytest.param(full, id="all", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
  """Makes a small model of a family."""

  @functools.cache
  def made(name: str) -> Path:
    folder = tmp_path_factory.mktemp("models") / name
    loading.initialise(loading.from_config({**SMALL, **CONFIGS[name]}), jax.random.key(0)).save(folder)
    return folder

  return made


@st.composite
def configs(draw: st.DrawFn) -> tuple[str, bytes]:
  name = draw(st.sampled_from(sorted(CONFIGS)))
  config = {**SMALL, **CONFIGS[name]}
  if draw(st.booleans()):  # a field of another family, or one that there is not
    other = draw(st.sampled_from(sorted({field for one in CONFIGS.values() for field in one} | {"dtype", "x"})))
    config[other] = draw(VALUES)
  return name, draw(json_bytes(config))


@pytest.mark.parametrize("count", counts(60, 6_000))
def test_config_json_of_models(fuzz, folder_of, tmp_path, count):
  """Over the weights of a real folder: most that is taken implies other shapes."""
  for name in CONFIGS:
    shutil.copytree(folder_of(name), tmp_path / name)

  def act(given: tuple[str, bytes]) -> None:
    name, content = given
    (tmp_path / name / "config.json").write_bytes(content)
    peftjax.load(tmp_path / name)

  for name in CONFIGS:  # what is traced for the first time takes longer
    peftjax.load(tmp_path / name)
  found = fuzz("config.json of models", configs(), act, count)
  assert found["refused"] > 0 and found["ok"] > 0


GENERATION = {
  "eos_token_id": [1, 2], "bos_token_id": 0, "pad_token_id": 0, "max_length": 20, "do_sample": False, "top_k": 5,
  "temperature": 0.5, "repetition_penalty": 1.5, "min_length": 2, "suppress_tokens": [1], "num_beams": 1,
}  # fmt: skip


@pytest.mark.parametrize("count", counts(150, 8_000))
def test_generation_config_json(fuzz, tmp_path, count):
  flags = SimpleNamespace(max_new_tokens="3")

  def act(content: bytes) -> None:
    (tmp_path / "generation_config.json").write_bytes(content)
    found = text_generation.sampling_of(flags, stated(tmp_path, {"eos_token_id": 1}), 4, pad_id=0)
    assert found.max_new_tokens == 3

  fuzz("generation_config.json", json_bytes(GENERATION), act, count)


@st.composite
def tensors(draw: st.DrawFn, header: dict[str, Any], body: bytes) -> bytes:
  content = draw(json_bytes(header))
  length = len(content) if draw(st.integers(0, 4)) else draw(st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1]))
  whole = struct.pack("<Q", length) + content + body
  return draw(mangled(whole)) if draw(st.integers(0, 3)) == 0 else whole


@pytest.mark.parametrize("count", counts(150, 12_000))
def test_safetensors(fuzz, folder_of, tmp_path, count):
  whole = (folder_of("llama") / "model.safetensors").read_bytes()
  length = int.from_bytes(whole[:8], "little")
  header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
  path = tmp_path / "model.safetensors"

  def act(content: bytes) -> None:
    path.write_bytes(content)
    checkpoint = Checkpoint([path])
    for key in checkpoint.keys():
      assert checkpoint.read(key).shape == checkpoint.shape(key)

  assert fuzz("safetensors", tensors(header, body), act, count)["refused"] > 0


@pytest.mark.parametrize("count", counts(150, 12_000))
def test_index_of_safetensors(fuzz, folder_of, tmp_path, count):
  shutil.copyfile(folder_of("bert") / "model.safetensors", tmp_path / "a.safetensors")
  keys = Checkpoint([tmp_path / "a.safetensors"]).keys()
  index: dict[str, Any] = {"metadata": {"total_size": 9}, "weight_map": dict.fromkeys(keys, "a.safetensors")}

  def act(content: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    found = weight_files(tmp_path)
    assert all(path.resolve().parent == tmp_path.resolve() for path in found)
    Checkpoint(found)

  names = ("../x.safetensors", "/x", "b.safetensors", "a")
  odd = st.sampled_from([{"weight_map": {**index["weight_map"], "b": name}} for name in names])
  good = st.just(json.dumps(index).encode())
  found = fuzz("index of safetensors", json_bytes(index) | good | odd.map(json.dumps).map(str.encode), act, count)
  assert found["refused"] > 0 and found["ok"] > 0


ADAPTERS: dict[str, list[Any]] = {
  "alpha_pattern": [{"v": 1e300}],
  "bias": ["all"],
  "encoder_hidden_size": [10**9],
  "init_lora_weights": ["pissa"],
  "layers_pattern": ["(((.)*)*)*x", "layers"],
  "layers_to_transform": [[0], 10**9],
  "modules_to_save": [["lm_head"], ["(", "embed_tokens"]],
  "num_virtual_tokens": [10**9, 3],
  "r": [10**7, 2**31 - 1, 1],
  "rank_pattern": [{"(.*)*q_proj": 10**8}, {"q_proj": 2}],
  "target_modules": [["q_proj"], ".*(q|v)_proj", "(([a-z_.0-9])+)+!", "(", "(?:.*?){30}q_proj"],
  "token_dim": [10**9],
  "token_indices": [[10**9], [18]],
  "trainable_token_indices": [[1, 2], {"embed_tokens": [99]}],
  "use_dora": [True],
}


@st.composite
def adapters(draw: st.DrawFn, good: dict[str, dict[str, Any]]) -> tuple[str, bytes, bytes | None]:
  name = draw(st.sampled_from(sorted(good)))
  config = dict(good[name]["adapter_config.json"])
  for key in draw(st.lists(st.sampled_from(sorted(ADAPTERS)), max_size=2)):
    config[key] = draw(st.sampled_from(ADAPTERS[key]))
  ours = draw(json_bytes(good[name]["peftjax.json"])) if draw(st.booleans()) else None
  return name, draw(json_bytes(config)), ours


@pytest.mark.parametrize("count", counts(60, 6_000))
def test_adapter_folders(fuzz, folder_of, tmp_path, count):
  base = peftjax.load(folder_of("llama"))
  good: dict[str, dict[str, Any]] = {}
  for name, method in METHODS.items():
    base.add(method, jax.random.key(1)).save_adapter(tmp_path / name)
    files = ("adapter_config.json", "peftjax.json")
    good[name] = {file: json.loads((tmp_path / name / file).read_text()) for file in files}

  def act(given: tuple[str, bytes, bytes | None]) -> None:
    name, config, ours = given
    (tmp_path / name / "adapter_config.json").write_bytes(config)
    path = tmp_path / name / "peftjax.json"
    path.unlink(missing_ok=True)
    if ours is not None:
      path.write_bytes(ours)
    peft.load(base, tmp_path / name)

  for name in METHODS:
    peft.load(base, tmp_path / name)
  found = fuzz("adapter folders", adapters(good), act, count)
  assert found["refused"] > 0 and found["ok"] > 0


@pytest.mark.parametrize("count", counts(60, 6_000))
def test_adapters_of_wrapped_models(fuzz, tmp_path, count):
  leaves = {"q": np.ones((5, 3), np.float32), "out": np.ones((3, 2), np.float32)}
  base = peftjax.wrap(lambda params, x: x @ params["q"] @ params["out"], leaves, {"x": np.ones((1, 5), np.float32)})
  base.add(LoRA(rank=2, targets=("q",)), jax.random.key(1)).save_adapter(tmp_path)
  good = json.loads((tmp_path / "adapter.json").read_text())

  def act(content: bytes) -> None:
    (tmp_path / "adapter.json").write_bytes(content)
    base.load_adapter(tmp_path)

  base.load_adapter(tmp_path)
  found = fuzz("adapters of wrapped models", json_bytes(good) | st.just(json.dumps(good).encode()), act, count)
  assert found["refused"] > 0 and found["ok"] > 0


def small_gguf(
  path: Path, add: Callable[[gguf.GGUFWriter], None] = lambda _: None, heads: Iterable[int] = (2, 1)
) -> bytes:
  """A LLaMA of one layer, with a byte-level tokenizer of five tokens.

  Args:
    add: adds fields or tensors.
    heads: of q, of k.
  """
  queries, keys = heads
  writer = gguf.GGUFWriter(path, "llama")
  numbers = {"block_count": 1, "embedding_length": 8, "feed_forward_length": 32, "attention.head_count": queries,
             "attention.head_count_kv": keys, "context_length": 16}  # fmt: skip
  for key, value in numbers.items():
    writer.add_uint32(f"llama.{key}", value)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("gpt-2")
  writer.add_token_list(["a", "b", "ab", "<s>", "</s>"])
  writer.add_token_types([1, 1, 1, 3, 3])
  writer.add_token_merges(["a b"])
  writer.add_bos_token_id(3)
  writer.add_eos_token_id(4)
  shapes = {"token_embd": (5, 8), "output_norm": (8,), "blk.0.attn_q": (8, 8), "blk.0.attn_k": (4, 8)}
  for name, shape in shapes.items():
    writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
  kind = gguf.GGMLQuantizationType.Q8_0
  writer.add_tensor("blk.0.ffn_down.weight", gguf.quantize(np.ones((8, 32), np.float32), kind), raw_dtype=kind)
  add(writer)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path.read_bytes()


NUMBERS = (("<I", 2**32 - 1), ("<I", 0), ("<I", 7), ("<Q", 2**63), ("<Q", 2**40), ("<B", 9))


@st.composite
def spoiled(draw: st.DrawFn, content: bytes) -> bytes:
  """Bytes with some numbers in them exchanged for others, or mangled."""
  for _ in range(draw(st.integers(1, 3))):
    at = draw(st.integers(0, len(content) - 8))
    form, number = draw(st.sampled_from(NUMBERS))
    packed = struct.pack(form, number)
    content = content[:at] + packed + content[at + len(packed) :]
  return draw(mangled(content)) if draw(st.integers(0, 3)) == 0 else content


def reading(path: Path) -> Callable[[bytes], None]:
  def act(content: bytes) -> None:
    path.write_bytes(content)
    read_config(path)
    checkpoint = GGUFCheckpoint(path)
    for key in checkpoint.keys():
      for _ in checkpoint.blocks(key):
        pass
    tokenizer_files(path)

  return act


@pytest.mark.parametrize("count", counts(150, 12_000))
def test_gguf(fuzz, tmp_path, count):
  good = small_gguf(tmp_path / "good.gguf")
  found = fuzz("GGUF files", spoiled(good) | st.just(good), reading(tmp_path / "odd.gguf"), count)
  assert found["refused"] > 0 and found["ok"] > 0
