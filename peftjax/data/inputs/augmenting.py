"""Changes to training pictures that leave their class as it is; all that is drawn comes from the example's `rng`."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Size = tuple[int, int]
_TRIES = 10
_RATIOS = (3 / 4, 4 / 3)
_GREY = (128, 128, 128)


def random_resized_crop(
  picture: Image.Image, rng: np.random.Generator, output: Size, least: float, resample: int
) -> Image.Image:
  """A part of `least` to all of the area, of sides 3:4 to 4:3, resized to `output` (Szegedy et al. 2014, 1409.4842).

  Where no such part fits in ten tries, the largest in the middle that keeps to the ratios.
  """
  width, height = picture.size
  box: tuple[float, float, float, float] | None = None
  for _ in range(_TRIES):
    area = width * height * rng.uniform(least, 1.0)
    ratio = math.exp(rng.uniform(math.log(_RATIOS[0]), math.log(_RATIOS[1])))
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    left, top = rng.random(2)
    if 0 < w <= width and 0 < h <= height and box is None:
      x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
      box = (x, y, x + w, y + h)
  if box is None:
    w, h = min(width, round(height * _RATIOS[1])), min(height, round(width / _RATIOS[0]))
    x, y = (width - w) // 2, (height - h) // 2
    box = (x, y, x + w, y + h)
  return picture.resize((output[1], output[0]), resample=resample, box=box)


def flip(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
  """Left and right exchanged, in half of the cases."""
  return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else picture


def rand_augment(picture: Image.Image, rng: np.random.Generator, count: int, magnitude: float) -> Image.Image:
  """`count` operations drawn from `OPERATIONS`, as strong as `magnitude` of 10 says (Cubuk et al. 2019, 1909.13719).

  Signed ones go either way.
  """
  for _ in range(count):
    operation = OPERATIONS[rng.integers(len(OPERATIONS))]
    sign = 1.0 if rng.random() < 0.5 else -1.0
    picture = operation(picture, magnitude / 10.0, sign)
  return picture


def _affine(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
  return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=_GREY)


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
  return lambda picture, strength, sign: kind(picture).enhance(1.0 + 0.9 * strength * sign)


def _solarize(picture: Image.Image, strength: float, sign: float) -> Image.Image:
  del sign
  return ImageOps.solarize(picture, round(256 * (1.0 - strength)))


def _posterize(picture: Image.Image, strength: float, sign: float) -> Image.Image:
  del sign
  return ImageOps.posterize(picture, 8 - round(4 * strength))


Operation = Callable[[Image.Image, float, float], Image.Image]
OPERATIONS: tuple[Operation, ...] = (
  lambda picture, strength, sign: picture,
  lambda picture, strength, sign: ImageOps.autocontrast(picture),
  lambda picture, strength, sign: ImageOps.equalize(picture),
  lambda picture, strength, sign: picture.rotate(30 * strength * sign, Image.Resampling.BILINEAR, fillcolor=_GREY),
  _solarize,
  _posterize,
  _enhanced(ImageEnhance.Color),
  _enhanced(ImageEnhance.Contrast),
  _enhanced(ImageEnhance.Brightness),
  _enhanced(ImageEnhance.Sharpness),
  lambda picture, strength, sign: _affine(picture, (1, 0.3 * strength * sign, 0, 0, 1, 0)),
  lambda picture, strength, sign: _affine(picture, (1, 0, 0, 0.3 * strength * sign, 1, 0)),
  lambda picture, strength, sign: _affine(picture, (1, 0, 0.45 * strength * sign * picture.width, 0, 1, 0)),
  lambda picture, strength, sign: _affine(picture, (1, 0, 0, 0, 1, 0.45 * strength * sign * picture.height)),
)


def mix(images: np.ndarray, rngs: list[np.random.Generator], mixup: float, cutmix: float) -> np.ndarray:
  """Each picture mixed with that of the row before, in place; the share of its own that every row keeps, float32 [B].

  mixup (Zhang et al. 2017, 1710.09412): λ x + (1 - λ) x'.   cutmix (Yun et al. 2019, 1905.04899): a rectangle of 1 - λ
  of the area is the other's. λ ~ Beta(α, α) of the row's own `rng`; where both are on, either in half of the cases.

  Args:
    images: float32 [B, C, H, W].
    mixup, cutmix: α; 0 turns it off.
  """
  plain, shares = images.copy(), np.ones(len(images), np.float32)
  height, width = images.shape[2:]
  for row, rng in enumerate(rngs):
    cuts = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    alpha = cutmix if cuts else mixup
    share = rng.beta(alpha, alpha)
    other = plain[row - 1]
    if not cuts:
      images[row] = share * plain[row] + (1.0 - share) * other
    else:
      h, w = round(height * math.sqrt(1.0 - share)), round(width * math.sqrt(1.0 - share))
      top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
      images[row, :, top : top + h, left : left + w] = other[:, top : top + h, left : left + w]
      share = 1.0 - h * w / (height * width)
    shares[row] = share
  return shares
