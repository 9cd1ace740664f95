"""The image processors of Hugging Face, read from preprocessor_config.json: resize, crop, rescale, normalise.

The numbers are those of transformers' processors on Pillow (`ViTImageProcessor`, `DeiTImageProcessor`,
`BitImageProcessor`, `CLIPImageProcessor`, `DetrImageProcessor`, `YolosImageProcessor`): pixels are rounded to 8 bits
after resizing, the long side of a resized picture is rounded down, and one that is smaller than its crop is filled up
with zeros.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from peftjax.data.inputs.pictures import MOST_PIXELS
from peftjax.errors import UserError, nearest
from peftjax.files import read_json

FILE = "preprocessor_config.json"
Size = tuple[int, int]
MOST_SIDE = 2**13  # pixels

_HALF = (0.5, 0.5, 0.5)
_CLIP = {
  "image_mean": (0.48145466, 0.4578275, 0.40821073),
  "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_SHORTEST = {
  **_CLIP, "size": {"shortest_edge": 224}, "crop_size": 224, "resample": 3, "do_center_crop": True,
  "do_convert_rgb": True, "default_to_square": False,
}  # fmt: skip
_BOUNDED = {
  "image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225),
  "size": {"shortest_edge": 800, "longest_edge": 1333}, "default_to_square": False, "do_pad": True,
  "do_convert_rgb": True,
}  # fmt: skip
_COMMON: dict[str, Any] = {
  "do_resize": True, "do_center_crop": False, "do_rescale": True, "do_normalize": True, "do_convert_rgb": False,
  "rescale_factor": 1 / 255, "default_to_square": True, "size": None, "crop_size": None, "resample": 2,
  "image_mean": _HALF, "image_std": _HALF, "do_pad": False, "pad_size": None,
}  # fmt: skip
# Class without its ending -> what its config may leave out.
DEFAULTS: dict[str, dict[str, Any]] = {
  "ViT": {"size": 224},
  "DeiT": {"size": 256, "crop_size": 224, "do_center_crop": True, "resample": 3},
  "Bit": _SHORTEST,
  "CLIP": _SHORTEST,
  "Detr": _BOUNDED,
  "Yolos": _BOUNDED,
}
_MULTIPLES = {"Yolos": 16}  # class -> what sides are rounded down to a multiple of, where the longer one is bounded
# config.json's model_type -> class, where there is no preprocessor_config.json
OF_MODEL = {"vit": "ViT", "deit": "DeiT", "dinov2": "Bit", "dinov2_with_registers": "Bit", "clip": "CLIP",
            "clip_vision_model": "CLIP", "detr": "Detr", "yolos": "Yolos"}  # fmt: skip
MASKED = ("detr",)  # model_types that are told which pixels are of the picture
_FLAGS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_pad", "default_to_square")
_ENDINGS = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
# What asks for something else than is computed here.
_REFUSED = ("do_color_quantize", "do_reduce_labels", "do_flip_channel_order", "use_square_size")
_SAMPLINGS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


@dataclasses.dataclass(frozen=True)
class Processor:
  """What is done to a picture before a model sees it.

  Attributes:
    shortest: what the shorter side is resized to, in pixels, the other in proportion; 0: `size` says both.
    longest: what the longer side is at most then; 0: whatever it comes to.
    multiple: with `longest`, both sides are rounded down to a multiple of this.
    pad: (height, width) that a resized picture is filled up to below and on the right; None: it is not.
    size: (height, width) it is resized to; None: it is not, or by `shortest`.
    resample: Pillow's number of the filter.
    crop: (height, width) cut from the middle; None: nothing is cut.
    factor: every pixel is multiplied by it; None: left as it is.
    mean, std: of each channel, subtracted and divided by; () for none.
    on_white: transparent pixels are laid on white.
  """

  shortest: int = 0
  size: Size | None = None
  resample: int = 2
  crop: Size | None = None
  factor: float | None = 1 / 255
  mean: tuple[float, ...] = _HALF
  std: tuple[float, ...] = _HALF
  on_white: bool = False
  longest: int = 0
  multiple: int = 1
  pad: Size | None = None

  @property
  def output(self) -> Size:
    """(height, width) of what it gives.

    Raises:
      UserError: pictures of several shapes give several.
    """
    found = self.pad or self.crop or self.size
    if found is None:
      raise UserError(
        f"{FILE}: pictures keep their shapes (no size of both sides and no crop), and a batch has one; set input.size"
      )
    return found

  def sized(self, side: int) -> Processor:
    """The same for square pictures of `side` pixels, cut from as much of the middle as before; of a processor that
    fills up, for pictures whose longer side has as many."""
    if self.longest:
      return dataclasses.replace(self, shortest=side, longest=side, pad=(side, side))
    if not self.crop:
      return dataclasses.replace(self, shortest=0, size=(side, side))
    ratio = side / min(self.crop)
    size = (round(self.size[0] * ratio), round(self.size[1] * ratio)) if self.size else None
    return dataclasses.replace(self, shortest=round(self.shortest * ratio), size=size, crop=(side, side))

  def __call__(self, picture: Image.Image) -> np.ndarray:
    """float32 [channels, height, width] of an RGB picture."""
    return self.numbers(self.cropped(self.resized(picture)))

  def resized(self, picture: Image.Image) -> Image.Image:
    """The picture in the size that it is cut from.

    Raises:
      UserError: it is so narrow that this would be a very large one.
    """
    width, height = picture.size
    if self.longest:
      height, width = bounded((height, width), self.shortest, self.longest, self.multiple)
    elif self.shortest:
      short, long = sorted((width, height))
      other = int(self.shortest * long / short)
      width, height = (self.shortest, other) if width <= height else (other, self.shortest)
    elif self.size:
      height, width = self.size
    if width * height > MOST_PIXELS:
      raise UserError(f"{picture.width} x {picture.height} pixels would be resized to {width} x {height}")
    return picture.resize((width, height), resample=self.resample)

  def cropped(self, picture: Image.Image) -> np.ndarray:
    """uint8 [height, width, 3], the middle of it; zeros around where it is smaller."""
    image = np.asarray(picture)
    for axis, wanted in enumerate(self.crop or ()):
      size = image.shape[axis]
      if wanted > size:
        before = -(-(wanted - size) // 2)
        fill = [(0, 0)] * 3
        fill[axis] = (before, wanted - size - before)
        image = np.pad(image, fill)
      else:
        image = image.take(range((size - wanted) // 2, (size - wanted) // 2 + wanted), axis)
    return image

  def numbers(self, image: np.ndarray) -> np.ndarray:
    """float32 [channels, height, width] from uint8 [height, width, channels]."""
    found = image.transpose(2, 0, 1)
    if self.factor is not None:
      found = (found.astype(np.float64) * self.factor).astype(np.float32)
    if self.mean:
      mean, std = (np.array(one, np.float32)[:, None, None] for one in (self.mean, self.std))
      found = (found.astype(np.float32) - mean) / std
    return np.ascontiguousarray(found, np.float32)


def bounded(size: Size, shortest: int, longest: int, multiple: int = 1) -> Size:
  """(height, width) of a picture whose shorter side becomes `shortest`, or less if the longer would exceed `longest`.

  Rounded as transformers does for DETR and, with a `multiple`, for YOLOS.
  """
  height, width = size
  short, long = min(size), max(size)
  wanted, exact = shortest, float(shortest)
  if long / short * shortest > longest:
    exact = longest * short / long
    wanted = round(exact)
  if short == wanted and not (multiple > 1 and width < height):  # YOLOS computes the height of upright ones again
    found = (height, width)
  elif width < height:
    found = (int(exact * height / width), wanted)
  else:
    found = (wanted, int(exact * width / height))
  # A side of less than one multiple would be none; transformers fails there.
  return max(found[0] - found[0] % multiple, 1), max(found[1] - found[1] % multiple, 1)


def read_processor(folder: Path) -> Processor:
  """The processor of a model's folder; without a preprocessor_config.json the model_type's usual one.

  Raises:
    UserError: a processor of another kind, or a value that is none.
  """
  config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
  if (folder / FILE).is_file():
    return processor_of(read_json(folder / FILE), str(folder / FILE), str(config.get("model_type", "")))
  name = OF_MODEL.get(str(config.get("model_type")))
  if name is None:
    raise UserError(f"{folder} has no {FILE}, and {config.get('model_type')!r} models read no images here")
  if DEFAULTS[name] is _BOUNDED:
    return processor_of({"image_processor_type": f"{name}ImageProcessor"}, str(folder))
  vision = config.get("vision_config") or config
  size = vision.get("image_size", 224)
  return processor_of({"image_processor_type": f"{name}ImageProcessor", **_of_size(name, size)}, str(folder))


def _of_size(name: str, size: Any) -> dict[str, Any]:
  """The sizes that a class's processor has for models of `size`."""
  if not isinstance(size, int):
    height, width = size
    return {"size": {"height": height, "width": width}, "do_center_crop": False}
  if name == "DeiT":
    return {"size": size * 256 // 224, "crop_size": size}
  return {"size": {"shortest_edge": size}, "crop_size": size} if DEFAULTS[name] is _SHORTEST else {"size": size}


def processor_of(given: Mapping[str, Any], where: str, model_type: str = "") -> Processor:
  """The processor that a preprocessor_config.json describes; raises as `read_processor`."""
  class_name = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "")
  name = next((class_name.removesuffix(one) for one in _ENDINGS if class_name.endswith(one)), class_name)
  name = name or OF_MODEL.get(model_type, "ViT")
  if name not in DEFAULTS:
    known = [f"{one}ImageProcessor" for one in DEFAULTS]
    raise UserError(f"{where}: image_processor_type={class_name!r} is not supported; {nearest(class_name, known)}")
  for field in _REFUSED:
    if given.get(field):
      raise UserError(f"{where}: {field}={given[field]!r:.40} is not computed here; expected false")
  values = {**_COMMON, **DEFAULTS[name], **{key: one for key, one in given.items() if one is not None}}
  pads = DEFAULTS[name] is _BOUNDED
  if pads:
    values = _spelled_out(values, given)
  if values["do_pad"] and not pads:
    raise UserError(f"{where}: do_pad={values['do_pad']!r:.40} is not computed here; expected false")
  for field in _FLAGS:
    if not isinstance(values[field], bool):
      raise UserError(f"{where}: {field}={values[field]!r:.40}: expected true or false")
  longest = 0
  if pads and values["do_resize"] and isinstance(values["size"], Mapping) and "longest_edge" in values["size"]:
    longest, _ = _size({"shortest_edge": values["size"]["longest_edge"]}, False, f"{where}: size")
    values["size"] = {"shortest_edge": values["size"].get("shortest_edge")}
  shortest, size = _size(values["size"], values["default_to_square"], f"{where}: size")
  if longest and not shortest:
    raise UserError(f"{where}: size: longest_edge={longest} without shortest_edge; expected both")
  _, crop = _size(values["crop_size"], True, f"{where}: crop_size") if values["do_center_crop"] else (0, None)
  if type(values["resample"]) not in (int, float) or values["resample"] not in _SAMPLINGS:
    raise UserError(f"{where}: resample={values['resample']!r:.40}: expected one of 0 to 5")
  return Processor(
    shortest if values["do_resize"] else 0,
    size if values["do_resize"] else None,
    int(values["resample"]),
    crop,
    _number(values["rescale_factor"], f"{where}: rescale_factor") if values["do_rescale"] else None,
    _channels(values["image_mean"], f"{where}: image_mean") if values["do_normalize"] else (),
    _channels(values["image_std"], f"{where}: image_std", above=0.0) if values["do_normalize"] else (),
    values["do_convert_rgb"],
    longest,
    _MULTIPLES.get(name, 1) if longest else 1,
    _padded(values, longest, where) if values["do_pad"] else None,
  )


