"""Tiny models by every kind of method on meshes of 8 virtual devices: as on one device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest


def on_8_devices(*args: str, program: str = "equal_on_meshes.py") -> Any:
  flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
  done = subprocess.run(
    [sys.executable, f"tests/parallel/{program}", *args],
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": "."},
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)


def check(rows):
  for row in rows:
    np.testing.assert_allclose(row["others"], row["losses"], rtol=1e-5, err_msg=f"{row}")
    assert row["apart"] < 1e-5, row
    if row["mesh"].get("fsdp", 1) > 1:  # most bytes are split
      assert row["share"] < 0.36 if row["mesh"]["fsdp"] == 2 else row["share"] < 0.25, row


def test_each_method_on_a_mesh_of_its_own():
  rows = on_8_devices("some", "bert", "llama")
  assert len(rows) == 6
  assert len({tuple(row["mesh"].items()) for row in rows}) == 4
  check(rows)


def test_kernels_that_come_together_in_two_stages():
  check(on_8_devices("staged", "bert", "llama"))


@pytest.mark.slow
def test_each_method_on_each_mesh():
  rows = on_8_devices("all", "bert", "llama")
  assert len(rows) == 48
  check(rows)


def test_leaves_are_read_merged_and_exported_in_parts(tmp_path):
  found = on_8_devices(str(tmp_path), program="sharded_loading.py")
  assert found["loaded"] == {"float32": True, "bfloat16": True} and found["nf4"]
  assert found["split"] >= 10
  assert found["smallest_share"] <= 1 / 8  # a device's part of a kernel, not the kernel
  assert found["apart"] < 1e-2  # of bfloat16 leaves, whose sums may round otherwise
