"""Processes on this machine that train one run together: as one process does, also when one of them is killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from peftjax import config as config_lib
from peftjax.errors import UserError
from peftjax.parallel import hosts
from peftjax.train.rows import read_rows
from tests.parallel.equal_on_meshes import METHODS
from tests.train.conftest import write_data, write_model

STEPS = 12


@pytest.fixture(scope="module")
def material(tmp_path_factory):
  folder = tmp_path_factory.mktemp("material")
  write_model(folder / "model")
  write_data(folder / "reviews.csv")
  return folder


def free_port() -> int:
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]


def start(material: Path, folder: Path, count: int, *overrides: str, devices: int = 1) -> list[subprocess.Popen]:
  """`count` processes with some devices each, on one run."""
  given = {
    "model.path": material / "model",
    "model.dropout": 0.0,
    "data.name": f"csv:{material / 'reviews.csv'}",
    "data.max_length": 16,
    "data.buckets": "()",
    "train.batch_size": 8,
    "train.eval_batch_size": 16,
    "train.steps": STEPS,
    "train.save_every": 1,
    "train.log_every": 1,
    "train.tensorboard": False,
    "optim.learning_rate": 0.02,
  }
  command = [sys.executable, "-m", "peftjax", "train", f"--workdir={folder}"]
  command += [f"--config.{name}={value}" for name, value in given.items()] + list(overrides)
  address = f"127.0.0.1:{free_port()}"
  environment = {
    **os.environ,
    "PEFTJAX_CACHE": str(material / "cache"),
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
  }
  if count > 1:
    environment |= {"PEFTJAX_COORDINATOR": address, "PEFTJAX_PROCESSES": str(count)}
  return [
    subprocess.Popen(
      command,
      env={**environment, "PEFTJAX_PROCESS": str(index)},
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(count)
  ]


def finish(processes, within=900):
  for one in processes:
    _, errors = one.communicate(timeout=within)
    assert one.returncode == 0, errors[-3000:]


def trained(folder: Path):
  """What the run ended with: all rows of metrics, and its predictions, which depend on every trained leaf."""
  rows = read_rows(folder / "metrics.jsonl")
  with np.load(folder / "predictions-validation.npz") as found:
    return rows, {name: found[name] for name in found}


def check_equal(folder, other):
  (rows, predictions), (others, other_predictions) = trained(folder), trained(other)
  assert len(rows) == len(others) >= STEPS
  for row, one in zip(rows, others):
    assert row["step"] == one["step"]
    np.testing.assert_allclose(one["loss"], row["loss"], rtol=1e-5)
  for name, array in predictions.items():
    np.testing.assert_allclose(other_predictions[name], array, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def alone(material):
  """The run of one process with one device."""
  folder = material / "alone"
  finish(start(material, folder, 1))
  return folder


def test_two_processes_one_killed_then_another_number(material, alone, tmp_path):
  """Two processes; one is killed with -9; the other ends soon; one process with two devices goes on to the same end."""
  folder = tmp_path / "run"
  processes = start(material, folder, 2)
  while not any(row["step"] >= 2 for row in read_rows(folder / "metrics.jsonl")):
    assert all(one.poll() is None for one in processes), [one.communicate()[1][-2000:] for one in processes]
    time.sleep(0.01)
  processes[1].kill()
  _, errors = processes[0].communicate(timeout=600)
  processes[1].communicate()
  if processes[0].returncode != 0:  # it may have been through already
    assert not (folder / "summary.json").exists()
    assert "cannot go on" in errors or "heartbeat" in errors.lower() or "unavailable" in errors.lower(), errors[-2000:]
    finish(start(material, folder, 1, "--config.mesh.data=1", "--config.mesh.fsdp=2", devices=2))
  check_equal(alone, folder)


@pytest.mark.slow
def test_four_processes(material, alone, tmp_path):
  folder = tmp_path / "run"
  finish(start(material, folder, 4, "--config.mesh.data=2", "--config.mesh.fsdp=2"))
  check_equal(alone, folder)
  assert json.loads((folder / "config.json").read_text())["resolved"]["mesh"]["fsdp"] == 2


PAIRS = [f"{model}.{method}" for model in ("bert", "llama") for method in METHODS]


def in_processes(count, mesh, pairs):
  """What each of `count` processes with a device each prints of training the pairs of model and method together."""
  flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
  environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": "."}
  if count > 1:
    environment |= {"PEFTJAX_COORDINATOR": f"127.0.0.1:{free_port()}", "PEFTJAX_PROCESSES": str(count)}
  command = [sys.executable, "tests/parallel/equal_on_meshes.py", "processes", json.dumps(mesh), *pairs]
  started = [
    subprocess.Popen(
      command,
      env=environment | {"PEFTJAX_PROCESS": str(index)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(count)
  ]
  with ThreadPoolExecutor(count) as readers:  # a full pipe would hold one process, and that one all others
    printed = list(readers.map(lambda one: one.communicate(timeout=1500)[0], started))
  assert all(one.returncode == 0 for one in started), printed[0][-3000:]
  return [json.loads(out.splitlines()[-1]) for out in printed]


@pytest.mark.parametrize(
  ("count", "mesh", "pairs"),
  [
    (2, {"data": 1, "fsdp": 2}, ["bert.full", "llama.prefix"]),
    pytest.param(2, {"data": 2, "fsdp": 1}, PAIRS, marks=pytest.mark.slow),
    pytest.param(2, {"data": 1, "fsdp": 2}, PAIRS, marks=pytest.mark.slow),
    pytest.param(4, {"data": 1, "fsdp": 2, "tensor": 2}, PAIRS, marks=pytest.mark.slow),
    pytest.param(4, {"data": 2, "fsdp": 2}, PAIRS, marks=pytest.mark.slow),
  ],
)
def test_methods_in_several_processes_as_on_one_device(count, mesh, pairs):
  (alone,), each = in_processes(1, {"data": 1}, pairs), in_processes(count, mesh, pairs)
  for found in each:
    for name, one, row in zip(pairs, alone, found, strict=True):
      np.testing.assert_allclose(row["losses"], one["losses"], rtol=1e-5, err_msg=name)
      for path, leaf in one["leaves"].items():
        np.testing.assert_allclose(row["leaves"][path], leaf, rtol=1e-5, atol=1e-5, err_msg=f"{name} {path}")


def test_who_names_the_coordinator():
  config = config_lib.default()
  assert hosts.explicit(config, {}) is None
  environment = {"PEFTJAX_COORDINATOR": "a:1", "PEFTJAX_PROCESSES": "3", "PEFTJAX_PROCESS": "2"}
  assert hosts.explicit(config, environment) == ("a:1", 3, 2)
  config.hosts.update({"coordinator": "b:2", "processes": 4})
  assert hosts.explicit(config, environment) == ("b:2", 4, 2)
  config.hosts.process = 0
  assert hosts.explicit(config, environment) == ("b:2", 4, 0)
  config.hosts.process = 4
  with pytest.raises(UserError, match=r"'b:2' with processes='4', process='4'"):
    hosts.explicit(config, environment)
  assert not hosts.start(config_lib.default(), {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1"})


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_ends_both_with_their_state_saved(material, alone, tmp_path):
  folder = tmp_path / "run"
  processes = start(material, folder, 2)
  while not read_rows(folder / "metrics.jsonl"):
    assert all(one.poll() is None for one in processes), [one.communicate()[1][-2000:] for one in processes]
    time.sleep(0.01)
  processes[1].terminate()
  said = [one.communicate(timeout=600)[1] for one in processes]
  codes = [one.returncode for one in processes]
  assert codes in ([143, 143], [0, 0]), said
  if codes == [143, 143]:
    assert "the same command goes on" in said[0]
    finish(start(material, folder, 2))
  check_equal(alone, folder)
