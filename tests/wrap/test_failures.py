"""A model of one's own that fails on what it is given: one line, with the inputs and the place in one's own file."""

from __future__ import annotations

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import peftjax
from peftjax import methods
from peftjax.errors import UserError

IDS = jax.ShapeDtypeStruct((2, 5), jnp.int32)
LONGER = jnp.ones((2, 6), jnp.int32)
PARAMS = {"embed": jnp.ones((11, 12)), "positions": jnp.ones((5, 12)), "q": {"kernel": jnp.ones((12, 7))}}


def function(params, ids):
  return (params["embed"][ids] + params["positions"]) @ params["q"]["kernel"]


class Nnx(nnx.Module):
  def __init__(self, rngs):
    self.embed, self.q = nnx.Embed(11, 12, rngs=rngs), nnx.Linear(12, 7, rngs=rngs)
    self.positions = nnx.Param(jnp.ones((5, 12)))

  def __call__(self, ids):
    return self.q(self.embed(ids) + self.positions[...])


class Equinox(eqx.Module):
  embed: jax.Array
  positions: jax.Array
  q: eqx.nn.Linear

  def __call__(self, ids):
    return jax.vmap(jax.vmap(self.q))(self.embed[ids] + self.positions)


class Linen(nn.Module):
  @nn.compact
  def __call__(self, ids):
    positions = self.param("positions", nn.initializers.ones, (5, 12))
    return nn.Dense(7, name="q")(nn.Embed(11, 12, name="embed")(ids) + positions)


def haiku(ids):
  embed = hk.get_parameter("embed", (11, 12), init=jnp.ones)
  positions = hk.get_parameter("positions", (5, 12), init=jnp.ones)
  return hk.Linear(7, name="q")(embed[ids] + positions)


def models():
  ids, key = jnp.ones((2, 5), jnp.int32), jax.random.key(0)
  transform = hk.without_apply_rng(hk.transform(haiku))
  return {
    "function": (function, PARAMS),
    "nnx": (Nnx(nnx.Rngs(0)), None),
    "equinox": (Equinox(PARAMS["embed"], PARAMS["positions"], eqx.nn.Linear(12, 7, key=key)), None),
    "linen": (Linen(), Linen().init(key, ids)),
    "haiku": (transform, transform.init(key, ids)),
  }


@pytest.mark.parametrize("kind", ["function", "nnx", "equinox", "linen", "haiku"])
def test_inputs_that_do_not_fit_are_one_line(kind):
  model, params = models()[kind]
  place = r"the model fails on \{'ids': int32\[2, 6\]\}: ValueError: .*\(5, 12\).*\(test_failures.py, line \d+\)"
  with pytest.raises(UserError, match=place) as error:
    peftjax.wrap(model, params, {"ids": jax.ShapeDtypeStruct((2, 6), jnp.int32)})
  assert isinstance(error.value.__cause__, ValueError)
  wrapped = peftjax.wrap(model, params, {"ids": IDS})
  adapted = wrapped.add(methods.LoRA(rank=3, targets=("q",)), jax.random.key(1))
  for one in (wrapped, adapted):
    with pytest.raises(UserError, match=place):
      one(ids=LONGER)
    with pytest.raises(UserError, match=r"'ids'|'idz'"):
      one(idz=LONGER)
  with pytest.raises(UserError, match="'idz'"):
    peftjax.wrap(model, params, {"idz": IDS})


def test_leaves_that_do_not_fit_are_one_line():
  with pytest.raises(UserError, match=r"the model fails on .*int32\[2, 5\].*: TypeError: .*\(12,\) and \(11,\)"):
    peftjax.wrap(function, {**PARAMS, "q": {"kernel": jnp.ones((11, 7))}}, {"ids": IDS})
  found = models()
  with pytest.raises(UserError, match="ScopeParamNotFoundError: Could not find parameter named .positions."):
    peftjax.wrap(Linen(), {"params": {"embed": found["linen"][1]["params"]["embed"]}}, {"ids": IDS})
  with pytest.raises(UserError, match="Unable to retrieve parameter 'embed'"):
    peftjax.wrap(found["haiku"][0], {"q": found["haiku"][1]["q"]}, {"ids": IDS})
