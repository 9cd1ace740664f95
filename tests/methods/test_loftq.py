"""LoftQ against the algorithm as published, and against LoRA's usual start on the same quantised base."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax import masks, methods
from peftjax.errors import UserError
from peftjax.loading import from_config
from peftjax.methods.loftq import loftq
from peftjax.quantize import dequantize, quantize
from tests.methods import tiny

RANK, SCALE = 3, 2.5


def by_hand(weight: np.ndarray, kind: str, block: int, iterations: int) -> tuple[np.ndarray, np.ndarray]:
  """(Q_T, s·A_T B_T) by algorithm 1."""
  low = np.zeros_like(weight)
  for _ in range(iterations):
    rounded = np.asarray(dequantize(quantize(jnp.asarray(weight - low), kind=kind, block=block)))
    u, s, vt = np.linalg.svd(weight - rounded, full_matrices=False)
    low = (u[:, :RANK] * s[:RANK]) @ vt[:RANK]
  return rounded, low


@pytest.mark.parametrize(("kind", "iterations"), [("nf4", 1), ("nf4", 4)])
def test_it_is_algorithm_1(kind, iterations):
  weight = np.random.default_rng(0).standard_normal((32, 24)).astype(np.float32)
  first = quantize(jnp.asarray(weight), kind=kind, block=16)
  kernel, a, b = loftq(jnp.asarray(weight), first, RANK, SCALE, iterations)
  rounded, low = by_hand(weight, kind, 16, iterations)
  np.testing.assert_allclose(dequantize(kernel), rounded, atol=1e-5)
  np.testing.assert_allclose(SCALE * (a @ b), low, atol=1e-4)
  assert a.shape == (32, RANK) and b.shape == (RANK, 24)
  error = np.linalg.norm(weight - np.asarray(dequantize(kernel) + SCALE * (a @ b)))
  assert error < 0.95 * np.linalg.norm(weight - np.asarray(dequantize(first)))


def test_the_start_is_nearer_to_the_float_model(tmp_path):
  model = tiny.encoder()
  model.save(tmp_path / "model")
  base = peftjax.load(tmp_path / "model", quantize="int4")
  batch = tiny.batch()
  expected = model(**batch)["logits"]
  error, starts = {}, {}
  settings = {"lora": {}, "loftq 1": {"init": "loftq"}, "loftq 4": {"init": "loftq", "loftq_iterations": 4}}
  for name, fields in settings.items():
    method = methods.LoRA(rank=8, alpha=10.0, targets="all-linear", **fields)
    starts[name] = base.add(method, jax.random.key(0))
    error[name] = float(jnp.linalg.norm(starts[name](**batch)["logits"] - expected))
  assert error["loftq 1"] < 0.8 * error["lora"] and error["loftq 4"] < 0.8 * error["lora"]
  path = "bert.encoder.layer.intermediate.dense.kernel"
  codes = {name: np.asarray(masks.flatten(one.params)[path].qvalue, np.int8) for name, one in starts.items()}
  np.testing.assert_array_equal(codes["lora"], codes["loftq 1"])
  assert (codes["lora"] != codes["loftq 4"]).any()
  # from shapes alone, too, and merged it is the sum of the two parts
  shapes = from_config(tiny.config(), task="text_classification", quantize="int4").add(starts["loftq 4"].methods[0])
  assert jax.tree.structure(shapes.params) == jax.tree.structure(starts["loftq 4"].params)
  merged = starts["loftq 4"].merge()
  assert not merged.quantized_paths()
  np.testing.assert_allclose(merged(**batch)["logits"], starts["loftq 4"](**batch)["logits"], rtol=1e-4, atol=1e-4)


def test_what_is_refused(tmp_path):
  model = tiny.encoder()
  with pytest.raises(UserError, match="starts from what quantisation rounded away; set model.quantize"):
    model.add(methods.LoRA(init="loftq"))
  with pytest.raises(UserError, match="load the model from a folder"):
    model.quantized("nf4").add(methods.LoRA(init="loftq"))
  with pytest.raises(UserError, match="LoftQ is defined for lora alone"):
    methods.DoRA(init="loftq")
