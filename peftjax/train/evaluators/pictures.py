"""What a classifier of pictures or sounds found, as pictures: examples, and which class is taken for which."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from peftjax.data.inputs.pictures import decode
from peftjax.data.inputs.spectrograms import spectrogram
from peftjax.data.sources.media import AUDIO
from peftjax.files import write_bytes

SHOWN = 24  # examples, the wrong ones first, at most half of them
ACROSS, SIDE, LINE = 6, 112, 18  # pictures in a row; pixels of one, and of the line below it
MOST_CLASSES = 100  # of a confusion matrix that can be looked at
RIGHT, WRONG, PAPER = (20, 110, 50), (180, 30, 30), (255, 255, 255)


def chosen(rows: Mapping[str, np.ndarray], count: int = SHOWN) -> np.ndarray:
  """Places in `rows` of the examples that are shown: up to half of them wrong, and right ones of the whole split."""
  wrong = np.flatnonzero(rows["correct"] == 0)
  right = np.flatnonzero(rows["correct"] == 1)
  first = wrong[np.linspace(0, len(wrong) - 1, min(len(wrong), count // 2), dtype=int)] if len(wrong) else wrong
  left = min(count - len(first), len(right))
  return np.concatenate([first, right[np.linspace(0, len(right) - 1, left, dtype=int)] if left else right[:0]])


def in_line(name: str) -> str:
  """A class's name as it can be drawn: in one line, in characters that Unicode has.

  >>> in_line("a\\nb")
  'a b'
  """
  return " ".join(name.encode("utf-8", "replace").decode().split())


def thumbnail(example: Mapping[str, Any], side: int = SIDE) -> Image.Image:
  """An example's picture, fitted into a square; of a recording its spectrogram."""
  if AUDIO.field in example:
    return spectrogram(example, side)
  picture = decode(example["image"], str(example.get("where", "picture")))
  picture.thumbnail((side, side))
  square = Image.new("RGB", (side, side), PAPER)
  square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
  return square


def sheet(source: Any, rows: Mapping[str, np.ndarray], names: Sequence[str]) -> Image.Image:
  """Examples side by side, each with what it was taken for and, where that is wrong, what it is."""
  places = chosen(rows)
  down = -(-len(places) // ACROSS)
  found = Image.new("RGB", (ACROSS * (SIDE + 8) + 8, down * (SIDE + LINE + 8) + 8), PAPER)
  draw, font = ImageDraw.Draw(found), ImageFont.load_default(12)
  for number, place in enumerate(places):
    left, top = 8 + number % ACROSS * (SIDE + 8), 8 + number // ACROSS * (SIDE + LINE + 8)
    found.paste(thumbnail(source[int(rows["index"][place])]), (left, top))
    said, label = (in_line(names[int(rows[one][place])]) for one in ("prediction", "label"))
    text = said if said == label else f"{said}, is {label}"
    while len(text) > 4 and draw.textlength(text, font) > SIDE:
      text = text[:-2].rstrip(".") + "."
    draw.text((left, top + SIDE + 2), text, RIGHT if said == label else WRONG, font)
  return found


def confusion(rows: Mapping[str, np.ndarray], classes: int) -> np.ndarray:
  """int [classes, classes]: how many examples of each class (rows) were taken for each (columns)."""
  found = np.zeros((classes, classes), np.int64)
  np.add.at(found, (rows["label"], rows["prediction"]), 1)
  return found


def drawn(matrix: np.ndarray, names: Sequence[str]) -> bytes:
  """A confusion matrix as PNG: shares of each class, with the counts where there is room."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
  from matplotlib.figure import Figure

  size = min(2.0 + 0.4 * len(names), 16.0)
  figure = Figure((size, size), layout="constrained")
  axes = figure.add_subplot()
  shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
  axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
  ticks, said = range(len(names)), [in_line(one).replace("$", r"\$") for one in names]  # two would enclose a formula
  axes.set_xticks(ticks, said, rotation=90 if max(map(len, names)) > 2 else 0)
  axes.set_yticks(ticks, said)
  axes.set_xlabel("taken for")
  axes.set_ylabel("is")
  if len(names) <= 40:
    for row, column in np.argwhere(matrix):
      colour = "white" if shares[row, column] > 0.5 else "black"
      axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour, fontsize=8)
  buffer = io.BytesIO()
  FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
  return buffer.getvalue()


def save(folder: Path, split: str, source: Any, rows: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
  """``examples-SPLIT.png``, and ``confusion-SPLIT.png`` where a matrix of the classes can be looked at."""
  buffer = io.BytesIO()
  sheet(source, rows, names).save(buffer, "PNG")
  write_bytes(folder / f"examples-{split}.png", buffer.getvalue())
  if len(names) <= MOST_CLASSES:
    write_bytes(folder / f"confusion-{split}.png", drawn(confusion(rows, len(names)), names))
