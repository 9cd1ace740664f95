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
from typing import TYPE_CHECKING, Any

from peftjax.compare import formatting as fmt
from peftjax.compare.dimensions import charts
from peftjax.compare.dimensions.base import ROW, Dimension, Json, Plot, Record, Section, Summary, Trained, size_of

if TYPE_CHECKING:
  from matplotlib.figure import Figure

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
  return per_step(_step(trained) if counters() else None, flops)


def _step(trained: Trained) -> Callable[[], object]:
  from peftjax.compare.runs import training_step

  return training_step(trained.config)


def summarize(records: Sequence[Record], summary: Summary) -> Json:
  """{"unit", "rows": {"row", "run", "value", "ratio" (to the reference), "watts"}}.

  The unit is joules only if all rows have them.
  """
  held = {record["row"]: (record["run"], record["dimensions"][NAME]) for record in sorted(records, key=size_of)}
  unit = JOULES if all(one["unit"] == JOULES for _, one in held.values()) else FLOPS
  rows = [
    {"row": row["row"], "run": held[row["row"]][0], **_figures(held[row["row"]][1], row, unit)}
    for row in summary["rows"]
    if row["row"] in held
  ]
  base = next((one["value"] for one in rows if one["row"] == summary["reference"]), None)
  for one in rows:
    one["ratio"] = one["value"] / base if base and one["value"] is not None else None
  return {"unit": unit, "rows": rows}


def _figures(held: Mapping[str, Any], row: Mapping[str, Any], unit: str) -> Json:
  if held["unit"] == unit:
    return {"value": held["value"], "watts": held.get("watts")}
  return {"value": row["flops_per_step"], "watts": None}


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Its part of the report."""
  counted = found["unit"] == JOULES
  what = "joules a step" if counted else "FLOPs a step (no energy was measured)"
  how = (
    "Joules of the processor packages from the machine's own counters over "
    f"{SECONDS:g} seconds of steps; idle power and whatever else ran are in them."
    if counted
    else "This machine gives no energy counter that can be read, so FLOPs a step stand here. They are not energy."
  )

  def draw(narrow: bool) -> Figure | None:
    rows = [
      {"row": one["row"], "note": _noted(one, found["unit"]), "marks": [one["value"]]}
      for one in found["rows"]
      if one["value"] is not None
    ]
    return charts.marks(rows, summary, what, narrow, lambda value: _shown(value, found["unit"]))

  each = "; ".join(f"{one['row']} {_noted(one, found['unit'])}" for one in found["rows"])
  return Section(
    heading="Energy" if counted else "Energy: not measured here",
    sentences=(
      how,
      f"{what[0].upper()}{what[1:]}: {each} (runs {fmt.runs([one['run'] for one in found['rows']])}).",
    ),
    plots=(Plot(NAME, what[0].upper() + what[1:], how, draw),),
    columns=("run", "joules a step" if counted else "FLOPs a step", "against the reference", "watts"),
    rows=tuple(
      (
        one["run"],
        _shown(one["value"], found["unit"]),
        fmt.ratio(one["ratio"]),
        fmt.NONE if one["watts"] is None else f"{one['watts']:.3g}",
      )
      for one in found["rows"]
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
