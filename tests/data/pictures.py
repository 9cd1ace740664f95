"""Pictures made on the spot, and folders of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (30, 40, 220), "green": (20, 200, 60), "red": (230, 30, 30)}


def picture(width: int = 31, height: int = 23, seed: int = 0, mode: str = "RGB") -> Image.Image:
  """Smooth noise in which rows, columns and channels differ."""
  random = np.random.default_rng(seed)
  small = Image.fromarray(random.integers(0, 256, (5, 7, 4), dtype=np.uint8))
  image = small.resize((width, height), Image.Resampling.BICUBIC)
  return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
  """The bytes of an image file."""
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def coloured(folder: Path, splits: dict[str, int], classes: tuple[str, ...] = tuple(COLOURS), side: int = 12) -> Path:
  """FOLDER/SPLIT/COLOUR/N.png with `splits[SPLIT]` pictures a class: noise around the class's colour."""
  for split, count in splits.items():
    for name in classes:
      (folder / split / name).mkdir(parents=True, exist_ok=True)
      for index in range(count):
        random = np.random.default_rng([index, len(name), len(split)])
        noise = random.normal(0, 25, (side, side + index % 3, 3)) + np.array(COLOURS[name])
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / split / name / f"{index}.png")
  return folder
