"""A source: spectra of three kinds of light, each drawn from its number."""

from __future__ import annotations

import dataclasses

import numpy as np

from peftjax.data.sources import Dataset

BANDS = 24
KINDS = ("blue", "green", "red")
SPLITS = {"train": 96, "validation": 24, "test": 48}


@dataclasses.dataclass(frozen=True)
class Spectra:
  """The examples of one split: `spectrum`, float64 [BANDS] in about [0, 1], and `label`."""

  split: str

  def __len__(self):
    return SPLITS[self.split]

  def __getitem__(self, index):
    random = np.random.default_rng([list(SPLITS).index(self.split), index])
    label = index % len(KINDS)
    peak = 4 + 8 * label + random.normal()
    spectrum = np.exp(-(((np.arange(BANDS) - peak) / 2.5) ** 2)) + 0.1 * random.random(BANDS)
    return {"spectrum": spectrum, "label": label}


def spectra(rest, named):
  """``data.name=spectra_source:spectra``"""
  del rest, named
  return Dataset(
    name="spectra",
    label_names=KINDS,
    splits=SPLITS,
    fields=("spectrum", "label"),
    label_kind="class",
    identity={"spectra": 1},
    read=Spectra,
  )
