"""What a program's outputs depend on, against its derivative where that is not zero by chance."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.dataflow import used_inputs


@jax.custom_jvp
def doubled(a, b):
  return 2.0 * a


doubled.defjvp(lambda primals, tangents: (2.0 * primals[0], 2.0 * tangents[0]))


@jax.custom_vjp
def halved(a, b):
  return 0.5 * b


halved.defvjp(lambda a, b: (0.5 * b, ()), lambda _, g: (jnp.zeros_like(g), 0.5 * g))


def moved(a, b, c, d):
  """A carry that reaches the output one iteration late, one that never does, and a stack of unused leaves."""

  def body(carry, layer):
    used, late, lost = carry
    one, other = layer
    return (used + late, late * one, lost + other), lost

  (used, _, _), _ = jax.lax.scan(body, (a, b, c), (jnp.stack([d, d, d]), jnp.ones((3, 3))))
  return used


def counted(a, b, c, d):
  """How often the loop runs depends on `c`."""
  return jax.lax.while_loop(lambda s: s[2].sum() < 9.0, lambda s: (s[0] * b, s[1] + d, s[2] + c * c), (a, d, c))[0]


def chosen(a, b, c, d):
  return jax.lax.cond(c.sum() > 0, lambda a, b, d: a, lambda a, b, d: b, a, b, d)


PROGRAMS = {
  "jit": (lambda a, b, c, d: jax.jit(lambda a, b, c: (a * b, c))(a, b, c)[0], "ab"),
  "remat": (lambda a, b, c, d: jax.checkpoint(lambda a, b: jnp.sin(a))(a, b) + d, "ad"),
  "custom_jvp": (lambda a, b, c, d: doubled(a, b) + jax.nn.relu(c), "ac"),
  "custom_vjp": (lambda a, b, c, d: halved(a, b) * d, "bd"),
  "scan": (moved, "abd"),
  "while": (counted, "abc"),
  "cond": (chosen, "abc"),
  "vmap": (lambda a, b, c, d: jax.vmap(lambda x, y: x)(a, b) + d, "ad"),
  "zero": (lambda a, b, c, d: a + (0.0 * b) @ c + jnp.zeros(3) * d + jnp.clip(-(0 * d), -1, 1), "a"),
  "difference": (lambda a, b, c, d: a + (b - b) * d + (c - d), "acd"),
  "gate": (lambda a, b, c, d: a + jnp.tanh(b) * c, "abc"),
  "index": (lambda a, b, c, d: a[jnp.argmax(b)] + c.shape[0], "ab"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_which_inputs_reach_an_output(name):
  program, wanted = PROGRAMS[name]
  values = [jnp.asarray(np.random.default_rng(seed).uniform(0.5, 1.0, 3), jnp.float32) for seed in range(4)]
  assert "".join(letter for letter, used in zip("abcd", used_inputs(program, *values)) if used) == wanted
  if name in ("while", "cond", "index"):  # of these some inputs decide alone, which a derivative does not see
    return
  slopes = jax.jacrev(program, argnums=(0, 1, 2, 3))(*values)
  assert "".join(letter for letter, slope in zip("abcd", slopes) if jnp.abs(slope).max() > 0) == wanted


def test_pytrees_and_shapes_are_arguments():
  tree = {"b": jax.ShapeDtypeStruct((2, 3), jnp.float32), "a": (jax.ShapeDtypeStruct((3,), jnp.float32), 1.0)}
  assert used_inputs(lambda tree, x: tree["b"] @ x, tree, jnp.ones(3)) == [False, False, True, True]
