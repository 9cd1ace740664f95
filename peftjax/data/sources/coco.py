"""Images and the boxes of objects in them, in COCO's JSON (Lin et al. 2014, arXiv 1405.0312): ``coco:PATH``.

A file is {"images": [{"id", "file_name", "width", "height"}], "categories": [{"id", "name"}],
"annotations": [{"image_id", "category_id", "bbox": [x, y, width, height], "iscrowd"}]}, in pixels from the top left.

D/train/_annotations.coco.json  D/train/1.jpg                    a folder for each split
D/annotations/instances_train2017.json  D/train2017/1.jpg        as COCO itself is laid out
D.json  1.jpg                                                    one file, divided 80 / 10 / 10 by each picture's bytes
D/{split}.json                                                   a pattern; `data.image_root` may hold {split}, too
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from peftjax.data.packages import sha256
from peftjax.data.sources.files import SHARES, SPLIT_FILES, find_files
from peftjax.data.sources.folder import check_splits
from peftjax.data.sources.media import IMAGES, check_inside, named_file, read
from peftjax.data.sources.splits import hashed_split
from peftjax.data.sources.types import BOX_FIELDS, OBJECT_DETECTION, Dataset, Example, Named
from peftjax.errors import UserError, nearest
from peftjax.files import can_be_named, read_json

_PATTERNS = (
  "{split}/_annotations.coco.json",
  "{split}/annotations.json",
  "annotations/instances_{split}2017.json",
  "annotations/instances_{split}.json",
  "{split}.json",
)
_BESIDE = (
  "",
  "images",
  "{split}",
  "images/{split}",
  "../{split}2017",
  "../{split}",
  "../images",
  "../images/{split}2017",
)
MOST_PIXELS = 2**24  # of a side
MOST_BYTES = 2**32  # of a file; COCO's own for training has 448 MB
_UNREAD = ("segmentation", "keypoints", "caption")  # most of what such a file holds
_ROUNDED = 1.0  # pixels by which a box may lie outside: corners are rounded somewhere on the way


@dataclasses.dataclass(frozen=True)
class Scene:
  """An image and its objects: `boxes` float32 [n, 4] (x0, y0, x1, y1) in pixels, `labels` int32 [n], `crowd` bool [n]
  for boxes of several objects, `size` (height, width)."""

  file: Path
  size: tuple[int, int]
  boxes: np.ndarray
  labels: np.ndarray
  crowd: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scenes:
  """A `Source` of images with boxes."""

  root: Path
  scenes: Sequence[Scene]

  def __len__(self) -> int:
    return len(self.scenes)

  def __getitem__(self, index: int) -> Example:
    one = self.scenes[index]
    check_inside(one.file, self.root, str(one.file))
    fields = {name: getattr(one, name) for name in ("boxes", "labels", "crowd", "size")}
    return {"image": read(one.file), "where": str(one.file), **fields}


def open_coco(path: str, named: Named) -> Dataset:
  """A data set of COCO's files, as the module says.

  Raises:
    UserError: a file is none of COCO's; a picture is not there, or is two images of other objects; a box is empty or
      lies outside its image; a category or an image that the file does not list; categories that differ between splits.
  """
  named.check_read(f"coco:{path}", roots=("image_root",))
  files = _files(path)
  contents = {part: read_json(file, MOST_BYTES, _UNREAD) for part, file in files.items()}
  names = _categories(contents[next(iter(contents))], next(iter(files.values())))
  roots = {part: _root(part, files[part], contents[part], named.image_root) for part in files}
  scenes: dict[str, Sequence[Scene]] = {}
  for part, content in contents.items():
    if (own := _categories(content, files[part])) != names:
      other = next((name for name in own.values() if name not in names.values()), "")
      hint = f"{other!r}: {nearest(other, names.values())}" if other else "in other numbers or order"
      raise UserError(f"{files[part]}: its categories are not those of {next(iter(files.values()))}; {hint}")
    scenes[part] = list(_scenes(content, files[part], roots[part], names))
  identity = {part: sha256(file) for part, file in files.items()}
  if "" in scenes:
    roots = dict.fromkeys(SHARES, roots[""])
    scenes = _divided(files[""], scenes[""])
  if all(one.crowd.all() for one in scenes["train"]):
    where = files.get("train") or files[""]
    raise UserError(f"{where}: no image of the training split has an object; there is nothing to learn")
  whole = [one for part in scenes.values() for one in part]
  return Dataset(
    name=f"coco:{path}",
    task=OBJECT_DETECTION,
    label_names=tuple(names.values()),
    splits={split: len(one) for split, one in scenes.items()},
    columns=BOX_FIELDS,
    fields=BOX_FIELDS,
    most_boxes=max(len(one.labels) for one in whole),
    identity={"files": identity},
    read=lambda split: Scenes(roots[split], scenes[split]),
  )


def _files(path: str) -> dict[str, Path]:
  if "{split}" in path or not Path(path).is_dir():
    return find_files("json", path)
  patterns = [f"{path}/{one}" for one in _PATTERNS]
  for pattern in patterns:
    if any(Path(pattern.replace("{split}", name)).is_file() for name in SPLIT_FILES["train"]):
      if pattern.startswith(f"{path}/{{split}}/"):
        check_splits(Path(path), Path(pattern).name)
      return find_files("json", pattern)
  raise UserError(f"data.name: {path} has no {' and no '.join(_PATTERNS[:2])} with split=train; name the file")


def _root(part: str, file: Path, content: Mapping[str, Any], given: str) -> Path:
  """The folder that the names of a file's pictures start from: `given`, or the one that has the first picture."""
  if given:
    return Path(given.replace("{split}", part)).expanduser()
  first = next(iter(_list(content, "images", file)), None)
  name = _get(first, "file_name")
  spelled = SPLIT_FILES.get(part, ("",))
  candidates = [
    Path(os.path.normpath(file.parent / one.replace("{split}", split))) for one in _BESIDE for split in spelled
  ]
  is_name = isinstance(name, str) and can_be_named(name)
  return next((one for one in candidates if is_name and (one / name).is_file()), file.parent)


