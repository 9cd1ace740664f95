"""The mesh from the config."""

from __future__ import annotations

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


def test_what_a_pod_trained_is_evaluated_and_exported_here():
  config = config_lib.default()
  config.mesh.update({"data": 2, "fsdp": 64, "tensor": 2})
  assert finished.on_these_devices(config).mesh.to_dict() == {"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1}
  assert config.mesh.fsdp == 64
  config.mesh.update({"data": -1, "fsdp": 1, "tensor": 1})
  assert finished.on_these_devices(config) is config
