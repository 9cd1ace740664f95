"""What a detector found, drawn on the pictures."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from peftjax.data.inputs.pictures import decode
from peftjax.files import write_bytes
from peftjax.train.evaluators.pictures import in_line

ACROSS, SIDE = 4, 240  # pictures in a row; pixels of the longer side of one
PAPER, TRUTH = (255, 255, 255), (255, 255, 255)


def chosen(count: int, shown: int) -> np.ndarray:
  """Places of up to `shown` of `count` examples, evenly over all."""
  return np.unique(np.linspace(0, count - 1, min(count, shown), dtype=int)) if count else np.zeros(0, int)


def drawn(
  example: Mapping[str, Any],
  rows: Mapping[str, np.ndarray],
  place: int,
  names: Sequence[str],
  score: float,
  side: int = SIDE,
) -> Image.Image:
  """One example with the boxes that were found, each with its label and score, and thin white ones where objects are.

  Args:
    rows: what the task gave for every example, of which `place` is this one's.
    score: the least that is drawn.
    side: pixels of the longer side.
  """
  picture = decode(example["image"], str(example.get("where", "picture")))
  factor = side / max(picture.size)
  picture = picture.resize((max(round(picture.width * factor), 1), max(round(picture.height * factor), 1)))
  draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
  for box in rows["true_boxes"][place][rows["true_labels"][place] >= 0]:
    draw.rectangle([float(one) * factor for one in box], outline=TRUTH, width=1)
  sure = rows["scores"][place] >= score
  for at in np.flatnonzero(sure)[np.argsort(rows["scores"][place][sure], kind="stable")]:
    label = int(rows["prediction"][place, at])
    x0, y0, x1, y1 = (float(one) * factor for one in rows["boxes"][place, at])
    x0, x1 = (min(max(one, 0.0), picture.width - 1.0) for one in (x0, x1))
    y0, y1 = (min(max(one, 0.0), picture.height - 1.0) for one in (y0, y1))
    draw.rectangle((x0, y0, x1, y1), outline=_colour(label, len(names)), width=2)
    text = f"{in_line(names[label])[:16]} {rows['scores'][place, at]:.2f}"
    top = y0 - 13 if y0 >= 13 else y0
    draw.rectangle((x0, top, x0 + draw.textlength(text, font) + 4, top + 13), fill=_colour(label, len(names)))
    draw.text((x0 + 2, top), text, PAPER, font)
  return picture


def _colour(label: int, count: int) -> tuple[int, int, int]:
  """A dark colour of its own for each label."""
  red, green, blue = colorsys.hls_to_rgb(label / max(count, 1), 0.38, 0.85)
  return round(255 * red), round(255 * green), round(255 * blue)


def sheet(
  source: Any, rows: Mapping[str, np.ndarray], names: Sequence[str], shown: int, score: float
) -> Image.Image | None:
  """Examples side by side; None without any."""
  places = chosen(len(rows["index"]), shown)
  if not len(places):
    return None
  down = -(-len(places) // ACROSS)
  found = Image.new("RGB", (min(len(places), ACROSS) * (SIDE + 8) + 8, down * (SIDE + 8) + 8), PAPER)
  for number, place in enumerate(places):
    one = drawn(source[int(rows["index"][place])], rows, place, names, score)
    left, top = 8 + number % ACROSS * (SIDE + 8), 8 + number // ACROSS * (SIDE + 8)
    found.paste(one, (left + (SIDE - one.width) // 2, top + (SIDE - one.height) // 2))
  return found


def save(
  folder: Path, split: str, source: Any, rows: Mapping[str, np.ndarray], names: Sequence[str], shown: int, score: float
) -> None:
  """``detections-SPLIT.png``."""
  if (picture := sheet(source, rows, names, shown, score)) is not None:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_bytes(folder / f"detections-{split}.png", buffer.getvalue())
