"""What holds for training on text holds for denoising: remat and half precision."""

from __future__ import annotations

import numpy as np
import pytest

from peftjax.train import loop
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
