"""The input `captioned_images`: pictures as a diffusion model reads them, and the token ids of their captions."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.inputs import augmenting
from peftjax.data.inputs.base import Batch, Input, Random, Shapes
from peftjax.data.inputs.captions import captioned, check_label
from peftjax.data.inputs.encoded_images import RAW, EncodedImages
from peftjax.data.inputs.image_processing import MOST_SIDE, Processor
from peftjax.data.inputs.pictures import decode
from peftjax.data.inputs.pipeline import Pipeline
from peftjax.data.sources.pictures import PRIOR
from peftjax.data.sources.types import Example, Header
from peftjax.diffusion.folder import has_conditions
from peftjax.diffusion.texts import NUMBERS, SIZES
from peftjax.errors import UserError, nearest

if TYPE_CHECKING:
  from peftjax.model import Model
  from peftjax.tasks import Task

MOST_CLASS_IMAGES = 100_000
CACHES = {"latents": ("flip", "random_crop"), "text": ("caption_dropout",)}  # what is kept -> what draws it anew


class CaptionedImages(Input):
  """Arrays of a batch: `pixel_values` float32 [B, 3, S, S] in [-1, 1], the middle of the picture with its shorter side
  resized to S, and `input_ids` int32 [B, L], its caption filled up to the text encoder's length. Where the denoiser has
  SDXL's conditions, the ids of the second encoder stand behind those of the first, [B, 2 L], and `time_ids` float32
  [B, 6] are the height and width of the whole picture, top and left of what is seen of it once it is resized, S and S.
  All again behind "prior_" where the data has pictures that should stay.

  Settings:
    caption: of pictures without one of their own; "{label}" stands for the name of the picture's class.
    prior_caption: the same of pictures that should stay.
    caption_dropout: the share of training captions that become empty, so that guidance has what it needs (Ho and
      Salimans 2022).
    size: S in pixels; 0: what the denoiser is made for.
    flip: left and right are exchanged in half of the training pictures.
    random_crop: training pictures are cut anywhere, in place of the middle.
    cache: what frozen encoders give of the training examples once, before the first update, in place of in every one:
      "latents", "text" (`peftjax.data.inputs.encoded_images`).
    num_class_images: of the pictures that should stay, those that their folder lacks of so many are sampled before the
      training (`peftjax.train.class_pictures`).
  """

  settings = {"caption": "", "prior_caption": "", "caption_dropout": 0.0, "size": 0, "flip": False,
              "random_crop": False, "cache": (), "num_class_images": 0}  # fmt: skip

  def __init__(self, config: ConfigDict, header: Header, task: Task, folder: Path | None = None):
    super().__init__(config, header, task, folder)
    dropout, size, fields = self.options.caption_dropout, self.options.size, header.fields
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
      raise UserError(f"input.caption_dropout={dropout!r}: expected a share of the captions, at least 0 and below 1")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MOST_SIDE:
      raise UserError(f"input.size={size!r}: expected a whole number of pixels up to {MOST_SIDE}, or 0")
    self.class_images(self.options.num_class_images)
    self._check_cache()
    if "image" not in fields:
      held = ", ".join(fields) or "nothing of the kind"
      raise UserError(f"input.name='captioned_images' reads pictures; {header.name} holds {held}")
    kinds = [""] + ([PRIOR] if f"{PRIOR}image" in fields else [])
    for name in ("flip", "random_crop"):
      if not isinstance(self.options[name], bool):
        raise UserError(f"input.{name}={self.options[name]!r}: expected True or False")
    for kind in kinds:
      given = self.options[f"{kind}caption"]
      if not isinstance(given, str):
        raise UserError(f"input.{kind}caption={given!r:.60}: expected a text, such as 'a photo of sks dog'")
      if not given and f"{kind}text" not in fields:
        raise UserError(f"input.{kind}caption is empty, and pictures of {header.name} have no captions; "
                        "set it, such as 'a photo of sks dog'")  # fmt: skip
      check_label(f"input.{kind}caption", given, header)
    self.kinds = tuple(kinds)

  @staticmethod
  def class_images(count: Any) -> int:
    """`num_class_images`, checked.

    Raises:
      UserError: it is no number of pictures.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MOST_CLASS_IMAGES:
      raise UserError(f"input.num_class_images={count!r}: expected a whole number up to {MOST_CLASS_IMAGES:,}")
    return count

  def _check_cache(self) -> None:
    cache = self.options.cache
    if isinstance(cache, str):
      raise UserError(f"input.cache={cache!r}: expected several, such as ('latents','text')")
    for name in cache:
      if name not in CACHES:
        raise UserError(f"input.cache: no {name!r}; {nearest(str(name), CACHES)}")
      for drawn in CACHES[name]:
        if self.options[drawn]:
          raise UserError(f"input.cache: with input.{drawn}={self.options[drawn]} there is no one value to keep of "
                          f"{name}; leave one of both out")  # fmt: skip

  def training(self) -> Input:
    return self._encoded if self.options.cache else self

  @functools.cached_property
  def _encoded(self) -> EncodedImages:
    return EncodedImages(self)

  @functools.cached_property
  def pipeline(self) -> Pipeline:
    """What the pipeline's folder says of its inputs: its tokenizer, the size of its pictures."""
    assert self.folder is not None
    return Pipeline(self.folder.parent if self.folder.name == "tokenizer" else self.folder)

  @property
  def side(self) -> int:
    """Pixels of a picture's height and width: `input.size`, else what the pipeline is made for."""
    return int(self.options.size) or self.pipeline.side

  @functools.cached_property
  def processor(self) -> Processor:
    """Pictures to S by S pixels in [-1, 1]."""
    return Processor(shortest=self.side, crop=(self.side, self.side), on_white=True)

  def spec(self, rows: int, length: int) -> Shapes:
    shapes: Shapes = {}
    for kind in self.kinds:
      pixels = (rows, 3, self.side, self.side)
      shapes[f"{kind}pixel_values"] = jax.ShapeDtypeStruct(pixels, np.dtype(np.float32))
      ids = (rows, len(self.pipeline.encoders) * self.pipeline.length)
      shapes[f"{kind}input_ids"] = jax.ShapeDtypeStruct(ids, np.dtype(np.int32))
      if self.is_told_sizes:
        shapes[f"{kind}{SIZES}"] = jax.ShapeDtypeStruct((rows, NUMBERS), np.dtype(np.float32))
    return shapes

  def encode(self, example: Example, rng: Random) -> Batch:
    batch: Batch = {}
    for kind in self.kinds:
      if f"{kind}image" in example:  # pictures that are evaluated have no others beside them
        for name in RAW:
          batch |= {f"{kind}{field}": array for field, array in self.raw(example, kind, name, rng).items()}
    return batch

  def raw(self, example: Example, kind: str, name: str, rng: Random) -> Batch:
    """What an encoder reads of an example, as the array of `RAW`: pixels [3, S, S] for "latents", with "time_ids" where
    there are such; ids [L] for "text".

    Args:
      kind: "" or "prior_".
    """
    if name == "latents":
      return self._pixels(example, kind, rng)
    return {RAW[name]: np.asarray(self.pipeline.ids([self._caption(example, kind, rng)])[0])}

  @functools.cached_property
  def is_told_sizes(self) -> bool:
    """Whether the denoiser is told the sizes of a picture."""
    return has_conditions(self.pipeline.folder)

  def _caption(self, example: Example, kind: str, rng: Random) -> str:
    if rng is not None and self.options.caption_dropout and rng.random() < self.options.caption_dropout:
      return ""
    return self.caption_of(example, kind)

  def caption_of(self, example: Example, kind: str) -> str:
    """The caption of an example's picture, or with "prior_" of the one beside it."""
    if f"{kind}text" in example:
      return str(example[f"{kind}text"])
    return captioned(str(self.options[f"{kind}caption"]), example, self.header)

  def _pixels(self, example: Example, kind: str, rng: Random) -> Batch:
    where = str(example.get(f"{kind}where", self.header.name))
    picture = decode(example[f"{kind}image"], where, self.processor.on_white)
    whole = picture.size
    try:
      picture = self.processor.resized(picture)
    except UserError as error:
      raise UserError(f"{where}: {error}") from None
    left, top = ((size - self.side) // 2 for size in picture.size)
    if rng is not None and self.options.random_crop:
      left, top = (int(rng.integers(size - self.side + 1)) for size in picture.size)
    cut = picture.crop((left, top, left + self.side, top + self.side))
    if rng is not None and self.options.flip:
      flipped = augmenting.flip(cut, rng)
      left, cut = (left if flipped is cut else picture.width - self.side - left), flipped
    found: Batch = {RAW["latents"]: self.processor.numbers(np.asarray(cut))}
    if self.is_told_sizes:
      sizes = (*reversed(whole), top, left, self.side, self.side)
      found[SIZES] = np.array(sizes, np.float32)
    return found

  def fingerprint(self) -> str:
    read = (one.fingerprint() for one in self.pipeline.tokenizers)
    how = (super().fingerprint(), self.side, self.pipeline.length, self.kinds, *read)
    return hashlib.sha256(repr(how).encode()).hexdigest()

  def check(self, model: Model) -> None:
    parts = getattr(model.family, "parts", {})
    for name, tokenizer in zip(self.pipeline.encoders, self.pipeline.tokenizers, strict=True):
      if name not in parts:
        raise UserError(f"input.name='captioned_images': {model.architecture} has no component {name}")
      tokenizer.check_fits(int(parts[name].hf_config["vocab_size"]))
