"""From the bytes of an image file to an upright RGB picture."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from peftjax.errors import UserError

# Formats that are read; what Pillow knows beside them is old, or runs other programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MOST_PIXELS = 2**27  # of one picture
_SCALED = ("PNG", "PPM")  # formats whose "I" has 16 bits


def decode(image: Any, where: str, on_white: bool = True) -> Image.Image:
  """An RGB picture, turned as its EXIF orientation says.

  Args:
    image: the bytes of a file, a uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], or a PIL image.
    where: names it in errors: its file.
    on_white: lay what is transparent on white, as transformers' `convert_to_rgb`; otherwise drop the transparency.

  Raises:
    UserError: it is cut off, damaged, empty, of no format that is read, or has more than 2²⁷ pixels.
  """
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of odd metadata, which changes no pixel
      opened = _opened(image)
      if opened.width * opened.height > MOST_PIXELS:
        raise UserError(f"{where}: {opened.width} x {opened.height} pixels; at most {MOST_PIXELS:,} are read")
      opened.load()
      _check_depth(opened, where)
      return rgb(ImageOps.exif_transpose(opened), on_white, opened.format)
  except UserError:
    raise
  except UnidentifiedImageError:
    what = "it is empty" if isinstance(image, bytes) and not image else "no image of " + ", ".join(FORMATS)
    raise UserError(f"{where}: {what}; an image was expected") from None
  except Exception as error:  # whatever Pillow's readers raise of damaged data
    raise UserError(f"{where}: the image cannot be read: {str(error) or type(error).__name__}") from None


def _opened(image: Any) -> Image.Image:
  if isinstance(image, Image.Image):
    return image
  if isinstance(image, np.ndarray):
    return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)
  return Image.open(io.BytesIO(image), formats=FORMATS)


def _check_depth(image: Image.Image, where: str) -> None:
  """Raises `UserError` for samples of which nothing says what white is."""
  if image.mode != "F" and (image.mode != "I" or image.format in _SCALED):
    return
  lowest, highest = (float(one) for one in np.asarray(image.getextrema()))
  if not 0 <= lowest <= highest <= 255 or (image.mode == "F" and highest <= 1):
    kind = "fractions" if image.mode == "F" else "whole numbers of 32 bits"
    raise UserError(
      f"{where}: its samples are {kind} from {lowest:g} to {highest:g}; write it with 8 or 16 bits a sample"
    )


def rgb(image: Image.Image, on_white: bool, form: str | None) -> Image.Image:
  """The picture, of a file of the format `form`, in RGB."""
  if image.mode in ("I;16", "I;16B", "I;16L") or (image.mode == "I" and form in _SCALED):
    # 16 bits a sample, of a dark picture too, which Pillow would cut off at 255 instead of scaling
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
  is_transparent = "A" in image.getbands() or image.info.get("transparency") is not None
  if not is_transparent or not on_white:
    return image.convert("RGB")
  image = image.convert("RGBA")
  return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
