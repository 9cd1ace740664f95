"""A sheet of many pictures is as wide as a screen, and shows each of them."""

from __future__ import annotations

import numpy as np

from peftjax.image_sheets import ACROSS, GAP, LINE, sheet


def test_long_lines_go_on_below_with_what_stands_above_each_other():
  before = np.stack([np.full((8, 8, 3), 8 * number, np.uint8) for number in range(ACROSS + 3)])
  found = np.asarray(sheet([("one", (before, 255 - before)), ("two", (before[:1],))], side=8))
  step = 8 + GAP
  assert found.shape == (2 * LINE + 5 * step + GAP, ACROSS * step + GAP, 3)

  def at(line, place, texts=1):
    return found[GAP + texts * LINE + line * step + 4, GAP + place * step + 4, 0]

  for number in range(ACROSS + 3):
    part, place = divmod(number, ACROSS)
    assert at(2 * part, place) == 8 * number and at(2 * part + 1, place) == 255 - 8 * number
  assert at(2, 3) == 255 and at(4, 0, texts=2) == 0
