"""Quantised arrays: the published codebook, error bounds, double quantization, bytes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from peftjax import masks, methods, quantize
from peftjax.errors import UserError
from peftjax.loading import from_config
from peftjax.quantize import CentredScale, Packed, dequantize
from peftjax.quantize_model import Quantization, errors_of

ROUND = {"int8": 127.5, "int4": 7.5}
# argument bytes of a base of full blocks over float32's: 8 or 4 bits, and a float32 scale for 64; nf4: 8 bits for 64
BYTES = {"int8": 0.27, "int4": 0.15, "nf4": 0.13}


def codebook() -> np.ndarray:
  """nf4's 16 values, as the codes 0 to 15 of a block whose scale is one."""
  pairs = np.arange(0, 16, 2) + 16 * np.arange(1, 16, 2)
  leaf = Packed(jnp.asarray(pairs[:, None], jnp.uint8), jnp.ones((1, 1)), rows=16, qtype="nf4")
  return np.asarray(dequantize(leaf))[:, 0]


def normal_quantiles() -> np.ndarray:
  """Appendix E: quantiles of N(0, 1), 8 above zero and 7 below, an exact zero, divided by the largest."""
  offset = 0.9677083  # half of (1 - 1/30) + (1 - 1/32), so that both tails lose the same
  above = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
  below = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
  values = np.sort(np.concatenate([above, [0.0], below]))
  return values / np.abs(values).max()


@functools.cache
def kernel(layers: int = 3, features_in: int = 128, features_out: int = 300, scale: float = 0.02) -> jax.Array:
  rng = np.random.default_rng(0)
  widths = rng.lognormal(0.0, 0.3, (1, 1, features_out))
  return jnp.asarray(scale * widths * rng.standard_normal((layers, features_in, features_out)), jnp.float32)


def blocks(x: jax.Array, size: int = 64) -> np.ndarray:
  """[layers, blocks, size, out]."""
  return np.asarray(x).reshape(x.shape[0], -1, size, x.shape[-1])


def test_the_codebook_is_the_published_one():
  found = codebook()
  assert found[0] == -1.0 and found[7] == 0.0 and found[15] == 1.0
  np.testing.assert_allclose(found, normal_quantiles(), atol=2e-6)


def test_codes_select_the_same_values_as_a_table():
  leaf = quantize.quantize(kernel(), "nf4")
  found = np.asarray(dequantize(leaf)).reshape(3, 2, 64, 300)
  codes = np.asarray(leaf.unpacked().qvalue).reshape(found.shape)
  np.testing.assert_array_equal(found, quantize.NF4[codes] * np.asarray(leaf.scale.value())[:, :, None])
  np.testing.assert_array_equal(codebook(), quantize.NF4)


@pytest.mark.parametrize("kind", ROUND)
def test_integers_err_by_half_a_step_at_most(kind):
  x = kernel()
  error = np.abs(blocks(x) - blocks(dequantize(quantize.quantize(x, kind))))
  step = np.abs(blocks(x)).max(axis=2, keepdims=True) / ROUND[kind]
  assert (error <= 0.5001 * step).all()
  assert error.max() > 0.4 * step.min()  # the bound is met, so the codes are used


def test_nf4_errs_by_half_the_widest_gap_and_the_scales_rounding():
  x = kernel()
  leaf = quantize.quantize(x, "nf4")
  absmax = np.abs(blocks(x)).max(axis=2)
  scale = np.asarray(leaf.scale.value())
  # int8 in blocks of at most 256 outputs (150 of 300) around the layer's mean
  centred = absmax - absmax.mean(axis=(1, 2), keepdims=True)
  step = np.abs(centred).reshape(*centred.shape[:2], 2, 150).max(axis=-1, keepdims=True) / 127.5
  assert leaf.scale.deviation.qvalue.dtype == jnp.int8 and leaf.scale.deviation.scale.shape == (3, 2, 2)
  assert (np.abs(scale - absmax).reshape(*absmax.shape[:2], 2, 150) <= 0.5001 * step).all()
  gaps = np.diff(normal_quantiles())
  bound = 0.5 * gaps.max() * absmax + np.abs(scale - absmax)
  error = np.abs(blocks(x) - blocks(dequantize(leaf))).max(axis=2)
  assert (error <= 1.0001 * bound).all()


def test_nf4_codes_are_nearest_and_its_error_is_that_of_normal_weights():
  x = jax.random.normal(jax.random.key(0), (1, 640, 512))
  leaf = quantize.quantize(x, "nf4")
  scaled = blocks(x) / np.abs(blocks(x)).max(axis=2, keepdims=True)
  nearest = np.abs(scaled[..., None] - codebook()).argmin(axis=-1)
  assert (nearest.reshape(x.shape) == np.asarray(leaf.unpacked().qvalue, np.int32)).mean() > 0.99999
  # of N(0, 1) in blocks of 64; int4 with as many bits does worse
  assert float(quantize.relative_error(x, leaf)) == pytest.approx(0.0918, abs=0.002)
  assert float(quantize.relative_error(x, quantize.quantize(x, "int4"))) > 0.1


