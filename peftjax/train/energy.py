"""Energy of a training step: joules from the machine's own counter where it has one, else FLOPs, and called that.

Linux counts the microjoules of each processor package, and on some machines of its memory, in
/sys/class/powercap/intel-rapl:*/energy_uj (Intel's and AMD's "running average power limit" counters), which start again
from zero after max_energy_range_uj. The counters are of the whole package: what else runs on it, and what it takes when
it does nothing, is in the figure. Many machines, virtual ones above all, have no counter or let only root read it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
SECONDS = 2.0  # for which steps run while the counter is read; it is refreshed about every millisecond
JOULES, FLOPS = "joules", "flops"


def counters(folder: Path = POWERCAP) -> list[Path]:
  """The zones whose counters can be read and add up: packages, and the memory beside them, which no package holds."""
  found = []
  for zone in sorted(folder.glob("intel-rapl:*")):
    try:
      name = (zone / "name").read_text().strip()
      int((zone / "energy_uj").read_text())
      int((zone / "max_energy_range_uj").read_text())
    except (OSError, ValueError):
      continue  # no such file, or only root may read it
    if name.startswith("package") or name == "dram":
      found.append(zone)
  return found


def read(zones: Sequence[Path]) -> list[int]:
  """Microjoules that each counter shows."""
  return [int((zone / "energy_uj").read_text()) for zone in zones]


def between(before: Sequence[int], after: Sequence[int], zones: Sequence[Path]) -> float:
  """Joules between two readings of the same zones; a counter that shows less than before has started again once."""
  total = 0
  for zone, first, last in zip(zones, before, after):
    total += last - first if last >= first else last - first + int((zone / "max_energy_range_uj").read_text())
  return total / 1e6


def joules_of(
  step: Callable[[], object],
  zones: Sequence[Path],
  seconds: float = SECONDS,
  clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, int, float]:
  """(joules, steps, seconds) of steps taken one after the other for about so many seconds, after one that is not
  counted.

  The counters are read after every step, so that none starts again unseen.
  """
  step()
  count, total, start = 0, 0.0, clock()
  reading = read(zones)
  while count < 2 or clock() - start < seconds:
    step()
    count += 1
    now = read(zones)
    total += between(reading, now, zones)
    reading = now
  return total, count, clock() - start


def per_step(step: Callable[[], object] | None, flops: int | None, folder: Path = POWERCAP) -> dict[str, Any] | None:
  """What a step takes.

  Args:
    step: one training step; left out, nothing is run.
    flops: of it, for machines without a counter.

  Returns:
    {"unit": "joules", "value", "steps", "watts", "zones"} where a counter moved, else {"unit": "flops", "value"}; None
    where neither is known.
  """
  zones = counters(folder) if step is not None else []
  if zones and step is not None:
    total, count, seconds = joules_of(step, zones)
    if total > 0:
      names = [(zone / "name").read_text().strip() for zone in zones]
      return {
        "unit": JOULES,
        "value": float(f"{total / count:.5g}"),
        "steps": count,
        "watts": float(f"{total / seconds:.4g}"),
        "zones": names,
      }
  return None if flops is None else {"unit": FLOPS, "value": flops}
