"""Every dimension of a row, measured of real runs of a tiny BERT: two seeds of LoRA."""

from __future__ import annotations

import copy
import json

import pytest

from peftjax.compare import dimensions
from peftjax.compare.dimensions.base import Trained
from peftjax.train import loop
from tests.compare.test_runs import make_config
from tests.train.conftest import write_data, write_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  write_model(folder / "model")
  write_data(folder / "reviews.csv")
  made = make_config(folder)
  made.method.update({"name": "lora", "rank": 2})
  with made.unlocked():
    del made["compare"]
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PEFTJAX_CACHE", str(folder / "cache"))
    summaries = {}
    for seed in (0, 1):
      one = copy.deepcopy(made)
      one.seed = seed
      summaries[seed] = loop.train(one, folder / f"runs/lora/seed-{seed}")
    yield Trained(made, folder / "runs/lora/seed-0", summaries[0])


def measured(name, trained):
  found = dimensions.dimension(name).measure(trained)
  json.dumps(found, allow_nan=False)
  return found


def test_update(trained):
  found = measured("update", trained)
  assert len(found["matrices"]) == 2 * 2  # layers, query and value
  assert 1 <= found["effective_rank"] <= 2 + 1e-4 and found["relative_norm"] > 0


def test_memory(trained):
  found = measured("memory", trained)
  assert found["shapes"][0]["arguments"]["adapter"] == trained.summary["bytes"]["gradients"]
  known = {one["shape"]: one["temp_bytes"] for one in trained.summary["compiled"]}
  held = {f"{one['rows']}x{one['length']}": one["temporary"] for one in found["shapes"]}
  assert known and all(held[shape] == size for shape, size in known.items() if shape in held)
  assert any(shape in held for shape in known)


def test_serving(trained):
  inference = measured("inference", trained)
  assert inference["flops"]["unmerged"] > inference["flops"]["merged"] and inference["difference"] < 1e-4
  switching = measured("switching", trained)
  assert switching["second"] == "lora/seed-1" and switching["compilations"] == 0 and switching["equal"]


def test_energy_and_sequence(trained):
  assert measured("energy", trained)["unit"] in ("flops", "joules")
  assert measured("sequence", trained) is None  # the study names none
