"""Energy of a training step: joules from the machine's own counter where it has one, else FLOPs, and called that.

Linux counts the microjoules of each processor package, and on some machines of its memory, in
/sys/class/powercap/intel-rapl:*/energy_uj (Intel's and AMD's "running average power limit" counters), which start again
from zero after max_energy_range_uj. The counters are of the whole package: what else runs on it, and what it takes when
it does nothing, is in the figure. Many machines, virtual ones above all, have no counter or let only root read it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.dimensions.base import ROW, Dimension, Json, Plot, Section, Trained, by_row
from peftjax.compare.drawing.rows import Line, marked
from peftjax.compare.records import Record
from peftjax.compare.training import JaxTrainer

NAME = "energy"
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


def per_step(step: Callable[[], object] | None, flops: int | None, folder: Path = POWERCAP) -> Json | None:
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


# The dimension ----------------------------------------------------------------------------------------------------


def measure(trained: Trained) -> Json | None:
  """As `per_step`, of the trial's own step on its longest batch."""
  flops = max((one["flops"] for one in trained.summary.get("compiled", ())), default=None)
  return per_step(JaxTrainer().step(trained.config) if counters() else None, flops)


def summarize(records: Sequence[Record], summary: Summary) -> Json:
  """{"unit", "rows": {"row", "run", "value", "ratio" (to the reference), "watts"}}.

  The unit is joules only if all rows have them.
  """
  held = by_row(records, summary, NAME)
  unit = JOULES if all(one["unit"] == JOULES for one in held) else FLOPS
  rows = []
  for one in held:
    row = summary.row(one["row"])
    value = one["value"] if one["unit"] == unit else row.flops_per_step if row else None
    watts = one.get("watts") if one["unit"] == unit else None
    rows.append({"row": one["row"], "run": one["run"], "value": value, "watts": watts})
  base = next((one["value"] for one in rows if one["row"] == summary.reference), None)
  for one in rows:
    one["ratio"] = one["value"] / base if base and one["value"] is not None else None
  return {"unit": unit, "rows": rows}


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Its part of the report."""
  unit, rows = found["unit"], found["rows"]
  counted = unit == JOULES
  what = "joules a step" if counted else "FLOPs a step (no energy was measured)"
  title = what[0].upper() + what[1:]
  how = (
    "Joules of the processor packages from the machine's own counters over "
    f"{SECONDS:g} seconds of steps; idle power and whatever else ran are in them."
    if counted
    else "This machine gives no energy counter that can be read, so FLOPs a step stand here. They are not energy."
  )
  drawn = [Line(one["row"], _noted(one, unit), (one["value"],)) for one in rows if one["value"] is not None]
  each = "; ".join(f"{one['row']} {_noted(one, unit)}" for one in rows)
  return Section(
    heading="Energy" if counted else "Energy: not measured here",
    sentences=(how, f"{title}: {each} (runs {fmt.runs([one['run'] for one in rows])})."),
    plots=(
      Plot(
        NAME,
        title,
        how,
        lambda narrow: marked(drawn, summary, what, narrow, from_zero=lambda value: _shown(value, unit)),
      ),
    ),
    columns=("run", "joules a step" if counted else "FLOPs a step", "against the reference", "watts"),
    rows=tuple(
      (
        one["run"],
        _shown(one["value"], unit),
        fmt.ratio(one["ratio"]),
        fmt.NONE if one["watts"] is None else f"{one['watts']:.3g}",
      )
      for one in rows
    ),
  )


def _shown(value: float | None, unit: str) -> str:
  if value is None:
    return fmt.NONE
  return f"{value:.3g} J" if unit == JOULES else fmt.short(value)


def _noted(one: Mapping[str, Any], unit: str) -> str:
  ratio = f" ({fmt.ratio(one['ratio'])})" if one["ratio"] is not None else ""
  return _shown(one["value"], unit) + ("" if unit == JOULES else " FLOPs") + ratio


DIMENSION = Dimension(NAME, measure, summarize, section, per=ROW)
