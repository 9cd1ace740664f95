"""Statistics of batch normalisation: in the tree, never trained, saved and read as torch has them."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen as nn
from safetensors.torch import save_file

from peftjax import buffers, masks, methods
from peftjax.errors import UserError
from peftjax.loading import from_config, initialise, load
from peftjax.models.family import Architecture, Family
from peftjax.models.layers import Runtime, stack_of
from peftjax.train.checkpoint import Base, Checkpoints
from peftjax.train.inspection import report
from peftjax.train.state import init_state
from tests.methods.linen_models import FAMILIES, PIXELS, Normed, family, make

MEAN, VAR = (f"buffers.batch_stats.bn.{name}" for name in ("mean", "var"))


class Theirs(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.conv, self.bn = torch.nn.Conv1d(12, 8, 3, padding=1), torch.nn.BatchNorm1d(8, eps=1e-5)
    self.dense, self.head = torch.nn.Linear(8, 12), torch.nn.Linear(12, 5)

  def forward(self, pixels):
    x = torch.relu(self.bn(self.conv(pixels.reshape(*pixels.shape[:2], -1).transpose(1, 2))))
    return self.head(self.dense(x.transpose(1, 2)).mean(dim=1))


def folder_of(path, theirs) -> None:
  path.mkdir()
  (path / "config.json").write_text(json.dumps({"model_type": "mine"}))
  save_file({name: value.contiguous() for name, value in theirs.state_dict().items()}, path / "model.safetensors")


def test_a_torch_model_is_read_and_written_with_its_statistics(tmp_path):
  torch.manual_seed(0)
  theirs = Theirs()
  for _ in range(3):
    theirs(torch.randn(7, 6, 4, 3) * 2.0 + 1.0)  # counts the statistics
  folder_of(tmp_path / "theirs", theirs.eval())
  ours = load(tmp_path / "theirs", family=FAMILIES[Normed])
  wanted = theirs(torch.tensor(np.asarray(PIXELS))).detach().numpy()
  np.testing.assert_allclose(ours(pixels=PIXELS)["logits"], wanted, rtol=1e-5, atol=1e-5)
  assert np.abs(wanted).max() > 0.1
  ours.save(tmp_path / "ours")
  again = load(tmp_path / "ours", family=FAMILIES[Normed])
  jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)
  assert {MEAN, VAR} <= set(masks.flatten(again.params))


@pytest.mark.parametrize(
  "method",
  [methods.Full(), methods.LoRA(rank=2, targets=("dense",)), methods.LayerNormTuning()],
  ids=lambda method: method.name,
)
def test_statistics_never_train(method):
  model = make(Normed).add(method)
  groups = masks.flatten(model.labels())
  assert groups[MEAN] == groups[VAR] == masks.FROZEN
  trainable, frozen = masks.partition(model.params, model.labels())

  def loss(part):
    return jnp.sum(model.forward(masks.combine(part, frozen), {"pixels": PIXELS})["logits"] ** 2)

  gradient = jax.jit(jax.grad(loss))(trainable)
  assert not any(buffers.is_buffer(name) for name in masks.flatten(gradient))
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) > 0


def test_a_scale_of_batch_normalisation_is_a_norm():
  model = make(Normed).add(methods.LayerNormTuning())
  trained = {name for name, group in masks.flatten(model.labels()).items() if group not in (masks.FROZEN, "head")}
  assert trained == {"bn.scale", "bn.bias"}


def test_statistics_count_as_no_parameters():
  model = make(Normed)
  found = report(model.add(methods.Full()))
  assert found["total"] == found["trainable"] == sum(value.numel() for value in Theirs().parameters())
  assert not any(leaf["path"].startswith("buffers") for leaf in found["leaves"] if leaf["group"] != masks.FROZEN)


def test_merging_and_a_checkpoint_keep_the_statistics(tmp_path):
  model = make(Normed).add(methods.LoRA(rank=2, targets=("dense",), init="gaussian"))
  merged = model.merge()
  for name in (MEAN, VAR):
    np.testing.assert_array_equal(masks.flatten(merged.params)[name], masks.flatten(model.params)[name])
  trainable, frozen = masks.partition(model.params, model.labels())
  state = init_state(trainable, optax.sgd(0.1), 0)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(state, {"step": 1}, Base("mine", "0"))
    checkpoints.wait()
    restored = checkpoints.restore(jax.tree.map(jnp.zeros_like, state), Base("mine", "0"))
  whole = masks.combine(restored[0].trainable, frozen)
  np.testing.assert_array_equal(model.with_params(whole)(pixels=PIXELS)["logits"], model(pixels=PIXELS)["logits"])


class Layer(nn.Module):
  @nn.compact
  def __call__(self, x):
    y = nn.BatchNorm(use_running_average=True, name="bn")(nn.Dense(12, name="dense")(x))
    return x + nn.relu(y), None


class Stack(nn.Module):
  runtime: Runtime

  def setup(self):
    self.layers = stack_of(Layer, (), 3, self.runtime)
    self.head = nn.Dense(5)

  def __call__(self, pixels):
    x, _ = self.layers(pixels.reshape(*pixels.shape[:2], -1))
    return {"logits": self.head(x.mean(axis=1))}


STACK = Family(
  model_types=("mine",),
  parse=lambda hf_config: (),
  architectures={"Mine": Architecture(lambda config, runtime: Stack(runtime), "classification", head=("head",))},
  stacks=lambda config: {"layers": 3},
  inputs=lambda config: {"pixels": jax.ShapeDtypeStruct((1, 6, 4, 3), jnp.float32)},
)


def test_statistics_of_stacked_layers_go_with_their_layers(tmp_path):
  model = initialise(from_config({"model_type": "mine"}, family=STACK), jax.random.key(0))
  stats = jax.random.uniform(jax.random.key(1), (3, 12), minval=0.5, maxval=2.0)
  flat = {**masks.flatten(model.params), **{f"buffers.batch_stats.layers.bn.{name}": stats for name in ("mean", "var")}}
  model = model.with_params(masks.unflatten(flat))
  apart = model.unrolled()
  np.testing.assert_array_equal(masks.flatten(apart.params)["buffers.batch_stats.layers.2.bn.var"], stats[2])
  np.testing.assert_allclose(apart(pixels=PIXELS)["logits"], model(pixels=PIXELS)["logits"], rtol=1e-6, atol=1e-6)
  apart.save(tmp_path / "model")
  again = load(tmp_path / "model", family=STACK)
  jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_a_module_may_not_stand_where_buffers_do():
  with pytest.raises(UserError, match="'buffers'"):
    buffers.tree_of({"params": {"buffers": {"kernel": 1}}})


class ResNet(nn.Module):
  """A stem and a residual block, each convolution before a batch normalisation."""

  counts: bool = False

  @nn.compact
  def __call__(self, pixels):
    def norm(name):
      return nn.BatchNorm(use_running_average=not self.counts, name=name)

    x = nn.relu(norm("bn1")(nn.Conv(8, (3, 3), use_bias=False, name="conv1")(pixels)))
    y = nn.relu(norm("bn2")(nn.Conv(8, (3, 3), strides=2, use_bias=False, name="conv2")(x)))
    x = norm("bn3")(nn.Conv(8, (1, 1), strides=2, use_bias=False, name="shortcut")(x)) + y
    return {"logits": nn.Dense(5, name="head")(x.mean(axis=(1, 2)))}


@pytest.mark.parametrize(
  ("method", "trained"),
  [
    (methods.LayerNormTuning(), {f"bn{number}.{leaf}" for number in (1, 2, 3) for leaf in ("scale", "bias")}),
    (methods.BitFit(), {f"bn{number}.bias" for number in (1, 2, 3)}),
    (methods.LoHa(rank=2, targets=("conv2",)), {f"conv2.hada_w{n}_{x}" for n in (1, 2) for x in "ab"}),
  ],
  ids=lambda part: getattr(part, "name", ""),
)
def test_a_resnet_trains_around_its_statistics(method, trained):
  model = make(ResNet, FAMILY_OF[ResNet]).add(method, jax.random.key(0))
  groups = masks.flatten(model.labels())
  assert {path for path, group in groups.items() if group not in (masks.FROZEN, "head")} == trained
  trainable, frozen = masks.partition(model.params, model.labels())

  def loss(part, frozen):
    return jnp.sum(model.forward(masks.combine(part, frozen), {"pixels": PIXELS})["logits"] ** 2)

  moved = jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, trainable, jax.jit(jax.grad(loss))(trainable, frozen))
  after = model.with_params(masks.combine(moved, frozen))
  assert np.abs(after(pixels=PIXELS)["logits"] - model(pixels=PIXELS)["logits"]).max() > 1e-4
  for path, leaf in masks.flatten(after.params).items():
    if buffers.is_buffer(path):
      np.testing.assert_array_equal(leaf, masks.flatten(model.params)[path])


def test_statistics_that_would_be_counted_are_refused():
  with pytest.raises(UserError, match="bn1 counts statistics.*use_running_average=True"):
    make(ResNet, family(lambda: ResNet(counts=True)))


FAMILY_OF = {ResNet: family(ResNet)}
