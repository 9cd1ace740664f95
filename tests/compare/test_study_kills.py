"""A whole study killed ten times at random moments: search, sizes, a frozen row, flipped labels, dimensions and all.

Of ``results.jsonl`` everything is compared but "step_seconds" and "train_seconds", which are the clock's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from peftjax.compare.study import run_study
from peftjax.compare.training import JaxTrainer
from peftjax.compare.trials import FROZEN
from tests.compare import test_runs
from tests.train.conftest import write_data, write_model

KILLS = 10
CLOCK = ("step_seconds", "train_seconds")
SCRIPT = """
import sys
from pathlib import Path
from peftjax.compare.study import run_study
from tests.compare.test_study_kills import make_config
run_study(make_config(Path(sys.argv[1])), sys.argv[2])
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory):
  folder = tmp_path_factory.mktemp("material")
  write_model(folder / "model")
  write_data(folder / "reviews.csv")
  write_data(folder / "away.csv")
  return folder


def make_config(material):
  config = test_runs.make_config(material)
  config.data.shifted = (f"csv:{material / 'away.csv'}",)
  config.data.flip_labels = 0.2
  config.data.eval_examples = 24
  config.train.update({"eval_first": True, "eval_every": 4, "save_every": 3})
  config.train.final_splits = ("train", "validation")
  config.compare.methods[FROZEN] = {}
  config.compare.sizes = (16, 40)
  config.compare.search.update({"seeds": (100,), "trials": 3})
  config.compare.timing_rounds = 0
  return config


def test_a_frozen_row_flips_and_a_budget_in_one_small_study(material, tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(material / "cache"))
  config = make_config(material)
  config.compare.search.seeds = ()
  config.compare.sizes = ()
  config.compare.seeds = (0,)
  config.train.steps = 0
  flops = JaxTrainer().step_flops(test_runs.make_config(material))
  config.compare.budget_flops = 5.5 * flops
  outcome = run_study(config, tmp_path)
  assert outcome.exit_code == 0
  rows = {row.row: row for row in outcome.summary.rows}
  kept = json.loads((tmp_path / "budget.json").read_text())["rows"]
  assert set(kept) == {"full", "lora"} and kept["full"]["flops_per_step"] > kept["lora"]["flops_per_step"]
  for row in kept:
    assert rows[row].steps == kept[row]["steps"] == 5.5 * flops // kept[row]["flops_per_step"]
  assert rows[FROZEN].steps == 0 and rows[FROZEN].parameters.trainable == 0
  assert rows[FROZEN].flops_ratio is None and rows["lora"].flops_ratio < 1
  flips = outcome.summary.dimensions["flips"]["memorised"]
  held = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
  assert {one.row for one in flips} == {"full", "lora", FROZEN}
  for record in held:
    one = record["dimensions"]["flips"]
    assert one["flipped"] > 0 and one["memorised"] + one["true"] == pytest.approx(1.0)  # two labels
    assert set(record["scores"]) == {"train", "validation", "test", "away"}
  page = (tmp_path / "report.html").read_text()
  for heading in ("Memorised labels", "Out of domain", "Convergence", "Overfitting"):
    assert f">{heading}<" in page


@pytest.mark.slow
def test_killed_ten_times_and_resumed(material, tmp_path):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  for folder in (whole, parts):
    folder.mkdir()
  finish(start(material, whole))
  total, random = progress(whole), np.random.default_rng(0)
  killed = 0
  for target in np.sort(random.choice(np.arange(1, total - 8), KILLS, replace=False)):
    process = start(material, parts)
    while process.poll() is None and progress(parts) < target:
      time.sleep(0.01)
    time.sleep(random.uniform(0.0, 0.3))
    process.kill()
    process.communicate()
    killed += process.returncode == -9
  assert killed == KILLS and not (parts / "summary.json").exists()
  finish(start(material, parts))
  assert timeless(parts) == timeless(whole)
  for name in ("search.json", "config.json"):
    assert (parts / name).read_bytes() == (whole / name).read_bytes()


def start(material: Path, folder: Path) -> subprocess.Popen[bytes]:
  environment = os.environ | {"PEFTJAX_CACHE": str(material / "cache"), "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-c", SCRIPT, str(material), str(folder)]
  return subprocess.Popen(command, cwd=test_runs.ROOT, env=environment, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
  _, told = process.communicate()
  assert process.returncode == 0, told.decode()[-2000:]


def progress(folder: Path) -> int:
  """Lines that the runs have written so far; folders may be renamed meanwhile, which `os.walk` passes over."""
  found = [Path(place) / "metrics.jsonl" for place, _, names in os.walk(folder) if "metrics.jsonl" in names]
  return sum(path.read_bytes().count(b"\n") for path in found)


def timeless(folder: Path) -> bytes:
  """``results.jsonl`` without the clock's figures, as bytes."""
  lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
  kept = [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]
  return "".join(json.dumps(line, sort_keys=True) + "\n" for line in kept).encode()
