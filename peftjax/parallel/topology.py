"""Devices that are not here: a slice of TPUs as the compiler from `libtpu` knows it; how much memory a device has."""

from __future__ import annotations

import os
from typing import Any

import jax

from peftjax.errors import UserError
from peftjax.extras import require
from peftjax.no_tpu import NO_TPU

GIB = 2**30
# Bytes that a program may use on one device, by JAX's name of its kind; a chip's memory less what the runtime keeps.
LIMITS = {
  "TPU v2": int(7.48 * GIB),
  "TPU v3": int(15.48 * GIB),
  "TPU v4": int(30.75 * GIB),
  "TPU v5 lite": int(15.75 * GIB),
  "TPU v5": int(95.74 * GIB),
  "TPU v6 lite": int(31.25 * GIB),
}


def topology_devices(name: str) -> list[Any]:
  """The devices of a slice such as "v5e:4x4" or "v5p:8x8x4", or of one chip, "v5e:1x1"; they compile programs and run
  none.

  Raises:
    UserError: `libtpu` is not installed, or knows no such slice.
  """
  require("plan --topology", "libtpu", "tpu")
  # Nothing runs on a TPU, so that several processes may hold the library.
  for variable, value in (NO_TPU | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}).items():
    os.environ.setdefault(variable, value)
  from jax.experimental import topologies

  # A slice is made of whole hosts, which have four chips or eight unless they are said to have one.
  one_chip = {"chips_per_host_bounds": (1, 1, 1)} if set(name.partition(":")[2].split("x")) == {"1"} else {}
  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **one_chip).devices)
  except Exception as error:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise UserError(
      f"--topology={name}: expected a generation and a shape, such as v5e:4x4, v5p:8x8x4 or v6e:8x8 ({reason[:160]})"
    ) from None


def limit_bytes(device: Any) -> int:
  """Bytes that a program may use on a device: from the table, from the device itself, or the machine's memory."""
  if device.device_kind in LIMITS:
    return LIMITS[device.device_kind]
  try:
    stats = device.memory_stats() or {}
  except jax.errors.JaxRuntimeError:  # a device that is not here has none to tell
    stats = {}
  if "bytes_limit" in stats:
    return int(stats["bytes_limit"])
  shared = sum(one.process_index == device.process_index for one in jax.devices())  # virtual devices share one memory
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // shared
