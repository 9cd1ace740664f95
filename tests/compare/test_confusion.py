"""Confusions in the report: the matrices of the rows, and examples as pictures in the page."""

from __future__ import annotations

import base64
import dataclasses

import numpy as np

from peftjax.compare.dimensions import confusion
from peftjax.compare.drawing.svg import svg
from tests.compare import synthetic
from tests.data.pictures import encoded, picture

NAMES = ["a cat", "a dog", "a fish"]
MATRIX = {"full": [[5, 0, 0], [0, 5, 0], [0, 0, 5]], "lora": [[5, 0, 0], [3, 2, 0], [1, 0, 4]]}


def jpeg(seed):
  return base64.b64encode(encoded(picture(40, 40, seed), "JPEG")).decode()


def records():
  shown = [{"label": "a cat", "prediction": "a dog" if seed % 2 else "a cat", "jpeg": jpeg(seed)} for seed in range(5)]
  return [
    dataclasses.replace(one, dimensions={"confusion": {"labels": NAMES, "matrix": MATRIX[one.row], "pictures": shown}})
    for one in synthetic.results({name: synthetic.METHODS[name] for name in MATRIX}, seeds=1)
  ]


def test_the_section_says_shows_and_lists():
  summary, found = synthetic.summary_of(*MATRIX), records()
  section = confusion.section(confusion.summarize(found, summary), found, summary)
  assert "full makes no mistake." in section.sentences
  assert "lora most often takes a dog for a cat (3 times)." in section.sentences
  assert section.rows == (("full/seed-0", "15", "15"), ("lora/seed-0", "15", "11"))
  for plot in section.plots:
    for narrow in (True, False):
      drawn = svg(plot.draw(narrow), plot.name, plot.title)
      assert ("data:image/png;base64," in drawn) == plot.name.endswith("pictures")


def test_the_matrix_counts_classes_by_what_they_were_taken_for():
  rows = {"label": np.array([0, 0, 1, 2, 2]), "prediction": np.array([0, 1, 1, 0, 0])}
  np.testing.assert_array_equal(confusion.confusion(rows, 3), [[1, 1, 0], [0, 1, 0], [2, 0, 0]])
