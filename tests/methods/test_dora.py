"""DoRA's cost: next to LoRA's, and without a temporary as large as a kernel."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import methods
from peftjax.errors import UserError
from peftjax.methods import Call, Site

IN, OUT, TOKENS = 640, 512, 160
SITE = Site(("layer",), "__call__", "linear", ("layer",), (), (IN, OUT))


def compiled(method: methods.Method) -> tuple[float, int, str]:
  """(FLOPs, temporary bytes, optimised program) of a loss over one layer and its gradients, the base frozen."""
  kernel = jnp.zeros((IN, OUT))
  base = {"kernel": kernel, "bias": jnp.zeros(OUT)}
  leaves = method.create(jax.random.key(0), SITE, base)

  def loss(leaves: dict[str, Any], x: jax.Array, base: dict[str, Any]) -> jax.Array:
    call = Call(base=base.get, shared={}, dropout=lambda value, rate: value)
    y = method.after(leaves, x, x @ base["kernel"] + base["bias"], SITE, call)
    return jnp.sum(jnp.square(y))

  step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(leaves, jnp.zeros((TOKENS, IN)), base).compile()
  return step.cost_analysis()["flops"], step.memory_analysis().temp_size_in_bytes, step.as_text()


@pytest.mark.parametrize("settings", [{}, {"init": "olora"}], ids=["fresh", "from the base"])
def test_a_step_costs_at_most_1_15_times_loras_and_holds_nothing_as_large_as_the_kernel(settings: dict[str, Any]):
  dora, lora = (compiled(method(rank=8, **settings)) for method in (methods.DoRA, methods.LoRA))
  assert dora[0] <= 1.15 * lora[0]
  assert dora[1] - lora[1] < IN * OUT * 4
  # Fused computations name the shapes of values that never exist; what the entry computation names does.
  entry = dora[2][dora[2].index("ENTRY") :]
  made = [line for line in entry.splitlines() if re.search(rf"= f32\[({IN},{OUT}|{OUT},{IN})\]", line)]
  assert made and all("parameter(" in line for line in made), made


def test_the_norm_is_that_of_the_formed_matrix():
  rng = np.random.default_rng(0)
  site = Site(("layer",), "__call__", "linear", ("layer",), (), (13, 7))
  kernel = jnp.asarray(rng.standard_normal((13, 7)), jnp.float32)
  method = methods.DoRA(rank=3, alpha=5.0)
  leaves = {
    "lora_a": jnp.asarray(rng.standard_normal((13, 3)), jnp.float32),
    "lora_b": jnp.asarray(rng.standard_normal((3, 7)), jnp.float32),
    "lora_magnitude": jnp.ones(7),
  }
  changed = kernel + method.delta(leaves, {"kernel": kernel}, site, {})["kernel"]
  np.testing.assert_allclose(jnp.linalg.norm(changed, axis=0), np.ones(7), rtol=1e-5)


def test_a_bias_on_b_is_refused():
  with pytest.raises(UserError, match=r"dora\.lora_bias"):
    methods.DoRA(lora_bias=True)