def _categories(content: Mapping[str, Any], file: Path) -> dict[int, str]:
  """id -> name, in the order of the ids."""
  found: dict[int, str] = {}
  for one in _list(content, "categories", file):
    number, name = _get(one, "id"), _get(one, "name")
    if not _is_whole(number) or not isinstance(name, str) or not name:
      raise UserError(f'{file}: categories: {one!r:.80}, expected a whole number as "id" and a text as "name"')
    if number in found or name in found.values():
      raise UserError(f"{file}: two categories have the id {number} or the name {name!r}")
    found[number] = name
  if not found:
    raise UserError(f"{file}: it lists no categories")
  return dict(sorted(found.items()))


def _scenes(content: Mapping[str, Any], file: Path, root: Path, names: Mapping[int, str]) -> Iterator[Scene]:
  images: dict[int, tuple[str, Path, tuple[int, int]]] = {}
  for one in _list(content, "images", file):
    number, name, size = _image(one, file)
    if number in images:
      raise UserError(f"{file}: two images have the id {number}")
    images[number] = name, named_file(name, root, f"{file}: image {number}", IMAGES), size
  if not images:
    raise UserError(f"{file}: it lists no images")
  labels = {number: label for label, number in enumerate(names)}
  held: dict[int, list[tuple[list[float], int, bool]]] = {number: [] for number in images}
  for one in _list(content, "annotations", file):
    number, category, crowd = _get(one, "image_id"), _get(one, "category_id"), _get(one, "iscrowd") or 0
    told = f"{file}: annotation {_get(one, 'id')!r:.40}"
    if not _is_whole(number) or number not in images:
      raise UserError(f"{told} is of image {number!r:.40}, which is not listed")
    name, _, size = images[number]
    where = f"{told}, {name}"
    if not _is_whole(category) or category not in labels:
      listed = ", ".join(f"{key} ({text})" for key, text in list(names.items())[:8])
      raise UserError(f"{where}: category_id={category!r:.40} is not listed; expected one of {listed}")
    if crowd not in (0, 1):
      raise UserError(f"{where}: iscrowd={crowd!r:.40}, expected 0 or 1")
    held[number].append((_box(one.get("bbox"), size, where), labels[category], bool(crowd)))
  by_path: dict[Path, int] = {}
  for number, (name, path, size) in images.items():
    other = by_path.setdefault(path, number)
    if sorted(held[other]) != sorted(held[number]):
      raise UserError(f"{file}: images {other} and {number} are both {name} and have other objects: what one has, "
                      "the other would teach to leave out; expected one image for a file")  # fmt: skip
    boxes, kinds, crowds = zip(*held[number]) if held[number] else ((), (), ())
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    yield Scene(path, size, corners, np.array(kinds, np.int32), np.array(crowds, bool))


