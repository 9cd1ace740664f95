"""A quantised base with an adapter: merged in float32, saved, rounded again; what the backward pass keeps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax import masks, methods
from peftjax.loading import from_config
from peftjax.models.layers import Runtime
from peftjax.quantize import dequantize
from peftjax.quantize_model import summary
from peftjax.stacks import unstack
from tests.methods import tiny

QUERY = "bert.encoder.layer.attention.self.query"


def filled(kind: str = "nf4") -> peftjax.Model:
  model = tiny.encoder().quantized(kind).add(methods.LoRA(rank=3, alpha=5.0, targets=("query", "output.dense")))
  return tiny.replaced(model, tiny.noise_on(tiny.trainable(model)))


def test_merging_gives_float32_leaves_and_the_same_outputs(tmp_path):
  model = filled()
  merged = model.merge()
  flat, leaves = masks.flatten(merged.params), masks.flatten(model.params)
  assert {str(leaf.dtype) for leaf in flat.values()} == {"float32"} and not merged.quantized_paths()
  delta = 5.0 / 3.0 * leaves[f"{QUERY}.lora_a"] @ leaves[f"{QUERY}.lora_b"]
  np.testing.assert_allclose(
    flat[f"{QUERY}.kernel"], dequantize(leaves[f"{QUERY}.kernel"]) + delta, rtol=1e-5, atol=1e-6
  )
  expected = model(**tiny.batch())["logits"]
  np.testing.assert_allclose(merged(**tiny.batch())["logits"], expected, rtol=1e-4, atol=1e-5)
  merged.save(tmp_path / "model")
  loaded = peftjax.load(tmp_path / "model")
  np.testing.assert_allclose(loaded(**tiny.batch())["logits"], expected, rtol=1e-4, atol=1e-5)


def test_rounding_again_reports_what_it_costs():
  merged = filled().merge()
  again = merged.quantized("int8")
  assert len(again.quantization_errors) == 7
  before, after = masks.flatten(merged.params), masks.flatten(again.params)
  for path, error in again.quantization_errors.items():
    lost = np.asarray(before[path] - dequantize(after[path]))
    lost, whole = (np.sqrt(np.square(x).sum(axis=(-2, -1))) for x in (lost, np.asarray(before[path])))
    assert error == pytest.approx(np.max(lost / whole), rel=1e-3)
  found = summary(again.quantization_errors)
  assert found["leaves"] == 7 and 0.001 < found["mean_error"] <= found["largest_error"] < 0.01
  assert again.quantization_errors[found["largest_error_at"]] == found["largest_error"]
  assert summary({}) == {}


def test_layers_part_with_their_codes():
  model = filled()
  apart = masks.flatten(unstack(model.params, model.stacks))
  whole = masks.flatten(model.params)[f"{QUERY}.kernel"]
  for layer in range(tiny.LAYERS):
    name = f"{QUERY}.kernel".replace("encoder.layer", f"encoder.layer.{layer}")
    np.testing.assert_array_equal(dequantize(apart[name]), dequantize(whole)[layer])
  np.testing.assert_allclose(
    model.unrolled()(**tiny.batch())["logits"], model(**tiny.batch())["logits"], rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize("remat", ["none", "minimal"])
def test_the_backward_pass_keeps_no_float_kernel(remat):
  """Layers of 64 × 4096: their float kernels are most of what could be held between the passes."""
  config = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 20, "hidden_size": 64,
            "num_attention_heads": 2, "intermediate_size": 4096, "num_hidden_layers": 12,
            "max_position_embeddings": 8}  # fmt: skip
  inputs = {"input_ids": jax.ShapeDtypeStruct((1, 4), jnp.int32)}

  def held(kind: str) -> int:
    model = from_config(config, quantize=kind, runtime=Runtime(remat=remat)).add(methods.LoRA(targets=("query",)))
    trainable, frozen = masks.partition(model.params, model.labels())

    def loss(trainable, frozen, inputs):
      return jnp.sum(model.forward(masks.combine(trainable, frozen), inputs)["last_hidden_state"])

    compiled = jax.jit(jax.grad(loss)).lower(trainable, frozen, inputs).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  floats = 12 * 4 * 2 * 64 * 4096
  assert held("nf4") < held("") + 0.3 * floats  # a few layers', while they are in use