@pytest.mark.parametrize("kind", quantize.KINDS)
def test_what_is_quantised_again_stays_as_it_is(kind):
  x = kernel().at[:, :64, 7].set(0.0)
  leaf = quantize.quantize(x, kind)
  once = dequantize(leaf)
  assert np.isfinite(once).all() and not np.asarray(once)[:, :64, 7].any()
  again = dequantize(quantize.quantize(once, kind))
  # the largest of an integer block lies half a step inside it, so the second scale is a little smaller
  np.testing.assert_allclose(
    again, once, atol={"int8": 0.006, "int4": 0.1, "nf4": 0.02}[kind] * float(jnp.max(jnp.abs(x)))
  )
  assert quantize.kind_of(leaf) == kind and leaf.dtype == jnp.float32 and leaf.shape == x.shape
  assert dequantize(leaf, jnp.bfloat16).dtype == jnp.bfloat16
  layer = quantize.like(leaf, x[1])
  for one, all_ in zip(jax.tree.leaves(layer), jax.tree.leaves(leaf)):
    np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(all_[1], np.float32))


def test_blocks_divide_the_inputs():
  leaf = quantize.quantize(jnp.ones((100, 7)), "nf4")
  assert leaf.scale.shape == (2, 7) and isinstance(leaf.scale, CentredScale)
  assert leaf.scale.deviation.scale.shape == (2, 1)
  with pytest.raises(UserError, match="67 inputs cannot be divided into blocks of 8 to 64"):
    quantize.quantize(jnp.ones((67, 7)), "int8")


@pytest.mark.parametrize("kind", quantize.KINDS)
def test_argument_bytes_of_a_compiled_steps_base(kind):
  """From shapes alone: BERT-base's kernels with LoRA, as the compiler counts what it is given."""
  config = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 100, "num_hidden_layers": 2}
  model = from_config(config, quantize=kind).add(methods.LoRA(rank=8))
  paths = model.quantized_paths()
  assert len(paths) == 7
  flat = masks.flatten(model.params)
  kernels, rest = {p: flat[p] for p in paths}, {p: flat[p] for p in flat if p not in paths}
  inputs = {name: jax.ShapeDtypeStruct((8, 64), jnp.int32) for name in ("input_ids", "attention_mask")}

  def loss(adapters, others, kernels, inputs):
    out = model.forward(masks.unflatten({**adapters, **others, **kernels}), inputs)
    return jnp.sum(out["last_hidden_state"])

  adapters = {p: rest.pop(p) for p in model.adapter_paths()}
  compiled = jax.jit(jax.grad(loss)).lower(adapters, rest, kernels, inputs).compile()
  given = quantize.tree_bytes((adapters, rest, kernels, inputs))
  # what does not reach the loss (the pooler) is no argument of the program
  unread = quantize.tree_bytes([leaf for path, leaf in {**kernels, **rest}.items() if ".pooler." in f".{path}"])
  assert compiled.memory_analysis().argument_size_in_bytes == pytest.approx(given - unread, rel=0.002)
  floats = sum(4 * int(np.prod(leaf.shape)) for leaf in kernels.values())
  assert quantize.tree_bytes(kernels) <= BYTES[kind] * floats
  assert masks.count(kernels).bytes == quantize.tree_bytes(kernels)
  assert masks.count(kernels).parameters * 4 == floats


def test_a_program_compiled_ahead_of_time_takes_committed_leaves():
  leaf = jax.device_put(quantize.quantize(kernel(), "nf4"), jax.devices()[0])
  compiled = jax.jit(dequantize).lower(jax.eval_shape(lambda leaf: leaf, leaf)).compile()
  np.testing.assert_array_equal(compiled(leaf), dequantize(leaf))
  odd = quantize.quantize(kernel()[:, :19], "int4")
  assert odd.qvalue.shape == (3, 10, 300) and dequantize(odd).shape == odd.shape == (3, 19, 300)


def test_errors_of_two_trees():
  before = {"a": {"kernel": kernel()}, "b": {"kernel": kernel()[0]}}
  after = {"a": {"kernel": quantize.quantize(kernel(), "int8")}, "b": before["b"]}
  assert errors_of(before, after) == {"a.kernel": pytest.approx(0.0055, rel=0.2)}


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"kind": "nf5"}, "model.quantize: unknown 'nf5'; did you mean 'nf4'"),
    ({"block": 4}, "model.quantize_block=4: expected at least 8"),
  ],
)
def test_wrong_settings(settings, message):
  with pytest.raises(UserError, match=message):
    Quantization(**settings)
