"""A base that is quantised while it is read: its leaves, its errors, its peak of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax import masks
from peftjax.errors import UserError
from peftjax.loading import from_config
from peftjax.quantize import is_quantized, kind_of, tree_bytes
from peftjax.quantize_model import Quantization
from tests.methods import tiny
from tests.models.decoder_models import LLAMA, random_model

PEAK = """
import sys, json, jax, peftjax
from peftjax import quantize
for shape in ((1024, 1024), (1024, 4096), (4096, 1024)) if sys.argv[2] else ():  # compiling takes memory of its own
  kernel = jax.numpy.ones(shape)
  jax.block_until_ready(quantize.relative_error(kernel, quantize.quantize(kernel, kind=sys.argv[2], block=64)))
kernel = None
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
def peak():  # getrusage's starts from what the process that started this one held
  line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
  return int(line.split()[1]) * 1024
before = peak()
model = peftjax.load(sys.argv[1], quantize=sys.argv[2])
jax.block_until_ready(model.params)
print(json.dumps({"peak": peak() - before, "leaves": quantize.tree_bytes(model.params)}))
"""


def peak_of(folder: Path, kind: str) -> dict[str, int]:
  command = [sys.executable, "-c", PEAK, str(folder), kind]
  return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_the_peak_of_memory_stays_below_the_float_models(tmp_path):
  config = tiny.config(
    hidden_size=1024, num_attention_heads=16, intermediate_size=4096, num_hidden_layers=3, architectures=["BertModel"]
  )
  model = from_config(config)
  fill = np.random.default_rng(0).standard_normal(2**20).astype(np.float32)
  model = model.with_params(jax.tree.map(lambda leaf: np.resize(fill, leaf.shape), model.params))
  model.save(tmp_path / "model")
  size = tree_bytes(model.params)
  assert 150e6 < size < 200e6
  floats, nf4 = (peak_of(tmp_path / "model", kind) for kind in ("", "nf4"))
  assert nf4["leaves"] < 0.14 * size == pytest.approx(0.14 * floats["leaves"])
  # Beside other work freed buffers go back late; what must not be there is the whole float model.
  assert nf4["peak"] < 0.9 * floats["peak"], (floats, nf4, size)


def saved(model: peftjax.Model, folder: Path) -> Path:
  model.save(folder)
  return folder


@pytest.mark.parametrize("scan", [True, False])
def test_loading_quantises_as_a_loaded_model_does(tmp_path, scan):
  runtime = peftjax.models.layers.Runtime(scan_layers=scan)
  model = tiny.encoder(runtime=runtime)
  how = Quantization("nf4", block=32, exclude=("pooler.dense",))
  expected = model.quantized(how)
  found = peftjax.load(saved(model, tmp_path / "model"), quantize=how, runtime=runtime)
  assert jax.tree.structure(found.params) == jax.tree.structure(expected.params)
  for one, other in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params)):
    np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))
  assert found.quantization_errors == pytest.approx(expected.quantization_errors, rel=1e-5)
  kinds = {path: kind_of(leaf) for path, leaf in masks.flatten(found.params).items()}
  assert kinds["bert.pooler.dense.kernel"] == kinds["classifier.kernel"] == "float32"
  quantised = {path for path, kind in kinds.items() if kind == "nf4"}
  assert len(quantised) == (6 if scan else 12) and all(path.endswith("kernel") for path in quantised)


def test_experts_and_a_decoders_output_layer(tmp_path):
  config = {**LLAMA, "model_type": "qwen3_moe", "num_experts": 3, "num_experts_per_tok": 2, "num_hidden_layers": 2,
            "moe_intermediate_size": 16, "tie_word_embeddings": False, "decoder_sparse_step": 1, "mlp_only_layers": [],
            "norm_topk_prob": True}  # fmt: skip
  model = random_model(config)
  found = peftjax.load(saved(model, tmp_path / "model"), quantize="int4")
  flat = masks.flatten(found.params)
  experts = [path for path, leaf in flat.items() if ".experts." in path and is_quantized(leaf)]
  assert len(experts) == 3 and flat[experts[0]].shape[:2] == (2, 3)
  assert not is_quantized(flat["lm_head.kernel"])
  ids = {"input_ids": tiny.batch()["input_ids"]}
  np.testing.assert_allclose(found(**ids)["logits"], found.dequantized()(**ids)["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("how", "message"),
  [
    (Quantization(exclude=("quer",)), "model.quantize_exclude: 'quer' matches none"),
    (Quantization(exclude=("layer.0.attention.self.query",)), "treats the layers of .*query differently"),
    (Quantization(exclude=("*",)), "no linear module to quantise"),
  ],
)
def test_wrong_exclusions(how, message):
  with pytest.raises(UserError, match=message):
    from_config(tiny.config(), quantize=how)


def test_a_bfloat16_base_computes_in_bfloat16(tmp_path):
  model = peftjax.load(saved(tiny.encoder(), tmp_path / "model"), dtype="bfloat16", quantize="nf4")
  assert model(**tiny.batch())["logits"].dtype == jnp.bfloat16
