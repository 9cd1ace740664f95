"""Pictures side by side in one, such as those before and after a training under each prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE, LINE, GAP, PAPER, INK = 96, 16, 4, (255, 255, 255), (40, 40, 40)  # pixels of a picture, of a text's line
ACROSS = 12  # pictures side by side: what a screen is wide


def sheet(rows: Sequence[tuple[str, Sequence[np.ndarray]]], side: int = SIDE) -> Image.Image:
  """Under each text its lines of pictures; long ones go on below, all lines of a text together.

  Args:
    rows: (text, lines), a line being uint8 [N, H, W, 3].
    side: pixels of one picture.
  """
  step = side + GAP
  parts = [
    (text, [line[at : at + ACROSS] for at in range(0, _longest(lines), ACROSS) for line in lines])
    for text, lines in rows
  ]
  across = max(_longest(lines) for _, lines in parts)
  height = sum(LINE + len(lines) * step for _, lines in parts)
  found = Image.new("RGB", (across * step + GAP, height + GAP), PAPER)
  draw, font = ImageDraw.Draw(found), ImageFont.load_default(11)
  top = GAP
  for text, lines in parts:
    draw.text((GAP, top), text[:120], INK, font)
    top += LINE
    for line in lines:
      for place, picture in enumerate(line):
        one = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
        found.paste(one, (GAP + place * step, top))
      top += step
  return found


def _longest(lines: Sequence[np.ndarray]) -> int:
  return max(map(len, lines))
