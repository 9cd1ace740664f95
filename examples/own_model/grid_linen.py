"""The policy of grid_model.py in Linen: ``model.path=grid_linen:make_model``"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from grid_source import MOVES, SIDE

import peftjax


class Policy(nn.Module):
  """planes [B, SIDE, SIDE, 3] -> logits [B, moves]."""

  @nn.compact
  def __call__(self, planes):
    h = nn.Conv(32, (3, 3), name="see")(planes)
    for layer in range(4):
      seen = nn.relu(nn.Conv(32, (3, 3), name=f"spread_{layer}")(h))
      h = h + nn.Dense(32, name=f"down_{layer}")(nn.relu(nn.Dense(64, name=f"up_{layer}")(seen)))
    return nn.Dense(len(MOVES), name="head")((h * planes[..., 2:]).sum((1, 2)))


def make_model(config):
  """The wrapped module with fresh variables."""
  planes = jnp.zeros((2, SIDE, SIDE, 3))
  variables = Policy().init(jax.random.key(config.seed), planes)
  return peftjax.wrap(Policy(), variables, example_inputs={"planes": planes}, head="head")
