"""The memory of a training step against batch and length (`peftjax.train.residuals`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.dimensions.base import ROW, Dimension, Json, Plot, Section, Trained, by_row
from peftjax.compare.drawing import lines
from peftjax.compare.drawing.rows import Line, marked
from peftjax.compare.records import Record
from peftjax.train.assemble import setting
from peftjax.train.residuals import KINDS, REMATS, ledger

NAME = "memory"


def measure(trained: Trained) -> Json:
  """The ledger of a trial's step over shapes of its batch, in bytes (`residuals.ledger`)."""
  known = {one["shape"]: one["temp_bytes"] for one in trained.summary.get("compiled", ())}
  return ledger(setting(trained.config, trains=True), known)


def summarize(records: Sequence[Record], summary: Summary) -> Json:
  """{"rows": {"row", "run", and the ledger}}, in the order of the summary."""
  return {"rows": by_row(records, summary, NAME)}


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Bytes of a step by row and shape of its batch: arguments, residuals, temporary."""
  rows = found["rows"]
  largest = {one["row"]: _largest(one) for one in rows}
  first = next(iter(largest.values()))
  shape = _named(first)
  told = "; ".join(
    f"{one['row']} {fmt.size(_held(one, largest[one['row']]))}, of which "
    f"{fmt.size(_residuals(one, largest[one['row']]))} for the backward pass"
    for one in rows
  )

  def along(axis: str, narrow: bool) -> Figure | None:
    drawn = {one["row"]: lines.flat(_curve(one, axis)) for one in rows}
    across = "length of a row" if axis == "length" else "rows of a batch"
    ticks = sorted({x for points in drawn.values() for x, *_ in points})
    return lines.curves(drawn, summary, across, "", narrow, ticks=ticks, from_zero=fmt.size, marks="all")

  residuals = {row: [at["residuals"][remat] for remat in REMATS] for row, at in largest.items()}
  kept = [Line(row, " · ".join(map(fmt.size, sizes)), tuple(sizes)) for row, sizes in residuals.items()]
  policies = "filled: remat none; circle: minimal; stroke: full (log scale)"
  caption = "Arguments (base, adapter, optimizer, batch) and what is saved for the backward pass, from shapes. "
  return Section(
    heading="Memory against batch and length",
    sentences=(
      (
        "Bytes of a training step's arguments are exact; residuals are the arrays that the forward pass of the traced "
        "loss leaves for its backward pass; temporary bytes are the compiler's, and hold residuals and gradients."
      ),
      f"At {shape}, under each method's own remat policy: {told} (runs {fmt.runs([one['run'] for one in rows])}).",
    ),
    plots=(
      Plot(f"{NAME}-length", "Bytes against length", caption, lambda narrow: along("length", narrow)),
      Plot(f"{NAME}-rows", "Bytes against batch", caption, lambda narrow: along("rows", narrow)),
      Plot(
        f"{NAME}-remat",
        "What remat saves",
        f"Residuals at {shape}: none, minimal, full.",
        lambda narrow: marked(kept, summary, policies, narrow, log=fmt.size),
      ),
    ),
    columns=("run", "batch", *KINDS, *(f"residuals, {remat}" for remat in REMATS), "temporary"),
    rows=tuple(
      (
        one["run"],
        _named(at),
        *(fmt.size(at["arguments"][kind]) for kind in KINDS),
        *(fmt.size(at["residuals"][remat]) for remat in REMATS),
        fmt.size(at["temporary"]),
      )
      for one in rows
      for at in one["shapes"]
    ),
  )


def _named(at: Mapping[str, Any]) -> str:
  """A shape in words.

  >>> _named({"rows": 8, "length": 128}), _named({"rows": 8, "length": 0})
  ('8 × 128', '8 rows')
  """
  return f"{at['rows']} × {at['length']}" if at["length"] else f"{at['rows']} rows"


def _largest(one: Mapping[str, Any]) -> Mapping[str, Any]:
  found: Mapping[str, Any] = max(one["shapes"], key=lambda at: (at["rows"] * at["length"], at["length"]))
  return found


def _residuals(one: Mapping[str, Any], at: Mapping[str, Any]) -> int:
  return int(at["residuals"][one["remat"]])


def _held(one: Mapping[str, Any], at: Mapping[str, Any]) -> int:
  return sum(at["arguments"].values()) + _residuals(one, at)


def _curve(one: Mapping[str, Any], axis: str) -> list[tuple[float, float]]:
  """(length or rows, bytes) where the other one of the two is the largest."""
  most, other = _largest(one), "rows" if axis == "length" else "length"
  return sorted((at[axis], _held(one, at)) for at in one["shapes"] if at[other] == most[other])


DIMENSION = Dimension(NAME, measure, summarize, section, per=ROW)
