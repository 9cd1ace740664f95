"""Generated scenes: the same for ever, boxes where the pixels say, shading by Lambert's law, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from peftjax.data import open_data
from peftjax.data.sources import scenes
from peftjax.errors import UserError


def test_a_scene_follows_from_its_split_and_number():
  data, more = open_data("scenes:20"), open_data("scenes:30")
  assert (data.splits, data.label_names, data.most_boxes) == (
    {"train": 20, "validation": 100, "test": 300},
    scenes.KINDS,
    3,
  )
  for split in data.splits:
    first, again = data.split(split)[7], more.split(split)[7]
    for name in ("image", "boxes", "labels"):
      np.testing.assert_array_equal(first[name], again[name])
  assert not np.array_equal(data.split("train")[7]["image"], data.split("test")[7]["image"])
  assert data.fingerprint() != more.fingerprint()
  drawn = [len(data.split("test")[index]["labels"]) for index in range(60)]
  assert set(drawn) == {1, 2, 3}


@pytest.mark.parametrize("label", range(len(scenes.KINDS)))
@pytest.mark.parametrize("turn", [0.0, 0.6])
def test_a_solid_reaches_as_far_as_its_box_and_is_shaded_by_its_normals(label, turn):
  dy, dx = np.mgrid[-40:40, -40:40] / 2 + 0.25
  inside, normal, reach = scenes._solid(label, dx, dy, 12.0, turn)
  for side in (dx, dy):
    assert reach - 0.75 <= np.abs(side[inside]).max() <= reach
  np.testing.assert_allclose(np.linalg.norm(normal[inside], axis=-1), 1.0, rtol=1e-6)
  assert (normal[inside] @ [0.0, 0.0, 1.0] >= 0).all()
  towards = dx * normal[..., 0] + dy * normal[..., 1]
  assert (towards[inside] >= -1e-9).all()  # every surface falls off from the middle


def test_light_from_above_lights_the_plane_fully_and_from_the_side_by_its_cosine():
  up = np.array([[0.0, 0.0, 1.0]])
  assert scenes._lit(up, np.array([0.0, 0.0, 1.0])) == pytest.approx(1.0)
  slanted = scenes._lit(up, np.array([np.sin(1.0), 0.0, np.cos(1.0)]))
  assert slanted == pytest.approx(0.25 + 0.75 * np.cos(1.0))
  assert scenes._lit(-up, np.array([0.0, 0.0, 1.0])) == pytest.approx(0.25)


@pytest.mark.parametrize("rest", ["0", "many", "-3", "1e9"])
def test_a_number_that_is_none(rest):
  with pytest.raises(UserError, match="expected the number of training scenes"):
    open_data(f"scenes:{rest}")
