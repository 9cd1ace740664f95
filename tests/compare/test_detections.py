"""Detections in the report: pictures with boxes drawn on them, and counts."""

from __future__ import annotations

import base64
import dataclasses

import numpy as np

from peftjax.compare.dimensions import detections
from peftjax.compare.drawing.svg import svg
from peftjax.train.evaluators.detections import TRUTH, chosen, drawn, sheet
from tests.compare import synthetic
from tests.data.pictures import encoded, picture

ROWS = {
  "index": np.arange(2),
  "scores": np.array([[0.9, 0.4], [0.2, 0.1]]),
  "prediction": np.array([[1, 0], [0, 0]]),
  "boxes": np.array([[[5, 5, 25, 20], [0, 0, 8, 8]], [[0, 0, 9, 9], [-4, -3, 99, 99]]], np.float32),
  "true_boxes": np.array([[[30, 2, 38, 28]], [[0, 0, 0, 0]]], np.float32),
  "true_labels": np.array([[0], [-100]]),
}
EXAMPLES = [{"image": encoded(picture(40, 30, seed, "L")), "where": f"{seed}.png"} for seed in range(2)]


def test_boxes_are_drawn_where_they_are_and_what_is_not_sure_is_not():
  plain, found = (np.asarray(drawn(EXAMPLES[0], ROWS, 0, ("a cat", "a dog"), score, 80)) for score in (1.0, 0.5))
  assert found.shape == (60, 80, 3) and (found[4, 61:76] == TRUTH).all()  # the object's upper edge, twice as large
  changed = (plain != found).any(axis=-1)
  assert changed[24:40, 10].all() and changed[39, 12:50].all() and changed[12, 12:50].any()  # sides and label
  assert not changed[24:, 52:].any() and not changed[:8].any()  # nothing of the unsure one
  coloured = np.ptp(found.astype(int), axis=-1) > 0
  assert coloured[39, 12:50].all()
  assert (np.asarray(drawn(EXAMPLES[1], ROWS, 1, ("a cat", "a dog"), 0.15, 80)) != np.asarray(
    drawn(EXAMPLES[1], ROWS, 1, ("a cat", "a dog"), 1.0, 80))).any()  # fmt: skip
  assert sheet(EXAMPLES, ROWS, ("a cat", "a dog"), 12, 0.5).size == (2 * 248 + 8, 256)
  assert chosen(10, 4).tolist() == [0, 3, 6, 9] and not len(chosen(0, 4))


def test_the_section_shows_each_row_and_counts():
  jpeg = base64.b64encode(encoded(picture(40, 40), "JPEG")).decode()
  names = ("full", "lora")
  summary = synthetic.summary_of(*names)
  found = [
    dataclasses.replace(one, dimensions={"detections": {"found": 7, "objects": 9, "pictures": [jpeg] * 3}})
    for one in synthetic.results({name: synthetic.METHODS[name] for name in names}, seeds=1)
  ]
  section = detections.section(detections.summarize(found, summary), found, summary)
  assert section.rows == (("full/seed-0", "7", "9"), ("lora/seed-0", "7", "9"))
  assert [plot.title for plot in section.plots] == ["What full finds", "What lora finds"]
  for plot in section.plots:
    for narrow in (True, False):
      assert "data:image/png;base64," in svg(plot.draw(narrow), plot.name, plot.title)
