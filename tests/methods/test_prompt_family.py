"""What every prompt, prefix, bottleneck, intervention and selective method must do, on a tiny encoder."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from peftjax import masks
from peftjax.loading import from_config
from peftjax.methods import (
  BEFT,
  MAM,
  AdapterPlus,
  BitFit,
  Compacter,
  Full,
  Houlsby,
  LayerNormTuning,
  LlamaAdapter,
  ParallelAdapter,
  Pfeiffer,
  Prefix,
  Prompt,
  PTuning,
  PTuningV2,
  ReFT,
  TrainableTokens,
  UniPELT,
)
from peftjax.models.layers import Runtime
from peftjax.stacks import stack, unstack
from tests.methods import tiny

N = 4
METHODS = {
  "prompt": Prompt(num_virtual_tokens=N),
  "p_tuning": PTuning(num_virtual_tokens=N, encoder_hidden_size=5),
  "p_tuning_lstm": PTuning(num_virtual_tokens=N, encoder_type="LSTM", encoder_hidden_size=3),
  "prefix": Prefix(num_virtual_tokens=N),
  "prefix_network": Prefix(num_virtual_tokens=N, reparametrize=True, encoder_hidden_size=5),
  "p_tuning_v2": PTuningV2(num_virtual_tokens=N, init="zero"),
  "llama_adapter": LlamaAdapter(num_virtual_tokens=N),
  "trainable_tokens": TrainableTokens(token_indices=(30, 11, 5, 17)),
  "houlsby": Houlsby(bottleneck_dim=5),
  "pfeiffer": Pfeiffer(bottleneck_dim=5),
  "parallel_adapter": ParallelAdapter(bottleneck_dim=5, learned_scale=True, sublayers=("attention", "mlp")),
  "compacter": Compacter(bottleneck_dim=6, phm_dim=3, phm_rank=2),
  "adapter_plus": AdapterPlus(bottleneck_dim=5),
  "reft": ReFT(rank=2),
  "reft_suffix": ReFT(rank=3, prefix_positions=0, suffix_positions=3, init="published"),
  "direft": ReFT(rank=2, prefix_positions=2, orthogonal=False),
  "mam": MAM(num_virtual_tokens=N, bottleneck_dim=5),
  "unipelt": UniPELT(rank=2, num_virtual_tokens=N, bottleneck_dim=5),
  "bitfit": BitFit(targets=("query", "intermediate.dense")),
  "layernorm": LayerNormTuning(),
  "beft": BEFT(),
}
NO_IDENTITY = ("prompt", "p_tuning", "p_tuning_lstm", "prefix", "prefix_network", "p_tuning_v2", "reft_suffix", "mam")
IDENTITY = [name for name in METHODS if name not in (*NO_IDENTITY, "unipelt")]
L, D = tiny.LAYERS, tiny.HIDDEN
BOTTLENECK = 2 * D * 5 + D + 5
LSTM = 2 * 4 * 3 * (D + 3 + 2) + 2 * 4 * 3 * (6 + 3 + 2)  # two directions of two layers, each gate with two biases
COUNTS = {
  "prompt": N * D,
  "p_tuning": N * D + (D + 1) * 5 + (5 + 1) * 5 + (5 + 1) * D,
  "p_tuning_lstm": N * D + LSTM + (6 + 1) * 6 + (6 + 1) * D,
  "prefix": 2 * L * N * D,
  "prefix_network": N * D + (D + 1) * 5 + (5 + 1) * 2 * L * D,
  "p_tuning_v2": 2 * L * N * D,
  "llama_adapter": L * (N * D + 1),
  "trainable_tokens": 4 * D,
  "houlsby": 2 * L * BOTTLENECK,
  "pfeiffer": L * BOTTLENECK,
  "parallel_adapter": 2 * L * (BOTTLENECK + 1),
  "compacter": 3**3 + 2 * L * (2 * 2 * (D + 6) + D + 6),
  "adapter_plus": L * (BOTTLENECK + D),
  "reft": L * 2 * (2 * D * 2 + 2),
  "reft_suffix": L * (2 * D * 3 + 3),
  "mam": 2 * L * N * D + L * BOTTLENECK,
  "unipelt": 2 * L * N * D + L * BOTTLENECK + L * 2 * 2 * 2 * D + L * 4 * (D + 1),
  "bitfit": L * (D + 19),
  "layernorm": (2 * L + 1) * 2 * D,
  "beft": L * D,
}

every = pytest.mark.parametrize("name", METHODS)


@functools.cache
def case(name):
  """(model, its leaves with noise, its frozen leaves, compiled value and gradient of the score by what trains)."""
  model = tiny.added(METHODS[name])
  step = jax.jit(jax.value_and_grad(functools.partial(tiny.score, model)))
  return model, tiny.noise_on(tiny.trainable(model)), tiny.rest_of(model), step


@functools.cache
def noisy_score(name):
  """Value and gradient at the noisy leaves."""
  _, leaves, rest, step = case(name)
  return step(leaves, rest, tiny.batch())


@functools.cache
def base_score():
  model = tiny.encoder()
  return jax.jit(functools.partial(tiny.score, model))({}, masks.flatten(model.params), tiny.batch())


@functools.cache
def wide():
  """(shapes of a model wide enough that its matmuls are what is counted, inputs, FLOPs of full fine-tuning)."""
  sizes = {"hidden_size": 96, "intermediate_size": 384, "max_position_embeddings": 64}
  model, inputs = from_config(tiny.config(**sizes), task="text_classification"), tiny.batch(length=32)
  return model, inputs, tiny.traced_flops(model.add(Full()), inputs)


@pytest.mark.parametrize("name", COUNTS)
def test_count(name):
  assert tiny.adapter_count(case(name)[0]) == COUNTS[name]


@every
def test_base_leaves_stay_bitwise(name):
  flat = masks.flatten(case(name)[0].params)
  for path, leaf in masks.flatten(tiny.encoder().params).items():
    np.testing.assert_array_equal(flat[path], leaf)


@pytest.mark.parametrize("name", IDENTITY)
def test_starts_as_the_base(name):
  model, _, rest, step = case(name)
  np.testing.assert_allclose(step(tiny.trainable(model), rest, tiny.batch())[0], base_score(), rtol=1e-5, atol=1e-5)


@every
def test_every_leaf_of_its_own_has_a_gradient(name):
  model, leaves, *_ = case(name)
  if model.adapter_paths():
    assert {path for path in leaves if not model.context.in_head(path)} == model.adapter_paths()
  value, grads = noisy_score(name)
  assert abs(value - base_score()) > 1e-3
  for path, grad in grads.items():
    assert np.isfinite(grad).all(), path
    assert np.abs(grad).max() > 1e-6, path


@every
def test_stacked_equals_unrolled(name):
  model, leaves, *_ = case(name)
  noisy = tiny.replaced(model, leaves)
  unrolled = noisy.unrolled()
  assert not unrolled.stacks
  value = jax.jit(functools.partial(tiny.score, unrolled))({}, masks.flatten(unrolled.params), tiny.batch())
  np.testing.assert_allclose(value, noisy_score(name)[0], rtol=1e-5, atol=1e-5)
  back = stack(unstack(noisy.params, model.stacks), model.stacks)
  jax.tree.map(np.testing.assert_array_equal, back, noisy.params)


@every
def test_several_at_once_with_remat_equal_one(name):
  _, leaves, rest, _ = case(name)
  remat = tiny.added(METHODS[name], tiny.encoder(runtime=Runtime(remat="full")))
  several = {path: np.stack([leaf, 0.5 * leaf]) for path, leaf in leaves.items()}
  grads = jax.vmap(jax.grad(functools.partial(tiny.score, remat)), in_axes=(0, None, None))
  mapped = jax.jit(grads)(several, rest, tiny.batch())
  for path, grad in noisy_score(name)[1].items():
    np.testing.assert_allclose(mapped[path][0], grad, rtol=1e-4, atol=1e-5 * float(np.abs(grad).max()), err_msg=path)


@every
def test_flops_below_full(name):
  model, inputs, full = wide()
  assert tiny.traced_flops(model.add(METHODS[name]), inputs) < 0.9 * full


@every
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_outputs_have_the_shapes_of_the_base(name, model_type):
  base = from_config(tiny.config(model_type), task="token_classification")
  shapes = [
    jax.eval_shape(lambda tree, model=model: model.forward(tree, tiny.batch()), model.params)
    for model in (base, base.add(METHODS[name]))
  ]
  assert shapes[0]["logits"].shape == (3, tiny.LENGTH, tiny.LABELS)
  assert shapes[0] == shapes[1]


@every
def test_padding_changes_nothing(name):
  _, leaves, rest, step = case(name)
  inputs = tiny.batch()
  other = np.where(inputs["attention_mask"] == 1, inputs["input_ids"], 23)
  value, _ = step(leaves, rest, {**inputs, "input_ids": other})
  np.testing.assert_allclose(value, noisy_score(name)[0], rtol=1e-5, atol=1e-5)


@every
def test_shapes_alone_give_the_same_leaves(name):
  shapes = from_config(tiny.config(), task="text_classification").add(METHODS[name])
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes.params) == jax.tree.map(
    lambda leaf: (leaf.shape, leaf.dtype), case(name)[0].params
  )