def _image(one: Any, file: Path) -> tuple[int, str, tuple[int, int]]:
  number, name, height, width = (_get(one, key) for key in ("id", "file_name", "height", "width"))
  if not _is_whole(number) or not isinstance(name, str) or not name:
    raise UserError(f'{file}: images: {one!r:.80}, expected a whole number as "id" and a text as "file_name"')
  if not all(_is_whole(side) and 0 < side <= MOST_PIXELS for side in (height, width)):
    raise UserError(f"{file}: {name}: height={height!r:.40}, width={width!r:.40}, expected numbers of pixels")
  return number, name, (height, width)


def _box(value: Any, size: tuple[int, int], where: str) -> list[float]:
  """(x0, y0, x1, y1), within the image."""
  sides: list[Any] = value if isinstance(value, list) and len(value) == 4 else [None]
  if not all(
    isinstance(side, int | float) and not isinstance(side, bool) and abs(side) < MOST_PIXELS for side in sides
  ):
    raise UserError(f"{where}: bbox={value!r:.60}, expected [x, y, width, height] in pixels")
  x, y, width, height = (float(side) for side in sides)
  if width <= 0 or height <= 0:
    raise UserError(f"{where}: bbox={value} is empty; expected a width and a height above 0")
  if min(x, y) < -_ROUNDED or x + width > size[1] + _ROUNDED or y + height > size[0] + _ROUNDED:
    raise UserError(f"{where}: bbox={value} lies outside the image of {size[1]} x {size[0]} pixels")
  box = [max(x, 0.0), max(y, 0.0), min(x + width, size[1]), min(y + height, size[0])]
  if box[0] >= box[2] or box[1] >= box[3]:
    raise UserError(f"{where}: bbox={value} lies outside the image of {size[1]} x {size[0]} pixels")
  return box


def _divided(file: Path, scenes: Sequence[Scene]) -> dict[str, Sequence[Scene]]:
  sides = [hashed_split(hashlib.sha256(read(one.file)).hexdigest(), SHARES) for one in scenes]
  parts = {split: [one for one, side in zip(scenes, sides) if side == split] for split in SHARES}
  if not parts["train"]:
    raise UserError(f"{file} has too few images to divide into training, validation and test")
  return {split: one for split, one in parts.items() if one}


def _list(content: Mapping[str, Any], name: str, file: Path) -> list[Any]:
  value = content.get(name)
  if not isinstance(value, list):
    raise UserError(
      f"{file}: {name}={value!r:.40}, expected COCO's JSON, an object with lists of images, categories and annotations"
    )
  return value


def _get(one: Any, name: str) -> Any:
  return one.get(name) if isinstance(one, dict) else None


def _is_whole(value: Any) -> TypeGuard[int]:
  return isinstance(value, int) and not isinstance(value, bool)
