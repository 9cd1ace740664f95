"""The policy of grid_model.py in NNX: ``model.path=grid_nnx:make_model``"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from grid_source import MOVES, SIDE

import peftjax


class Layer(nnx.Module):
  """A convolution and an MLP beside what comes in."""

  def __init__(self, rngs):
    self.spread = nnx.Conv(32, 32, (3, 3), rngs=rngs)
    self.up, self.down = nnx.Linear(32, 64, rngs=rngs), nnx.Linear(64, 32, rngs=rngs)

  def __call__(self, h):
    return h + self.down(nnx.relu(self.up(nnx.relu(self.spread(h)))))


class Policy(nnx.Module):
  """planes [B, SIDE, SIDE, 3] -> logits [B, moves]."""

  def __init__(self, rngs):
    self.see = nnx.Conv(3, 32, (3, 3), rngs=rngs)
    self.layers = nnx.List([Layer(rngs) for _ in range(4)])
    self.head = nnx.Linear(32, len(MOVES), rngs=rngs)

  def __call__(self, planes):
    h = self.see(planes)
    for layer in self.layers:
      h = layer(h)
    return self.head((h * planes[..., 2:]).sum((1, 2)))


def make_model(config):
  """The wrapped module with fresh leaves."""
  planes = jnp.zeros((2, SIDE, SIDE, 3))
  return peftjax.wrap(Policy(nnx.Rngs(config.seed)), example_inputs={"planes": planes}, head="head")
