"""The input `images`: pictures as the arrays that a vision model reads, by its own processor, all of one size."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from peftjax.data.inputs import augmenting
from peftjax.data.inputs.base import Batch, Input, Random, Shapes, weight_and_index
from peftjax.data.inputs.image_processing import MOST_SIDE, Processor, read_processor
from peftjax.data.inputs.pictures import decode
from peftjax.data.sources.types import OTHER_LABELS, OWN_SHARE, Example, Header
from peftjax.errors import UserError

if TYPE_CHECKING:
  from peftjax.model import Model
  from peftjax.tasks import Task

_RANGES = {"size": (0, MOST_SIDE), "crop": (0, 1), "rand_augment": (0, 20), "magnitude": (0, 10), "mixup": (0, 100),
           "cutmix": (0, 100)}  # fmt: skip


class Images(Input):
  """`pixel_values` float32 [3, H, W] of an example's `image`, as the model's preprocessor_config.json says.

  Settings, all off where nothing is said; what is drawn is a function of seed, epoch and example:
    size: pixels of either side, in place of the processor's.
    crop: training pictures are a random part of at least this share of the area, in place of the middle.
    flip: left and right are exchanged in half of the training pictures.
    rand_augment: how many operations change a training picture, and
    magnitude: how strong, of 10.
    mixup, cutmix: α of the share at which a training picture is mixed with its neighbour in the batch; its label is
      then both at these shares (`other_labels`, `own_share`).
  """

  settings = {"size": 0, "crop": 0.0, "flip": False, "rand_augment": 0, "magnitude": 5.0, "mixup": 0.0, "cutmix": 0.0}

  def __init__(self, config: ConfigDict, header: Header, task: Task, folder: Path | None = None):
    super().__init__(config, header, task, folder)
    for name, (least, most) in _RANGES.items():
      value = self.options.get(name, 0)
      if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UserError(f"input.{name}={value!r}: expected a number from {least} to {most}")
    if self.mixes and len(header.label_names) < 2:
      raise UserError("input.mixup and input.cutmix mix the labels of classes, and this data has none")

  @property
  def mixes(self) -> bool:
    """Whether pictures are mixed."""
    return bool(self.options.mixup or self.options.cutmix)

  @functools.cached_property
  def processor(self) -> Processor:
    """The model's, for `input.size`."""
    assert self.folder is not None
    found = read_processor(self.folder)
    return found.sized(int(self.options.size)) if self.options.size else found

  def spec(self, rows: int, length: int) -> Shapes:
    shape = (rows, 3, *self.processor.output)
    shapes = {"pixel_values": jax.ShapeDtypeStruct(shape, np.dtype(np.float32))}
    if self.mixes:
      shapes[OTHER_LABELS] = self.label_spec(rows)["labels"]
      shapes[OWN_SHARE] = jax.ShapeDtypeStruct((rows,), np.dtype(np.float32))
    return shapes

  def encode(self, example: Example, rng: Random) -> Batch:
    where = str(example.get("where", self.header.name))
    picture = decode(example["image"], where, self.processor.on_white)
    try:
      return {"pixel_values": self.processor(picture) if rng is None else self._augmented(picture, rng)}
    except UserError as error:
      raise UserError(f"{where}: {error}") from None

  def _augmented(self, picture: Image.Image, rng: np.random.Generator) -> np.ndarray:
    processor, options = self.processor, self.options
    if options.crop:
      picture = augmenting.random_resized_crop(picture, rng, processor.output, options.crop, processor.resample)
    else:
      picture = processor.resized(picture)
    if options.flip:
      picture = augmenting.flip(picture, rng)
    if options.rand_augment:
      picture = augmenting.rand_augment(picture, rng, int(options.rand_augment), options.magnitude)
    return processor.numbers(processor.cropped(picture))

  def batch(self, examples: Sequence[Example], ids: np.ndarray, length: int, rngs: Iterable[Random]) -> Batch:
    drawn = list(rngs)
    batch = self.collate([self.encode(one, rng) for one, rng in zip(examples, drawn)], len(ids), length)
    batch = self.labelled(batch, examples, ids) | weight_and_index(ids)
    if self.mixes:
      count = len(examples)
      batch[OTHER_LABELS], batch[OWN_SHARE] = batch["labels"].copy(), np.ones(len(ids), np.float32)
      own = [rng for rng in drawn[:count] if rng is not None]
      if own:
        batch[OWN_SHARE][:count] = augmenting.mix(
          batch["pixel_values"][:count], own, self.options.mixup, self.options.cutmix
        )
        batch[OTHER_LABELS][:count] = np.roll(batch["labels"][:count], 1, axis=0)
    return batch

  def fingerprint(self) -> str:
    return hashlib.sha256(f"{super().fingerprint()} {self.processor}".encode()).hexdigest()

  def check(self, model: Model) -> None:
    channels = getattr(model.config, "num_channels", 0)
    if "pixel_values" not in model.example_inputs:
      raise UserError(f"input.name: {model.architecture} reads no images")
    if channels != 3:
      raise UserError(f"config.json: num_channels={channels}: pictures are read in RGB, three channels")
