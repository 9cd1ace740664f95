"""Generated scenes with the boxes of what lies in them: ``scenes:COUNT``, COUNT of them to train on.

A camera looks straight down on a plane with one to three balls, cones and pyramids, none of which hides another.
Surfaces are Lambertian (Lambert 1760): their radiance is albedo · (ambient + (1 - ambient) max(0, n · l)), with n their
normal and l the direction of a light far away. A pixel counts photons, Poisson distributed about its radiance; at most
`_PHOTONS` are expected. A ball and a cone have the same outline and differ by their shading alone. Everything about a
scene follows from its split and number.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from peftjax.data.sources.types import BOX_FIELDS, OBJECT_DETECTION, Dataset, Example, Named
from peftjax.errors import UserError

KINDS = ("ball", "cone", "pyramid")
SIDE, MOST = 64, 3  # pixels of a scene; solids in it
HELD_OUT = {"validation": 100, "test": 300}
MOST_SCENES = 10**7
_RADII = (9.0, 15.0)  # pixels from a solid's middle to its rim, of a pyramid to its corners
_AMBIENT = 0.25
_PHOTONS = 4000.0
_TRIES = 20


@dataclasses.dataclass(frozen=True)
class Scenes:
  """The `Source` of one split."""

  split: str
  count: int

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> Example:
    picture, boxes, labels = _kept(("train", *HELD_OUT).index(self.split), index)
    return {
      "image": picture,
      "where": f"scenes {self.split}: example {index}",
      "boxes": boxes,
      "labels": labels,
      "crowd": np.zeros(len(labels), bool),
      "size": (SIDE, SIDE),
    }


def open_scenes(rest: str, named: Named) -> Dataset:
  """``scenes:COUNT``

  Raises:
    UserError: COUNT is no number of scenes.
  """
  named.check_read(f"scenes:{rest}")
  if not rest.isdecimal() or not 1 <= int(rest) <= MOST_SCENES:
    raise UserError(f"data.name=scenes:{rest}: expected the number of training scenes, from 1 to {MOST_SCENES}")
  splits = {"train": int(rest), **HELD_OUT}
  return Dataset(
    name=f"scenes:{rest}",
    task=OBJECT_DETECTION,
    label_names=KINDS,
    splits=splits,
    columns=BOX_FIELDS,
    fields=BOX_FIELDS,
    most_boxes=MOST,
    identity={"scenes": 1, "train": int(rest)},
    read=lambda split: Scenes(split, splits[split]),
  )


@functools.lru_cache(maxsize=2**14)
def _kept(split: int, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  return scene(np.random.default_rng([split, index]))


def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(picture uint8 [SIDE, SIDE, 3], boxes float32 [n, 4] (x0, y0, x1, y1), labels int32 [n]) of a scene."""
  height, azimuth = rng.uniform(0.5, 1.1), rng.uniform(0.0, 2.0 * math.pi)
  light = np.array([math.cos(height) * math.cos(azimuth), math.cos(height) * math.sin(azimuth), math.sin(height)])
  y, x = np.mgrid[:SIDE, :SIDE] + 0.5
  radiance = rng.uniform(0.2, 0.8, 3) * _lit(np.broadcast_to(np.array([0.0, 0.0, 1.0]), (SIDE, SIDE, 3)), light)
  places: list[tuple[float, float, float]] = []
  boxes, labels = [], []
  for _ in range(int(rng.integers(1, MOST + 1))):
    place = _free_place(rng, places)
    label, turn, albedo = int(rng.integers(len(KINDS))), rng.uniform(0.0, math.pi / 2), rng.uniform(0.2, 0.95, 3)
    if place is None:
      continue
    places.append(place)
    inside, normal, reach = _solid(label, x - place[0], y - place[1], place[2], turn)
    radiance[inside] = (albedo * _lit(normal, light))[inside]
    boxes.append([place[0] - reach, place[1] - reach, place[0] + reach, place[1] + reach])
    labels.append(label)
  counted = rng.poisson(np.clip(radiance, 0.0, 1.0) * _PHOTONS) / _PHOTONS
  picture = np.clip(np.rint(counted * 255.0), 0, 255).astype(np.uint8)
  return picture, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int32)


def _lit(normal: np.ndarray, light: np.ndarray) -> np.ndarray:
  """[..., 1]: what part of its albedo a surface of the normals [..., 3] sends back."""
  return (_AMBIENT + (1.0 - _AMBIENT) * np.maximum(normal @ light, 0.0))[..., None]


def _free_place(
  rng: np.random.Generator, places: list[tuple[float, float, float]]
) -> tuple[float, float, float] | None:
  """(x, y, radius) within the picture and off the other solids; None where twenty tries find none."""
  for _ in range(_TRIES):
    radius = rng.uniform(*_RADII)
    x, y = rng.uniform(radius, SIDE - radius, 2)
    if all(math.hypot(x - other[0], y - other[1]) >= radius + other[2] for other in places):
      return float(x), float(y), float(radius)
  return None


def _solid(
  label: int, dx: np.ndarray, dy: np.ndarray, radius: float, turn: float
) -> tuple[np.ndarray, np.ndarray, float]:
  """(which pixels it covers [H, W], its normals [H, W, 3], how far it reaches to each side) of a solid.

  Args:
    dx, dy: [H, W], from its middle.
    turn: of a pyramid's base, in radians.
  """
  if KINDS[label] == "pyramid":  # as high as half its base is wide, so that every face rises by 45 degrees
    half = radius / math.sqrt(2.0)
    u, v = dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)
    along = np.abs(u) >= np.abs(v)
    a, b = np.where(along, np.sign(u), 0.0), np.where(along, 0.0, np.sign(v))
    flat = [a * math.cos(turn) - b * math.sin(turn), a * math.sin(turn) + b * math.cos(turn)]
    normal = np.stack([*flat, np.ones_like(u)], axis=-1) / math.sqrt(2.0)
    return np.maximum(np.abs(u), np.abs(v)) <= half, normal, half * (math.cos(turn) + math.sin(turn))
  distance = np.hypot(dx, dy)
  if KINDS[label] == "cone":  # as high as its base is wide from the middle
    unit = np.maximum(distance, 1e-9)
    normal = np.stack([dx / unit, dy / unit, np.ones_like(dx)], axis=-1) / math.sqrt(2.0)
  else:
    normal = np.stack([dx, dy, np.sqrt(np.maximum(radius**2 - distance**2, 0.0))], axis=-1) / radius
  return distance <= radius, normal, radius
