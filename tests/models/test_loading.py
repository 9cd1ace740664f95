"""What loading costs in memory, measured in a process of its own, and what safetensors files are refused."""

from __future__ import annotations

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from peftjax.errors import UserError
from peftjax.loading import from_config, load
from peftjax.models import pretrained
from peftjax.models.family import checkpoint_axes, checkpoint_key, expanded
from peftjax.models.gguf import _LAYER_NAMES, _NAMES
from peftjax.models.tensor_files import BLOCK_BYTES, Checkpoint

CONFIG = {
  "model_type": "llama",
  "vocab_size": 9001,
  "hidden_size": 512,
  "intermediate_size": 1800,
  "num_hidden_layers": 11,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "head_dim": 64,
  "max_position_embeddings": 64,
  "tie_word_embeddings": False,
}
MEASURED = """
import json, sys
import jax, jax.numpy as jnp
from peftjax.loading import load
jnp.ones(3).sum().block_until_ready()
def peak():  # of this program alone: getrusage's survives exec, and would be the parent's at first
  (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
  return int(line.split()[1]) * 1024
before = peak()
model = load(sys.argv[1], dtype=sys.argv[2])
after = peak()
kernel = model.params["model"]["layers"]["mlp"]["down_proj"]["kernel"]
head = model.params["lm_head"]["kernel"]
size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
found = {"share": (after - before) / size, "bytes": size}
found["values"] = [float(kernel[3, 5, 7]), float(head[500, 9000])]
print(json.dumps(found))
"""


def tensors_of(model, layout):
  """Torch's names and layouts: every element is its flat index in the tensor, scaled, plus the tensor's place."""
  for index, (name, (path, at)) in enumerate(expanded(model.params, model.stacks).items()):
    leaf = model.params
    for part in path.split("."):
      leaf = leaf[part]
    shape = leaf.shape if at is None else leaf.shape[1:]
    shape = shape if checkpoint_axes(model.family, name, len(shape)) is None else shape[::-1]
    value = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) % 97 / 97 + index % 7
    yield checkpoint_key(model.family, name), value.astype(layout)


def write_shards(folder, model, layout=np.float32):
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(CONFIG))
  tensors = list(tensors_of(model, layout))
  index = {}
  for shard in range(3):
    name = f"model-{shard}.safetensors"
    held = dict(tensors[shard::3])
    save_file(held, str(folder / name))
    index |= dict.fromkeys(held, name)
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
  return dict(tensors)


def write_gguf(folder, model):
  import gguf

  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(CONFIG))
  writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
  writer.add_head_count(8)
  writer.add_head_count_kv(4)
  tensors = dict(tensors_of(model, np.float32))
  for key, value in tensors.items():
    stem = key.removesuffix(".weight")
    name = _NAMES.get(stem)
    if name is None:
      _, _, layer, rest = stem.split(".", 3)
      name = f"blk.{layer}.{_LAYER_NAMES[rest]}"
    writer.add_tensor(f"{name}.weight", value.astype(np.float16) if value.ndim == 2 else value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return tensors


def measured(folder, dtype):
  command = [sys.executable, "-c", MEASURED, str(folder), dtype]
  return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


@pytest.mark.parametrize(
  ("kind", "dtype"),
  [("shards", "float32"), ("shards-bfloat16", "float32"), ("shards", "bfloat16"), ("gguf", "float32")],
)
def test_peak_memory_is_little_more_than_the_model(kind, dtype, tmp_path):
  model = from_config(CONFIG)
  if kind == "gguf":
    tensors = write_gguf(tmp_path / "model", model)
  else:
    tensors = write_shards(tmp_path / "model", model, ml_dtypes.bfloat16 if "bfloat16" in kind else np.float32)
  found = measured(tmp_path / "model", dtype)
  assert found["bytes"] > (80 if dtype == "bfloat16" else 160) * 1e6
  assert 0.9 <= found["share"] <= 1.3
  expected = [tensors["model.layers.3.mlp.down_proj.weight"][7, 5], tensors["lm_head.weight"][9000, 500]]
  np.testing.assert_allclose(found["values"], np.asarray(expected, np.float32), rtol=1e-2)


def test_blocks_make_the_whole_tensor(tmp_path):
  rows = 2 * BLOCK_BYTES // (4 * 1000) + 17
  value = np.random.default_rng(0).normal(size=(rows, 1000)).astype(np.float32)
  half = value[:5, :3].astype(ml_dtypes.bfloat16)
  save_file({"big": value, "half": half, "one": np.asarray(3.5, np.float32)}, str(tmp_path / "a.safetensors"))
  checkpoint = Checkpoint([tmp_path / "a.safetensors"])
  assert len(list(checkpoint.blocks("big"))) == 3
  np.testing.assert_array_equal(checkpoint.read("big"), value)
  np.testing.assert_array_equal(checkpoint.read("half"), half)
  assert checkpoint.read("one").shape == () and checkpoint.read("one") == 3.5


def test_a_file_that_is_cut_or_has_no_header_is_refused(tmp_path):
  save_file({"a": np.zeros((7, 3), np.float32)}, str(tmp_path / "a.safetensors"))
  whole = (tmp_path / "a.safetensors").read_bytes()
  for name, content in {"cut": whole[:-5], "head": whole[:20], "empty": b"", "text": b"version https://" * 4}.items():
    (tmp_path / f"{name}.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}\.safetensors is no whole safetensors file"):
      Checkpoint([tmp_path / f"{name}.safetensors"])


def test_a_missing_shard_is_named(tmp_path):
  small = {**CONFIG, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
  small |= {"vocab_size": 31, "intermediate_size": 20, "num_hidden_layers": 2}
  write_shards(tmp_path / "model", from_config(small))
  (tmp_path / "model" / "config.json").write_text(json.dumps(small))
  assert load(tmp_path / "model").params["lm_head"]["kernel"].shape == (16, 31)
  (tmp_path / "model" / "model-1.safetensors").unlink()
  with pytest.raises(UserError, match=r"model-1\.safetensors"):
    pretrained.weight_files(tmp_path / "model")
