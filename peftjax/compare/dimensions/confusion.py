"""Confusions: which class each row takes for which, and, where examples are pictures or sounds, some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.dimensions.base import ROW, Dimension, Json, Plot, Section, Trained, by_row
from peftjax.compare.dimensions.told import packed, unpacked
from peftjax.compare.drawing.heat import heat
from peftjax.compare.drawing.svg import INK, WIDTHS, font_size, new_figure
from peftjax.compare.metrics import SHARE
from peftjax.compare.records import Record
from peftjax.data import open_as
from peftjax.data.sources.media import MEDIA
from peftjax.train.evaluators.pictures import chosen, confusion, thumbnail

NAME = "confusion"
MOST_CLASSES = 30  # of a matrix that fits a report
SHOWN, SIDE = 12, 72  # pictures of a row, and their pixels


def measure(trained: Trained) -> Json | None:
  """{"labels", "matrix", "pictures"}: the classes, how many examples of each were taken for each, and examples as JPEG
  with label and prediction. None of tasks without classes, or with more than fit."""
  data = trained.config.data
  split = str(trained.study.get("split", "test"))
  dataset = open_as(data.name, data)
  _, rows = trained.scores(split)
  names = dataset.label_names
  if "correct" not in rows or rows["prediction"].ndim != 1 or not 2 <= len(names) <= MOST_CLASSES:
    return None
  found: Json = {"labels": list(names), "matrix": confusion(rows, len(names)).tolist(), "pictures": []}
  if {one.field for one in MEDIA} & set(dataset.fields) and split in dataset.splits:
    source = dataset.split(split)
    for place in chosen(rows, SHOWN):
      jpeg = packed(thumbnail(source[int(rows["index"][place])], SIDE), quality=80)
      label, said = names[int(rows["label"][place])], names[int(rows["prediction"][place])]
      found["pictures"].append({"label": label, "prediction": said, "jpeg": jpeg})
  return found


def summarize(records: Sequence[Record], summary: Summary) -> Json:
  """{"rows"}: what was measured of each row's first seed."""
  return {"rows": by_row(records, summary, NAME)}


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Its part of the report."""
  rows = found["rows"]
  told = [sentence for row in rows if (sentence := _commonest(row))]
  best = max(rows, key=lambda row: int(np.trace(np.asarray(row["matrix"]))))
  plots = [
    Plot(
      f"{NAME}-matrix",
      "What is taken for what",
      f"per cent of each class (lines, 1 to {len(best['labels'])}: {', '.join(best['labels'])}) by predicted class",
      lambda narrow: heat({row["row"]: _shares(row["matrix"]) for row in rows}, summary, SHARE, narrow),
    )
  ]
  if best["pictures"]:
    caption = f"{best['row']}, first seed: up to half of them wrong, with what they were taken for"
    plots.append(Plot(f"{NAME}-pictures", "Examples", caption, lambda narrow: pictures(best["pictures"], narrow)))
  return Section(
    heading="Confusions",
    sentences=(*told, "One seed of each row, on the split that conclusions rest on."),
    plots=tuple(plots),
    columns=("run", "examples", "right"),
    rows=tuple(
      (row["run"], fmt.whole(int(matrix.sum())), fmt.whole(int(np.trace(matrix))))
      for row in rows
      if (matrix := np.asarray(row["matrix"])).size
    ),
  )


def _shares(matrix: Sequence[Sequence[int]]) -> list[list[float | None]]:
  """Each class's, None where there is nothing."""
  return [[one / sum(line) if one else None for one in line] for line in matrix]


def _commonest(row: Mapping[str, Any]) -> str:
  matrix, names = np.array(row["matrix"]), row["labels"]
  np.fill_diagonal(matrix, 0)
  if not matrix.any():
    return f"{row['row']} makes no mistake."
  label, said = np.unravel_index(matrix.argmax(), matrix.shape)
  return f"{row['row']} most often takes {names[label]} for {names[said]} ({fmt.whole(int(matrix.max()))} times)."


def pictures(shown: Sequence[Mapping[str, str]], narrow: bool) -> Figure:
  """Examples in rows, each with what it was taken for below it."""
  across = 4 if narrow else 6
  down = -(-len(shown) // across)
  cell = WIDTHS[narrow] / across
  figure, first = new_figure(narrow, down * (cell + 0.2))
  first.remove()
  for number, one in enumerate(shown):
    line, place = divmod(number, across)
    axes = figure.add_axes((place / across + 0.01, 1 - (line + 1) / down + 0.2 / down, 1 / across - 0.02, 0.78 / down))
    axes.imshow(unpacked(one["jpeg"]), interpolation="nearest")
    axes.set_axis_off()
    is_right = one["label"] == one["prediction"]
    text = one["label"] if is_right else f"{one['prediction']}, is {one['label']}"
    axes.set_title(
      text[:24], fontsize=font_size(narrow), color=INK, y=-0.2, fontweight="normal" if is_right else "bold"
    )
  return figure


DIMENSION = Dimension(NAME, measure, summarize, section, per=ROW, untrained=True)
