"""What holds for training on text holds for denoising: remat, half precision, seeds in one program, a mesh."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from peftjax.train import loop, together
from tests.train import dreambooth


@pytest.fixture(scope="module")
def material(tmp_path_factory):
  return dreambooth.write_material(tmp_path_factory.mktemp("dreambooth"))


@pytest.fixture(scope="module")
def config(material):
  with pytest.MonkeyPatch.context() as patched:
    patched.setenv("PEFTJAX_CACHE", str(material / "cache"))
    yield dreambooth.short(dreambooth.config_of(material), model__remat="none")


@pytest.fixture(scope="module")
def plain(config, tmp_path_factory):
  """(the folder of a run, its adapter)."""
  folder = tmp_path_factory.mktemp("plain") / "run"
  loop.train(config, folder)
  return folder, dreambooth.leaves_in(folder)


def test_recomputing_changes_nothing(config, plain, tmp_path):
  loop.train(dreambooth.short(config, model__remat="full"), tmp_path / "run")
  for name, leaf in dreambooth.leaves_in(tmp_path / "run").items():
    np.testing.assert_allclose(leaf, plain[1][name], atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_products_in_bfloat16_train_alike(config, plain, tmp_path):
  loop.train(dreambooth.short(config, model__compute_dtype="bfloat16"), tmp_path / "run")
  half = dreambooth.leaves_in(tmp_path / "run")
  moved, near = (
    np.concatenate([np.ravel(leaf) for name, leaf in leaves.items() if "lora_b" in name]) for leaves in (plain[1], half)
  )
  assert np.corrcoef(moved, near)[0, 1] > 0.9


def test_seeds_in_one_program_end_as_alone(config, plain, tmp_path):
  seeds = [dreambooth.short(config) for _ in range(2)]
  for seed, one in enumerate(seeds):
    one.seed = seed
  together.train_together(seeds, [tmp_path / "0", tmp_path / "1"])
  first, second = (dreambooth.leaves_in(tmp_path / name) for name in "01")
  for name, leaf in plain[1].items():
    np.testing.assert_allclose(first[name], leaf, atol=2e-5, err_msg=name)
  assert any(np.abs(first[name] - second[name]).max() > 1e-3 for name in first)


TWO_DEVICES = """
import pathlib, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
from peftjax.parallel import sharding
from peftjax.train import folder, loop
sharding.SMALLEST = 16  # so that leaves this small are split
config = folder.read_config(pathlib.Path(sys.argv[1]))[0]
config.mesh.data, config.mesh.fsdp = 1, 2
loop.train(config, sys.argv[2])
"""


def test_a_mesh_of_two_devices_trains_as_one(plain, tmp_path):
  folder, leaves = plain
  command = [sys.executable, "-c", TWO_DEVICES, str(folder), str(tmp_path / "mesh")]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  for name, leaf in dreambooth.leaves_in(tmp_path / "mesh").items():
    np.testing.assert_allclose(leaf, leaves[name], atol=2e-5, err_msg=name)
