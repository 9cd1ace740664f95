"""Detections: what each row found in some pictures, drawn on them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.dimensions.base import ROW, Dimension, Json, Plot, Section, Trained, by_row
from peftjax.compare.dimensions.told import packed, unpacked
from peftjax.compare.drawing.svg import WIDTHS, new_figure
from peftjax.compare.records import Record
from peftjax.data import open_as
from peftjax.train.evaluators.detections import chosen, drawn

NAME = "detections"
SHOWN, SIDE = 8, 160  # pictures of a row, and the pixels of their longer side
SURE = 0.5  # the least score that is drawn and counted


def measure(trained: Trained) -> Json | None:
  """{"found", "objects", "pictures"}: how many predictions were sure, how many objects there are, and examples as JPEG.
  None of tasks that find no boxes."""
  data = trained.config.data
  split = str(trained.study.get("split", "test"))
  _, rows = trained.scores(split)
  if "true_boxes" not in rows:
    return None
  dataset = open_as(data.name, data)
  shown = []
  for place in chosen(len(rows["index"]), SHOWN) if split in dataset.splits else ():
    example = dataset.split(split)[int(rows["index"][place])]
    shown.append(packed(drawn(example, rows, int(place), dataset.label_names, SURE, SIDE)))
  return {
    "found": int((rows["scores"] >= SURE).sum()),
    "objects": int((rows["true_labels"] >= 0).sum()),
    "pictures": shown,
  }


def summarize(records: Sequence[Record], summary: Summary) -> Json:
  """{"rows"}: what was measured of each row's first seed."""
  return {"rows": by_row(records, summary, NAME)}


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Its part of the report."""
  del records, summary
  rows = found["rows"]
  plots = [
    Plot(
      f"{NAME}-{number}",
      f"What {row['row']} finds",
      "first seed; objects are outlined in white",
      functools.partial(pictures, row["pictures"]),
    )
    for number, row in enumerate(rows)
    if row["pictures"]
  ]
  return Section(
    heading="Detections",
    sentences=(f"Predictions with a score of at least {SURE}, of one seed of each row.",),
    plots=tuple(plots),
    columns=("run", "predictions", "objects"),
    rows=tuple((row["run"], fmt.whole(row["found"]), fmt.whole(row["objects"])) for row in rows),
  )


def pictures(shown: Sequence[str], narrow: bool) -> Figure:
  """JPEGs in base64, side by side."""
  across = 2 if narrow else 4
  down = -(-len(shown) // across)
  figure, first = new_figure(narrow, down * WIDTHS[narrow] / across)
  first.remove()
  for number, one in enumerate(shown):
    line, place = divmod(number, across)
    axes = figure.add_axes((place / across + 0.01, 1 - (line + 1) / down + 0.01, 1 / across - 0.02, 1 / down - 0.02))
    axes.imshow(unpacked(one), interpolation="nearest")
    axes.set_axis_off()
  return figure


DIMENSION = Dimension(NAME, measure, summarize, section, per=ROW, untrained=True)
