"""Generated radiographs: the law of Beer and Lambert, Poisson's noise, nodules, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from peftjax.data import open_data
from peftjax.data.sources import phantoms
from peftjax.data.sources.phantoms import Ellipsoid
from peftjax.errors import UserError


def test_a_ray_runs_through_an_ellipsoid_as_far_as_its_chord():
  body = Ellipsoid(1.0, -2.0, (3.0, 2.0, 5.0), 0.2, 0.7)
  assert body.lengths(np.array(1.0), np.array(-2.0)) == pytest.approx(10.0)
  along = np.array([1.0, -2.0]) + 1.5 * np.array([math.cos(0.7), math.sin(0.7)])  # half way to the rim
  assert body.lengths(*along) == pytest.approx(10.0 * math.sqrt(0.75))
  rng = np.random.default_rng(0)
  x, y = rng.uniform(-6, 6, (2, 400000))
  inside = body.lengths(x, y).mean() * 144.0  # the integral of the chords is the volume
  assert inside == pytest.approx(4 / 3 * math.pi * 3.0 * 2.0 * 5.0, rel=0.02)


def test_a_detector_counts_what_the_law_leaves_and_as_poisson_does():
  middle, (low, high) = phantoms.SIDE // 2, phantoms._WINDOW
  slab = [Ellipsoid(0.0, 0.0, (1e4, 1e4, 5.0), 0.2)]  # ten centimetres of two tenths: two
  np.testing.assert_allclose(phantoms.attenuation(slab), 2.0, rtol=1e-5)
  seen = phantoms.radiograph(slab, np.random.default_rng(1))[..., 0].astype(float) / 255 * (high - low) + low
  assert seen.mean() == pytest.approx(2.0, abs=2e-3)
  left = phantoms._PHOTONS * math.exp(-2.0)
  steps = (high - low) / 255  # of grey, whose rounding adds a twelfth of its square
  assert seen.std() == pytest.approx(math.sqrt(1 / left + steps**2 / 12), rel=0.05)
  assert phantoms.radiograph([], np.random.default_rng(1))[middle, middle].max() <= 3  # nothing is black


def test_every_other_picture_has_a_nodule_which_only_adds():
  excess = phantoms._WATER - phantoms._LUNG
  for seed in range(20):
    clear, ill = (phantoms.attenuation(phantoms.chest(np.random.default_rng(seed), has)) for has in (False, True))
    added = ill - clear
    pixel = (phantoms._FIELD / phantoms.SIDE) ** 2
    assert added.min() >= -1e-9 and 0.2 < added.max() <= 2 * 1.6 * excess * 1.0001
    assert 4 / 3 * math.pi * 0.85**3 * excess < added.sum() * pixel < 4 / 3 * math.pi * 1.7**3 * excess
  data = open_data("phantoms:10")
  assert (data.task, data.label_names, data.splits["train"]) == ("image_classification", ("clear", "nodule"), 10)
  assert [data.split("train")[index]["label"] for index in range(4)] == [0, 1, 0, 1]


def test_a_picture_follows_from_its_split_and_number():
  one, other = open_data("phantoms:10"), open_data("phantoms:12")
  np.testing.assert_array_equal(one.split("test")[3]["image"], other.split("test")[3]["image"])
  assert not np.array_equal(one.split("test")[3]["image"], one.split("train")[3]["image"])
  assert one.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("rest", ["1", "x", "-2"])
def test_a_number_that_is_none(rest):
  with pytest.raises(UserError, match="expected the number of training pictures"):
    open_data(f"phantoms:{rest}")
