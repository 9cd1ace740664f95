"""The input `boxes`: pictures with the boxes of objects in them, as the arrays that a detector reads and learns."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from peftjax.data.inputs.base import Batch, Input, Random, Shapes
from peftjax.data.inputs.image_processing import MASKED, MOST_SIDE, Processor, read_processor
from peftjax.data.inputs.pictures import decode
from peftjax.data.sources.types import Example, Header
from peftjax.errors import UserError
from peftjax.files import read_json

if TYPE_CHECKING:
  from peftjax.model import Model
  from peftjax.tasks import Task

_MOST = 100  # objects in an image, where no data is there to say
_KEPT = 0.3  # of a box's area: with less of it in a cropped picture the object is not there any more


class Boxes(Input):
  """`pixel_values` float32 [3, H, W] of an example's `image`, by the model's preprocessor_config.json; `boxes` float32
  [T, 4], (centre x, centre y, width, height) as shares of the picture, and `labels` int32 [T], below 0 from the last
  object on. Models that fill up pictures of several shapes may read `pixel_mask` int32 [H, W], 1 in the picture.

  Boxes of several objects at once (`crowd`) are left out, as in transformers. Shares are of the picture without what
  fills it up, as in DETR's weights and transformers' `post_process_object_detection`.

  Settings, all off where nothing is said; what is drawn is a function of seed, epoch and example:
    size: pixels of the longer side, in place of the processor's sizes.
    flip: left and right are exchanged in half of the training pictures.
    crop: training pictures are a random part of at least this share of both sides; objects stay that keep three tenths
      of their area.
  """

  settings = {"size": 0, "flip": False, "crop": 0.0}

  def __init__(self, config: ConfigDict, header: Header, task: Task, folder: Path | None = None):
    super().__init__(config, header, task, folder)
    for name, most in (("size", MOST_SIDE), ("crop", 1)):
      value = self.options[name]
      if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise UserError(f"input.{name}={value!r}: expected a number from 0 to {most}")

  @functools.cached_property
  def processor(self) -> Processor:
    """The model's, for `input.size`."""
    assert self.folder is not None
    found = read_processor(self.folder)
    return found.sized(int(self.options.size)) if self.options.size else found

  @functools.cached_property
  def has_mask(self) -> bool:
    """Whether the model is told which pixels are of the picture."""
    assert self.folder is not None
    return read_json(self.folder / "config.json").get("model_type") in MASKED

  def spec(self, rows: int, length: int) -> Shapes:
    height, width = self.processor.output
    most = self.header.most_boxes or _MOST
    shapes = {
      "pixel_values": jax.ShapeDtypeStruct((rows, 3, height, width), np.dtype(np.float32)),
      "boxes": jax.ShapeDtypeStruct((rows, most, 4), np.dtype(np.float32)),
      "labels": jax.ShapeDtypeStruct((rows, most), np.dtype(np.int32)),
    }
    if self.has_mask:
      shapes["pixel_mask"] = jax.ShapeDtypeStruct((rows, height, width), np.dtype(np.int32))
    return shapes

  def encode(self, example: Example, rng: Random) -> Batch:
    where = str(example.get("where", self.header.name))
    picture = decode(example["image"], where, self.processor.on_white)
    if picture.size != tuple(example["size"][::-1]):
      told = " x ".join(map(str, example["size"][::-1]))
      raise UserError(f"{where}: {picture.width} x {picture.height} pixels; its boxes are told for {told}")
    real = ~np.asarray(example["crowd"], bool)
    boxes, labels = np.asarray(example["boxes"])[real], np.asarray(example["labels"])[real]
    if rng is not None:
      picture, boxes, labels = self._augmented(picture, boxes, labels, rng)
    try:
      resized = self.processor.resized(picture)
      numbers = self.processor.numbers(self.processor.cropped(resized))
    except UserError as error:
      raise UserError(f"{where}: {error}") from None
    height, width = numbers.shape[1:]
    most = self.processor.output
    if height > most[0] or width > most[1]:
      raise UserError(f"{where}: {width} x {height} pixels do not fit {most[1]} x {most[0]}, what pictures are filled "
                      "up to; set input.size")  # fmt: skip
    batch = {"pixel_values": numbers, "boxes": shares(boxes, picture.size), "labels": labels.astype(np.int32)}
    return batch | ({"pixel_mask": np.ones((height, width), np.int32)} if self.has_mask else {})

  def _augmented(
    self, picture: Image.Image, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
  ) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    if self.options.crop:
      picture, boxes, kept = cropped(picture, boxes, rng, self.options.crop)
      labels = labels[kept]
    if self.options.flip and rng.random() < 0.5:
      picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
      boxes = np.stack([picture.width - boxes[:, 2], boxes[:, 1], picture.width - boxes[:, 0], boxes[:, 3]], axis=1)
    return picture, boxes, labels

  def fingerprint(self) -> str:
    return hashlib.sha256(f"{super().fingerprint()} {self.processor} {self.has_mask}".encode()).hexdigest()

  def check(self, model: Model) -> None:
    if "pixel_values" not in model.example_inputs:
      raise UserError(f"input.name: {model.architecture} reads no images")
    config, most = model.config, self.header.most_boxes
    if (channels := getattr(config, "num_channels", 3)) != 3:
      raise UserError(f"config.json: num_channels={channels}: pictures are read in RGB, three channels")
    for name in ("num_detection_tokens", "num_queries"):
      if (most or _MOST) > (held := getattr(config, name, most or _MOST)):
        said = f"has an image with {most} objects" if most else f"says no most_boxes, which is then {_MOST}"
        raise UserError(f"{self.header.name or 'data.name'} {said}, and config.json says {name}={held}")


def shares(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """float32 [n, 4] (centre x, centre y, width, height) as shares of a picture, from corners in its pixels.

  Args:
    size: (width, height) of the picture.
  """
  low, high = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
  return (np.concatenate([(low + high) / 2, high - low], axis=1) / np.array([*size, *size])).astype(np.float32)


def cropped(
  picture: Image.Image, boxes: np.ndarray, rng: np.random.Generator, least: float
) -> tuple[Image.Image, np.ndarray, np.ndarray]:
  """(a part of at least `least` of both sides, the boxes in it, bool [n]: which of the boxes these are)."""
  width, height = (max(round(side * rng.uniform(least, 1.0)), 1) for side in picture.size)
  left, top = int(rng.integers(picture.width - width + 1)), int(rng.integers(picture.height - height + 1))
  inner = np.clip(boxes - [left, top, left, top], 0.0, [width, height, width, height]).astype(np.float32)
  area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
  kept = (inner[:, 2] - inner[:, 0]) * (inner[:, 3] - inner[:, 1]) >= _KEPT * area
  return picture.crop((left, top, left + width, top + height)), inner[kept], kept
