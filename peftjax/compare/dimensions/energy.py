"""Energy of a training step: joules from the machine's own counter where it has one, else FLOPs, and called that
(`peftjax.train.energy`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.dimensions.base import ROW, Dimension, Json, Plot, Section, Trained, by_row
from peftjax.compare.drawing.rows import Line, marked
from peftjax.compare.records import Record
from peftjax.compare.training import JaxTrainer
from peftjax.train.energy import FLOPS, JOULES, SECONDS, counters, per_step

NAME = "energy"


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
  """Energy of an update by row, in the unit that was measured."""
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
