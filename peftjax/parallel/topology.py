"""Devices that are not here, as their compilers know them: a slice of TPUs, NVIDIA's cards; how much memory one has."""

from __future__ import annotations

import os
from typing import Any

import jax

from peftjax.errors import UserError, nearest
from peftjax.extras import require
from peftjax.no_tpu import NO_TPU
from peftjax.parallel.cards import CARDS, usable_bytes

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
_MOST_CARDS = 16


def topology_devices(name: str) -> list[Any]:
  """The devices of a slice of TPUs such as "v5e:4x4" or "v5p:8x8x4", of one chip, "v5e:1x1", of one of the cards of
  `peftjax.parallel.cards`, "t4", or of a machine with several, "h100-80gb:8"; they compile programs and run none.

  Raises:
    UserError: the compiler is not installed, or knows no such devices.
  """
  card, colon, _ = name.partition(":")
  if card in CARDS:
    return _cards(name)
  if not colon:  # a slice has a shape
    raise UserError(f"--topology={name}: expected a slice of TPUs, such as v5e:4x4, or a card; {nearest(name, CARDS)}")
  return _slice(name)


def _slice(name: str) -> list[Any]:
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
      f"--topology={name}: expected a generation and a shape, such as v5e:4x4, v5p:8x8x4 or v6e:8x8, or a card,"
      f" t4 or h100-80gb:8 ({reason[:160]})"
    ) from None


def _cards(name: str) -> list[Any]:
  card, _, count = name.partition(":")
  if name != card and not (count.isdecimal() and 1 <= int(count) <= _MOST_CARDS):
    raise UserError(f"--topology={name}: expected {card}, or the number of such cards in a machine, {card}:8")
  require("plan --topology of a card", "jax_plugins.xla_cuda12", "cuda")
  from jax.experimental import topologies

  shape = f"1x1x{int(count or 1)}"  # of one slice and one process
  found = topologies.get_topology_desc(
    platform="cuda", topology_name="", topology=shape, target_config=CARDS[card].described(card)
  )
  return list(found.devices)


def limit_bytes(device: Any) -> int:
  """Bytes that a program may use on a device: from the tables, from the device itself, or the machine's memory."""
  if device.device_kind in LIMITS:
    return LIMITS[device.device_kind]
  if device.device_kind in CARDS:
    return usable_bytes(device.device_kind)
  try:
    stats = device.memory_stats() or {}
  except jax.errors.JaxRuntimeError:  # a device that is not here has none to tell
    stats = {}
  if "bytes_limit" in stats:
    return int(stats["bytes_limit"])
  shared = sum(one.process_index == device.process_index for one in jax.devices())  # virtual devices share one memory
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // shared
