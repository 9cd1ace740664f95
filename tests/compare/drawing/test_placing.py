from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from peftjax.compare.drawing import placing


@settings(max_examples=60, deadline=None)
@given(
  st.lists(st.tuples(st.floats(20, 480), st.floats(20, 280)), min_size=1, max_size=14),
  st.lists(st.integers(2, 9), min_size=14, max_size=14),
)
def test_labels_never_cover_each_other_or_a_point(points, lengths):
  sizes = [(6.0 * length, 11.0) for length, _ in zip(lengths, points)]
  markers = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
  boxes = placing.place(points, sizes, markers, (0, 0, 500, 300))
  assert all(not placing.overlap(a, b) for a, b in itertools.combinations(boxes, 2))
  assert all(not placing.overlap(box, marker) for box in boxes for marker in markers)


def test_a_lone_label_stands_at_the_right_of_its_point():
  (box,) = placing.place([(50, 50)], [(30, 10)], [(45, 45, 55, 55)], (0, 0, 200, 100))
  assert box[0] > 55 and abs((box[1] + box[3]) / 2 - 50) < 1e-9


def test_a_label_at_the_edge_turns_to_the_other_side():
  (box,) = placing.place([(195, 50)], [(30, 10)], [(190, 45, 200, 55)], (0, 0, 200, 100))
  assert box[2] < 190
