"""Which backend computes an attention, and in which dtype the gradients of embedded rows add up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.models import cudnn
from peftjax.models.layers import REMAT_POLICIES, Embed
from peftjax.placement import Placement, current, mapped, placed

BIAS = jax.ShapeDtypeStruct((1, 6, 64, 64), jnp.bfloat16)


def heads(length=64, size=64, dtype=jnp.bfloat16, count=6):
  return jax.ShapeDtypeStruct((2, length, count, size), dtype)


def reason(q, k, mask=None, bias=None, softcap=None, drops=False):
  return cudnn.reason(q, k, mask, bias, softcap, drops)


def test_no_fused_kernel_without_a_cuda_device():
  assert "CUDA" in reason(heads(), heads(count=2))


@pytest.mark.parametrize(
  ("case", "words"),
  [
    ({}, ""),
    ({"mask": jax.ShapeDtypeStruct((2, 1, 1, 64), bool)}, ""),
    ({"q": heads(dtype=jnp.float32), "k": heads(dtype=jnp.float32)}, "float32"),
    ({"q": heads(dtype=jnp.bfloat16), "k": heads(dtype=jnp.float16)}, "bfloat16 or float16"),
    ({"q": heads(size=20), "k": heads(size=20)}, "heads of 20 numbers"),
    ({"q": heads(size=192), "k": heads(size=192)}, "heads of 192 numbers"),
    ({"q": heads(1)}, "one query"),
    ({"q": heads(63), "k": heads(63)}, ""),
    ({"q": heads(63), "k": heads(63), "mask": jax.ShapeDtypeStruct((2, 1, 1, 63), bool)}, "of 63 x 63"),
    ({"softcap": 30.0}, "capped"),
    ({"drops": True}, "dropped"),
    ({"bias": BIAS}, "" if jax.__version_info__ >= (0, 11) else "before jax 0.11"),
  ],
)
def test_what_the_fused_kernel_takes(monkeypatch, case, words):
  monkeypatch.setattr(cudnn, "_has_cuda", lambda platform: True)
  monkeypatch.setattr(cudnn, "_capability", lambda: 8.0)
  found = reason(**{"q": heads(), "k": heads(count=2), **case})
  assert words in found if words else found == ""


def test_the_fused_kernel_is_not_there_before_ampere(monkeypatch):
  """JAX raises where it is asked for on a T4 or V100."""
  monkeypatch.setattr(cudnn, "_has_cuda", lambda platform: True)
  monkeypatch.setattr(cudnn, "_capability", lambda: 7.5)
  assert "from Ampere on" in reason(heads(), heads(count=2))


def test_the_default_device_decides_where_no_placement_is_set():
  with jax.default_device(jax.devices("cpu")[0]):
    assert current().platform == "cpu"
  with placed(Placement("tpu")):
    assert current().platform == "tpu"


def test_a_mask_of_many_runs_at_once_is_not_given_to_the_fused_kernel(monkeypatch):
  monkeypatch.setattr(cudnn, "_has_cuda", lambda platform: True)
  monkeypatch.setattr(cudnn, "_capability", lambda: 9.0)
  mask = jax.ShapeDtypeStruct((2, 1, 1, 64), bool)
  with mapped():
    assert "many runs" in reason(heads(), heads(count=2), mask)
    assert reason(heads(), heads(count=2)) == ""
  assert reason(heads(), heads(count=2), mask) == ""


def test_gradients_of_rows_add_up_in_the_dtype_of_the_table():
  embed = Embed(4, 8, dtype=jnp.bfloat16, param_dtype=jnp.float32)
  table = {"params": {"embedding": jnp.ones((4, 8))}}
  ids = jnp.zeros(1000, jnp.int32)
  gradient = jax.grad(lambda table: embed.apply(table, ids).astype(jnp.float32).sum())(table)["params"]["embedding"]
  np.testing.assert_array_equal(gradient[0], np.full(8, 1000.0))


@pytest.mark.parametrize(("remat", "runs"), [("none", 1), ("minimal", 1), ("full", 2)])
def test_only_full_recomputation_runs_the_fused_kernel_twice(remat, runs, monkeypatch):
  for check in ("check_cudnn_version", "check_compute_capability", "check_is_flash_attention"):
    monkeypatch.setattr(f"jax._src.cudnn.fused_attention_stablehlo.{check}", lambda *args, **kwargs: 91000)

  def scored(q):
    return jax.nn.dot_product_attention(q, q, q, implementation="cudnn", is_causal=True).sum()

  kept = scored if remat == "none" else jax.checkpoint(scored, policy=REMAT_POLICIES[remat])
  program = str(jax.make_jaxpr(jax.grad(kept))(heads()))
  assert program.count("dot_product_attention_fwd_wrapper") == runs
  assert program.count("dot_product_attention_bwd_wrapper") == 1
