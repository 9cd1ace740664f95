"""The policy of grid_model.py in Equinox: ``model.path=grid_equinox:make_model``"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from grid_source import MOVES, SIDE

import peftjax


class Policy(eqx.Module):
  """planes [SIDE, SIDE, 3] of one maze -> logits [moves]."""

  see: eqx.nn.Conv2d
  spread: list[eqx.nn.Conv2d]
  mlps: list[eqx.nn.MLP]
  head: eqx.nn.Linear

  def __init__(self, key):
    keys = iter(jax.random.split(key, 10))
    self.see = eqx.nn.Conv2d(3, 32, 3, padding=1, key=next(keys))
    self.spread = [eqx.nn.Conv2d(32, 32, 3, padding=1, key=next(keys)) for _ in range(4)]
    self.mlps = [eqx.nn.MLP(32, 32, 64, 1, key=next(keys)) for _ in range(4)]
    self.head = eqx.nn.Linear(32, len(MOVES), key=next(keys))

  def __call__(self, planes):
    h = self.see(planes.transpose(2, 0, 1))
    for spread, mlp in zip(self.spread, self.mlps):
      seen = jax.nn.relu(spread(h)).reshape(32, -1).T
      h = h + jax.vmap(mlp)(seen).T.reshape(h.shape)
    return self.head((h * planes[..., 2]).sum((1, 2)))


def make_model(config):
  """The wrapped module with fresh leaves, mapped over a batch."""
  planes = jnp.zeros((2, SIDE, SIDE, 3))
  net = Policy(jax.random.key(config.seed))
  return peftjax.wrap(lambda net, planes: jax.vmap(net)(planes), net, example_inputs={"planes": planes}, head="head")
