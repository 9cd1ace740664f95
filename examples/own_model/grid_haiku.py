"""The policy of grid_model.py in Haiku: ``model.path=grid_haiku:make_model``"""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
from grid_source import MOVES, SIDE

import peftjax


def policy(planes):
  """planes [B, SIDE, SIDE, 3] -> logits [B, moves]."""
  h = hk.Conv2D(32, 3, name="see")(planes)
  for layer in range(4):
    seen = jax.nn.relu(hk.Conv2D(32, 3, name=f"spread_{layer}")(h))
    h = h + hk.Linear(32, name=f"down_{layer}")(jax.nn.relu(hk.Linear(64, name=f"up_{layer}")(seen)))
  return hk.Linear(len(MOVES), name="head")((h * planes[..., 2:]).sum((1, 2)))


def make_model(config):
  """The wrapped transform with fresh parameters."""
  planes = jnp.zeros((2, SIDE, SIDE, 3))
  transform = hk.without_apply_rng(hk.transform(policy))
  params = transform.init(jax.random.key(config.seed), planes)
  return peftjax.wrap(transform.apply, params, example_inputs={"planes": planes}, head="head")
