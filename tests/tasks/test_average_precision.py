"""Mean average precision by hand: what is right, what is wrong, what is counted twice, and crowds."""

from __future__ import annotations

import numpy as np
import pytest

from peftjax.tasks.average_precision import average_precision

BOX, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0)


def rows(found, there):
  """One image: (score, label, box) of predictions, (label, box, crowd) of objects."""
  return {
    "scores": np.array([[one[0] for one in found]], np.float32),
    "prediction": np.array([[one[1] for one in found]], np.int32),
    "boxes": np.array([[one[2] for one in found]], np.float32),
    "true_labels": np.array([[one[0] for one in there]], np.int32),
    "true_boxes": np.array([[one[1] for one in there]], np.float32),
    "crowd": np.array([[one[2] for one in there]], bool),
  }


@pytest.mark.parametrize(
  ("found", "there", "expected"),
  [
    ([(0.9, 0, BOX)], [(0, BOX, False)], (1.0, 1.0, 1.0)),
    ([(0.9, 1, BOX)], [(0, BOX, False)], (0.0, 0.0, 0.0)),
    ([(0.9, 0, FAR), (0.8, 0, BOX)], [(0, BOX, False)], (0.5, 0.5, 0.5)),  # half of what is said is right
    ([(0.9, 0, BOX), (0.8, 0, BOX)], [(0, BOX, False)], (1.0, 1.0, 1.0)),  # a copy below costs nothing
    ([(0.9, 0, BOX)], [(0, BOX, False), (0, FAR, False)], (51 / 101, 51 / 101, 51 / 101)),  # recall ends at a half
    ([(0.9, 0, BOX)], [(0, BOX, False), (-100, FAR, False)], (1.0, 1.0, 1.0)),
    ([(0.9, 0, FAR), (0.8, 0, BOX)], [(0, BOX, False), (0, FAR, True)], (1.0, 1.0, 1.0)),  # in a crowd nothing counts
    # IoU 40 x 31 / 40 x 40 = .775 exceeds .50 to .75, six of ten thresholds
    ([(0.9, 0, (10.0, 10.0, 50.0, 41.0))], [(0, BOX, False)], (0.6, 1.0, 1.0)),
    ([(0.9, 0, BOX)], [(-100, BOX, False)], (np.nan, np.nan, np.nan)),  # nothing to be found
  ],
)
def test_average_precision(found, there, expected, capsys):
  scored = average_precision(rows(found, there), 2)
  np.testing.assert_allclose([scored["map"], scored["map50"], scored["map75"]], expected, atol=1e-9)
  assert not capsys.readouterr().out