def _spelled_out(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
  """The values of a processor that fills up, with what earlier versions wrote in the place of some."""
  found = dict(values)
  if "pad_and_return_pixel_mask" in given:
    found["do_pad"] = given["pad_and_return_pixel_mask"]
  if type(found["size"]) is int:
    found["size"] = {"shortest_edge": found["size"], "longest_edge": given.get("max_size") or 1333}
  return found


def _padded(values: Mapping[str, Any], longest: int, where: str) -> Size | None:
  """(height, width) that pictures are filled up to: the file's, or the largest that they can have."""
  if values["pad_size"] is not None:
    return _size(values["pad_size"], True, f"{where}: pad_size")[1]
  return (longest, longest) if longest else None


def _size(value: Any, square: bool, where: str) -> tuple[int, Size | None]:
  """(the shorter side, both sides): one of the two."""
  if isinstance(value, int) and not isinstance(value, bool):
    value = {"height": value, "width": value} if square else {"shortest_edge": value}
  elif isinstance(value, list | tuple) and len(value) == 2:
    value = {"height": value[0], "width": value[1]}
  sides = {key: one for key, one in value.items() if one is not None} if isinstance(value, Mapping) else {}
  if not all(type(one) is int and 1 <= one <= MOST_SIDE for one in sides.values()):
    raise UserError(f"{where}={value!r:.80}: expected whole numbers of pixels from 1 to {MOST_SIDE}")
  if set(sides) == {"shortest_edge"}:
    return sides["shortest_edge"], None
  if set(sides) == {"height", "width"}:
    return 0, (sides["height"], sides["width"])
  raise UserError(f"{where}={value!r:.80}: expected height and width, or shortest_edge")


def _channels(value: Any, where: str, above: float = float("-inf")) -> tuple[float, ...]:
  values = [value] * 3 if isinstance(value, int | float) else value
  if not isinstance(values, list | tuple) or len(values) != 3:
    raise UserError(f"{where}={value!r:.60}: expected a number for each of 3 channels")
  return tuple(_number(one, where, above) for one in values)


def _number(value: Any, where: str, above: float = float("-inf")) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < float("inf"):
    raise UserError(f"{where}={value!r:.60}: expected a finite number" + (f" above {above:g}" if above == 0.0 else ""))
  return float(value)
