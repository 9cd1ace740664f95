"""The mesh from the config, and training on one of 8 virtual devices equal to one device's."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import jax
import pytest

from peftjax import config as config_lib
from peftjax.errors import UserError
from peftjax.parallel import mesh as mesh_lib
from peftjax.train import finished


def mesh_config(**fields):
  config = config_lib.default().mesh
  config.update(fields)
  return config


def test_what_is_left_goes_to_the_open_axis():
  assert mesh_lib.make_mesh(mesh_config(), jax.devices()[:1]).shape == {
    "data": 1,
    "fsdp": 1,
    "tensor": 1,
    "sequence": 1,
  }


@pytest.mark.parametrize("fields", [{"data": 3}, {"data": -1, "fsdp": -1}, {"data": 0}, {"fsdp": 2}])
def test_sizes_that_do_not_fit(fields):
  with pytest.raises(UserError, match=r"mesh\.data="):
    mesh_lib.make_mesh(mesh_config(**fields), jax.devices()[:1])


def test_sharded_training_equals_one_device():
  program = """
    import sys
    sys.path.insert(0, "tests/train")
    import jax, numpy as np
    import conftest
    from peftjax import config as config_lib, masks, optim, tasks
    from peftjax.parallel import mesh as mesh_lib
    from peftjax.train.state import init_state
    from peftjax.train.step import make_loss, make_train_step

    def train(data, fsdp, devices):
      config = config_lib.default()
      config.mesh.update({"data": data, "fsdp": fsdp})
      config.optim.learning_rate = 1e-2
      mesh = mesh_lib.make_mesh(config.mesh, devices)
      params = conftest.tiny_params(hidden=8, rank=4)
      labels = masks.label(params, conftest.lora_mask, conftest.STACKS)
      trainable, frozen = masks.partition(params, labels)
      optimizer = optim.make_optimizer(config.optim, labels, 4, stacks=conftest.STACKS)
      step = make_train_step(make_loss(conftest.tiny_forward, tasks.make("text_classification", "abc")), optimizer, 2)
      state = init_state(trainable, optimizer, 0)
      rule = mesh_lib.largest_axis(mesh, smallest=8)
      place = mesh_lib.tree_shardings(mesh, state, rule), mesh_lib.tree_shardings(mesh, frozen, rule)
      state, frozen = jax.device_put(state, place[0]), jax.device_put(frozen, place[1])
      batch_place = mesh_lib.batch_sharding(mesh)
      compiled = jax.jit(
        step, in_shardings=(*place, batch_place), out_shardings=(place[0], mesh_lib.replicated(mesh)), donate_argnums=0
      )
      for seed in range(4):
        state, metrics = compiled(state, frozen, mesh_lib.put_batch(mesh, conftest.tiny_batch(16, seed=seed)))
      if fsdp > 1:
        assert not state.trainable["encoder"]["layer"]["query"]["lora_a"].sharding.is_fully_replicated
      return jax.device_get((state.trainable, metrics["loss"]))

    devices = jax.devices()
    assert len(devices) == 8
    one = train(1, 1, devices[:1])
    for data, fsdp in [(8, 1), (-1, 4)]:
      other = train(data, fsdp, devices)
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other)
    print("equal")
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(program)],
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
  )
  assert done.stdout.strip() == "equal", done.stderr[-3000:]


def test_what_a_pod_trained_is_evaluated_and_exported_here():
  config = config_lib.default()
  config.mesh.update({"data": 2, "fsdp": 64, "tensor": 2})
  assert finished._on_these_devices(config).mesh.to_dict() == {"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1}
  assert config.mesh.fsdp == 64
  config.mesh.update({"data": -1, "fsdp": 1, "tensor": 1})
  assert finished._on_these_devices(config) is config
