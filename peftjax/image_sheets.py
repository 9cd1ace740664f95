"""Pictures side by side in one, such as those before and after a training under each prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE, LINE, GAP, PAPER, INK = 96, 16, 4, (255, 255, 255), (40, 40, 40)  # pixels of a picture, of a text's line


def sheet(rows: Sequence[tuple[str, Sequence[np.ndarray]]], side: int = SIDE) -> Image.Image:
  """Under each text its lines of pictures.

  Args:
    rows: (text, lines), a line being uint8 [N, H, W, 3].
    side: pixels of one picture.
  """
  step = side + GAP
  across = max(len(line) for _, lines in rows for line in lines)
  height = sum(LINE + len(lines) * step for _, lines in rows)
  found = Image.new("RGB", (across * step + GAP, height + GAP), PAPER)
  draw, font = ImageDraw.Draw(found), ImageFont.load_default(11)
  top = GAP
  for text, lines in rows:
    draw.text((GAP, top), text[:120], INK, font)
    top += LINE
    for line in lines:
      for place, picture in enumerate(line):
        one = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
        found.paste(one, (GAP + place * step, top))
      top += step
  return found
