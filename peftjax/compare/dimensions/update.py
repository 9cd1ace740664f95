"""What training did to the matrices: the effective rank of each change, and intruder dimensions
(`peftjax.adapters.spectra`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftjax import adapters
from peftjax.adapters.spectra import EPSILON, TOP, diagnose
from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Estimate, Summary
from peftjax.compare.dimensions.base import Dimension, Group, Json, Plot, Section, Trained, by_group, of_largest_size
from peftjax.compare.dimensions.told import refusal
from peftjax.compare.drawing.rows import Line, estimated, marked
from peftjax.compare.records import Record
from peftjax.errors import UserError

NAME = "update"


def measure(trained: Trained) -> Json:
  """As `diagnose`; {"reason"} where the method is no change of the base's weights."""
  try:
    return diagnose(adapters.disabled(trained.run.model), trained.model)
  except UserError as error:
    return {"reason": str(error)}


def summarize(records: Sequence[Record], summary: Summary) -> Json:
  """{"effective_rank", "relative_norm", "intruders"}: by row over seeds; "matrices" that changed by row; "without"
  {row: reason}."""
  held = {record.run: record.dimensions[NAME] for record in records}

  def of(name: str) -> list[Group]:
    changed = [record for record in records if held[record.run].get("matrices")]
    return by_group(changed, summary, lambda record: held[record.run].get(name))

  return {
    **{name: of(name) for name in ("effective_rank", "relative_norm", "intruders")},
    "matrices": {record.row: len(held[record.run].get("matrices", ())) for record in records},
    "without": {
      record.row: held[record.run].get("reason", "no matrix outside the head changed")
      for record in records
      if not held[record.run].get("matrices")
    },
  }


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Effective rank, relative norm and intruder dimensions of the changes, by row."""
  ranks, new = of_largest_size(found["effective_rank"]), {one.row: one for one in of_largest_size(found["intruders"])}
  sentences = [
    (
      "Effective rank of the change of each matrix: exp of the entropy of its normalised singular values (Roy & "
      f"Vetterli 2007). Intruder dimensions: of a tuned matrix's first {TOP} left singular vectors those whose cosine "
      f"with every pretrained one is below {EPSILON:g} (Shuttleworth et al. 2024)."
    )
  ]
  if ranks:
    told = "; ".join(
      f"{one.row} {one.estimate:.3g} with {new[one.row].estimate:.3g} intruders in {found['matrices'][one.row]} "
      "matrices"
      for one in ranks
    )
    runs = fmt.runs([run for one in ranks for run in one.runs])
    sentences.append(f"Mean effective rank: {told} (runs {runs}).")
  sentences += [refusal(row, reason) for row, reason in found["without"].items()]
  ranked = [
    Line(one.row, _noted(one), (one.estimate,), one.ends if one.ends and one.ends[0] > 0 else None) for one in ranks
  ]
  counted = [estimated(one.row, one, _noted(one)) for one in new.values()]
  return Section(
    heading="What training did to the matrices",
    sentences=tuple(sentences),
    plots=(
      Plot(
        f"{NAME}-rank",
        "Effective rank of the change",
        "Mean over matrices and seeds, on a log scale.",
        lambda narrow: marked(
          ranked, summary, "effective rank of a change, mean over matrices", narrow, log=lambda value: f"{value:.3g}"
        ),
      ),
      Plot(
        f"{NAME}-intruders",
        "Intruder dimensions",
        "Sum over matrices; small strokes are single seeds.",
        lambda narrow: marked(counted, summary, "intruder dimensions", narrow, from_zero=lambda value: f"{value:g}"),
      ),
    ),
    columns=("run", "matrices", "effective rank", "‖ΔW‖ / ‖W‖", "intruders"),
    rows=tuple(_line(record) for record in records),
  )


def _noted(one: Estimate) -> str:
  ends = f" [{one.low:.3g}, {one.high:.3g}]" if one.ends else ""
  return f"{one.estimate:.3g}{ends}".replace("-", fmt.MINUS)


def _line(record: Record) -> tuple[str, ...]:
  held = record.dimensions[NAME]
  if "reason" in held:
    return (record.run, *[fmt.NONE] * 4)
  figures = (f"{held['effective_rank']:.2f}", f"{held['relative_norm']:.3g}", str(held["intruders"]))
  return (record.run, str(len(held["matrices"])), *figures)


DIMENSION = Dimension(NAME, measure, summarize, section)
