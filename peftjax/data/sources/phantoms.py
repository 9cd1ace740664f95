"""Generated radiographs of a phantom chest, with or without a nodule in a lung: ``phantoms:COUNT``, COUNT to train on.

X-rays of one energy run parallel through ellipsoids of tissue, and a detector counts what is left of them by the law
of Beer and Lambert: N = N₀ exp(-Σ μᵢ dᵢ), with dᵢ the length of a ray within the i-th body and μᵢ by how much it
attenuates more than what it lies in. Counts are Poisson distributed. A pixel shows -ln(N / N₀), from `_WINDOW[0]`
(black) to `_WINDOW[1]` (white). Attenuations are those of water, lung of 0.26 and cortical bone of 1.92 g / cm³ at 60
keV (Hubbell and Seltzer 1995, NISTIR 5632), lengths are in centimetres. A picture follows from its split and number
alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from peftjax.data.sources.types import IMAGE_CLASSIFICATION, Dataset, Example, Named
from peftjax.errors import UserError

KINDS = ("clear", "nodule")
SIDE = 96  # pixels
HELD_OUT = {"validation": 200, "test": 400}
MOST_PICTURES = 10**7
_FIELD = 36.0  # centimetres that a side of the picture shows
_WATER, _LUNG, _BONE = 0.206, 0.053, 0.604  # 1 / cm
_PHOTONS = 20000.0  # of a pixel without a body
_WINDOW = (0.0, 4.5)


@dataclasses.dataclass(frozen=True)
class Ellipsoid:
  """A body, by its middle (x, y) in cm.

  Attributes:
    axes: half of them, across, along and through the picture, in cm.
    excess: by how much its attenuation exceeds that of what it lies in, 1 / cm.
    turn: of the first two in the picture's plane, in radians.
  """

  x: float
  y: float
  axes: tuple[float, float, float]
  excess: float
  turn: float = 0.0

  def lengths(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far rays at (x, y) run within it, in cm: 2 c √(1 - (u / a)² - (v / b)²)."""
    dx, dy = x - self.x, y - self.y
    u = dx * math.cos(self.turn) + dy * math.sin(self.turn)
    v = dy * math.cos(self.turn) - dx * math.sin(self.turn)
    a, b, c = self.axes
    return 2.0 * c * np.sqrt(np.maximum(1.0 - (u / a) ** 2 - (v / b) ** 2, 0.0))


@dataclasses.dataclass(frozen=True)
class Radiographs:
  """The `Source` of one split; every other picture has a nodule."""

  split: str
  count: int

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> Example:
    picture = _kept(("train", *HELD_OUT).index(self.split), index)
    return {"image": picture, "where": f"phantoms {self.split}: example {index}", "label": index % 2}


def open_phantoms(rest: str, named: Named) -> Dataset:
  """``phantoms:COUNT``

  Raises:
    UserError: COUNT is no number of pictures.
  """
  named.check_read(f"phantoms:{rest}", labels="class")
  if not rest.isdecimal() or not 2 <= int(rest) <= MOST_PICTURES:
    raise UserError(f"data.name=phantoms:{rest}: expected the number of training pictures, from 2 to {MOST_PICTURES}")
  splits = {"train": int(rest), **HELD_OUT}
  return Dataset(
    name=f"phantoms:{rest}",
    task=IMAGE_CLASSIFICATION,
    label_names=KINDS,
    splits=splits,
    columns=("image", "label"),
    fields=("image", "label"),
    label_kind="class",
    identity={"phantoms": 1, "train": int(rest)},
    read=lambda split: Radiographs(split, splits[split]),
  )


@functools.lru_cache(maxsize=2**12)
def _kept(split: int, index: int) -> np.ndarray:
  rng = np.random.default_rng([split, index])
  return radiograph(chest(rng, has_nodule=bool(index % 2)), rng)


def chest(rng: np.random.Generator, has_nodule: bool) -> list[Ellipsoid]:
  """A torso with two lungs, a heart, a spine and ribs, each of a size and place of its own; perhaps a nodule."""
  wide, deep = rng.uniform(14.0, 16.5), rng.uniform(9.0, 11.0)
  bodies = [Ellipsoid(rng.normal(0.0, 0.4), 2.0, (wide, 24.0, deep), _WATER)]
  lungs = []
  for side in (-1.0, 1.0):
    axes = (rng.uniform(4.3, 5.2), rng.uniform(9.5, 11.5), deep * rng.uniform(0.6, 0.75))
    x, y = side * rng.uniform(6.2, 7.0), rng.normal(-1.0, 0.5)
    lungs.append(Ellipsoid(x, y, axes, _LUNG - _WATER, -side * rng.uniform(0.05, 0.15)))
  heart = Ellipsoid(rng.uniform(1.0, 2.5), rng.uniform(4.0, 5.5), (4.6, 5.6, 3.5), 0.35 * (_WATER - _LUNG), 0.5)
  bodies += [*lungs, heart, Ellipsoid(0.0, 1.0, (1.4, 24.0, 1.4), _BONE - _WATER)]
  for rib in range(7):
    for side in (-1.0, 1.0):
      y = -10.0 + 3.1 * rib + rng.normal(0.0, 0.2)
      bodies.append(Ellipsoid(side * 7.0, y, (6.5, 0.45, 0.45), _BONE - _LUNG, side * rng.uniform(0.25, 0.4)))
  if has_nodule:
    lung, radius = lungs[int(rng.integers(2))], rng.uniform(0.9, 1.6)
    angle, reach = rng.uniform(0.0, 2.0 * math.pi), 0.75 * math.sqrt(rng.random())
    x = lung.x + reach * (lung.axes[0] - radius) * math.cos(angle)
    y = lung.y + reach * (lung.axes[1] - radius) * math.sin(angle)
    bodies.append(Ellipsoid(x, y, (radius, radius, radius), _WATER - _LUNG))
  return bodies


def attenuation(bodies: list[Ellipsoid]) -> np.ndarray:
  """Σ μᵢ dᵢ of the ray through each pixel, float64 [SIDE, SIDE]."""
  y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) * _FIELD / SIDE - _FIELD / 2
  return np.maximum(sum((one.excess * one.lengths(x, y) for one in bodies), np.zeros((SIDE, SIDE))), 0.0)


def radiograph(bodies: list[Ellipsoid], rng: np.random.Generator) -> np.ndarray:
  """The picture that a detector behind the bodies takes, uint8 [SIDE, SIDE, 3], three equal channels."""
  counted = rng.poisson(_PHOTONS * np.exp(-attenuation(bodies)))
  seen = -np.log(np.maximum(counted, 1) / _PHOTONS)
  low, high = _WINDOW
  grey = np.clip(np.rint(255.0 * (seen - low) / (high - low)), 0, 255).astype(np.uint8)
  return np.repeat(grey[..., None], 3, axis=-1)
