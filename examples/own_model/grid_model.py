"""A policy as a plain function: two convolutions and a scan of residual layers over the cell one stands in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from grid_source import MOVES, SIDE

import peftjax

WIDTH, INNER, LAYERS = 24, 48, 4


def init(key):
  """The leaves, fresh."""
  keys = iter(jax.random.split(key, 8))

  def draw(*shape, fan):
    return jax.random.normal(next(keys), shape) * fan**-0.5

  return {
    "see": {"kernel": draw(3, 3, 3, WIDTH, fan=27), "bias": jnp.zeros(WIDTH)},
    "layers": {
      "spread": {"kernel": draw(LAYERS, 3, 3, WIDTH, WIDTH, fan=9 * WIDTH)},
      "up": {"kernel": draw(LAYERS, WIDTH, INNER, fan=WIDTH), "bias": jnp.zeros((LAYERS, INNER))},
      "down": {"kernel": draw(LAYERS, INNER, WIDTH, fan=INNER * LAYERS)},
    },
    "head": {"kernel": draw(WIDTH, len(MOVES), fan=WIDTH), "bias": jnp.zeros(len(MOVES))},
  }


def convolve(x, kernel):
  """[B, SIDE, SIDE, C] with a window of three by three cells."""
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def policy(params, planes):
  """planes [B, SIDE, SIDE, 3] -> logits [B, moves]."""
  h = convolve(planes, params["see"]["kernel"]) + params["see"]["bias"]

  def layer(h, own):
    seen = jax.nn.relu(convolve(h, own["spread"]["kernel"]))
    return h + jax.nn.relu(seen @ own["up"]["kernel"] + own["up"]["bias"]) @ own["down"]["kernel"], None

  h, _ = jax.lax.scan(layer, h, params["layers"])
  here = (h * planes[..., 2:]).sum((1, 2))  # the cell one stands in
  return here @ params["head"]["kernel"] + params["head"]["bias"]


def make_model(config):
  """``model.path=grid_model:make_model``: fresh leaves by the config's seed; the head trains with every method."""
  planes = jax.ShapeDtypeStruct((2, SIDE, SIDE, 3), jnp.float32)
  params = init(jax.random.key(config.seed))
  return peftjax.wrap(policy, params, example_inputs={"planes": planes}, head="head")
