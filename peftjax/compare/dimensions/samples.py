"""Samples: how like their subject a row's pictures are, how far those of its class drifted, and pictures themselves."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from peftjax.compare.analysis import Estimate, Summary
from peftjax.compare.dimensions.base import Dimension, Group, Json, Plot, Section, Trained, by_group
from peftjax.compare.dimensions.told import INTERVALS, packed, range_sentence, unpacked
from peftjax.compare.drawing.rows import estimated, marked
from peftjax.compare.drawing.svg import WIDTHS, new_figure
from peftjax.compare.records import Record
from peftjax.train.evaluators.sample import DRIFT, SIMILARITY

NAME = "samples"
_TOLD = {
  SIMILARITY.name: ("Likeness to the subject", "cosine of features with the training pictures, more is better"),
  DRIFT.name: ("Drift of the class", "1 less the cosine with the untrained model's pictures, less is better"),
}


def measure(trained: Trained) -> Json | None:
  """{"similarity", "prior_drift", "sheet"}: what the evaluator `sample` found after the last step, and of the first
  seed its sheet as JPEG; None of a run without it."""
  found = {name: scores[name] for scores in trained.summary["metrics"].values() for name in _TOLD if name in scores}
  path = trained.folder / "samples" / f"{int(trained.summary['step']):06}.png"
  if not path.is_file():
    return found or None
  seeds = trained.study.get("seeds", ())
  if not seeds or int(trained.config.seed) == seeds[0]:
    found["sheet"] = packed(Image.open(path).convert("RGB"))
  return found or None


def summarize(records: Sequence[Record], summary: Summary) -> Json:
  """{"similarity", "prior_drift"}: by row over seeds; "sheets" [{"row", "jpeg"}]."""

  def value(name: str, record: Record) -> float | None:
    return record.dimensions[NAME].get(name)

  sheets = {record.row: record.dimensions[NAME]["sheet"] for record in records if record.dimensions[NAME].get("sheet")}
  return {
    **{name: by_group(records, summary, functools.partial(value, name)) for name in _TOLD},
    "sheets": [{"row": row.row, "jpeg": sheets[row.row]} for row in summary.rows if row.row in sheets],
  }


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Both figures by row, and a sheet of pictures of each."""
  sentences, plots = [], []
  for name, (title, across) in _TOLD.items():
    groups: Sequence[Group] = found[name]
    if not groups:
      continue
    sentences.append(range_sentence(groups, summary, title, _noted))
    lines = [estimated(one.row, one, _noted(one)) for one in groups]
    draw = functools.partial(marked, lines, summary, across)
    plots.append(Plot(f"{NAME}-{name.replace('_', '-')}", title, INTERVALS, draw))
  for one in found["sheets"]:
    caption = "first seed: under each prompt the untrained model's pictures, and below them those after training"
    plots.append(Plot(f"{NAME}-{one['row']}", f"Pictures of {one['row']}", caption, functools.partial(_sheet, one)))
  return Section(
    heading="Samples",
    sentences=tuple(sentences),
    plots=tuple(plots),
    columns=("run", *_TOLD),
    rows=tuple((record.run, *(_figure(record.dimensions[NAME].get(name)) for name in _TOLD)) for record in records),
  )


def _sheet(one: Mapping[str, str], narrow: bool) -> Figure:
  picture = unpacked(one["jpeg"])
  figure, axes = new_figure(narrow, WIDTHS[narrow] * picture.shape[0] / picture.shape[1])
  axes.set_position((0.0, 0.0, 1.0, 1.0))
  axes.imshow(picture, interpolation="nearest", aspect="auto")
  axes.set_axis_off()
  return figure


def _noted(one: Estimate) -> str:
  return f"{one.estimate:.3f}" + (f" [{one.low:.3f}, {one.high:.3f}]" if one.ends else "")


def _figure(value: float | None) -> str:
  return "" if value is None else f"{value:.3f}"


DIMENSION = Dimension(NAME, measure, summarize, section)
