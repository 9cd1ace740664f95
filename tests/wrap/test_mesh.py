"""A wrapped model on a mesh of four devices: the same step as on one, its leaves split."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import jax
jax.config.update("jax_num_cpu_devices", 4)
import jax.numpy as jnp
import numpy as np
import peftjax
from peftjax import masks, methods
from peftjax.parallel import mesh as mesh_lib
from peftjax.parallel.sharding import layout_of
from tests.wrap.models import Draw

draw = Draw()
params = {"layers": {"up": {"kernel": draw(3, 128, 256)}, "down": {"kernel": draw(3, 256, 128)}}}

def net(params, x):
  layer = lambda h, own: (h + jnp.tanh(h @ own["up"]["kernel"]) @ own["down"]["kernel"], None)
  return jax.lax.scan(layer, x, params["layers"])[0]

x = draw(8, 5, 128)
model = peftjax.wrap(net, params, {"x": x}).add(methods.LoRA(rank=128, targets="all-linear"), jax.random.key(0))
trainable, frozen = masks.partition(model.params, model.labels())
step = jax.jit(jax.value_and_grad(lambda part, rest, x: model.forward(masks.combine(part, rest), {"x": x}).sum()))
expected = step(trainable, frozen, x)
mesh = jax.sharding.Mesh(np.asarray(jax.devices()).reshape(1, 2, 2, 1), mesh_lib.AXES)
layout = layout_of(model, mesh)
parts = [mesh_lib.put_tree(part, layout.shardings(part)) for part in (trainable, frozen)]
split = [leaf.sharding.spec for part in parts for leaf in jax.tree.leaves(part)]
assert all(any(spec) for spec in split), split
data = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"))))
found = step(*parts, data)
for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
  np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4 * np.abs(two).max())
print("equal")
"""


@pytest.mark.slow
def test_the_step_is_the_same_on_four_devices():
  root = str(Path(__file__).parents[2])
  found = subprocess.run(
    [sys.executable, "-c", PROGRAM], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=False
  )
  assert found.returncode == 0 and "equal" in found.stdout, found.stderr[-2000:]
