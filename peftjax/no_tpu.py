"""Silence where there is no TPU: `libtpu`, which plans slices on any machine, writes to stderr of what it misses."""

from __future__ import annotations

import os
from pathlib import Path

# What `libtpu` asks the cloud's metadata server for, and complains of on stderr where there is none to ask.
NO_TPU = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "TPU_ACCELERATOR_TYPE": "v5litepod-1",
}


def without_noise() -> None:
  """Where there is no TPU, keeps `libtpu`, if it is installed for planning, from writing about that to stderr."""
  devices = Path("/dev")  # a host of TPUs has them as accel0 ... or below vfio
  if not any(devices.glob("accel*")) and not (devices / "vfio").exists() and "TPU_NAME" not in os.environ:
    for variable, value in NO_TPU.items():
      os.environ.setdefault(variable, value)
