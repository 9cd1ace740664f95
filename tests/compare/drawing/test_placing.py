from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from peftjax.compare.drawing import placing as labels


@settings(max_examples=60, deadline=None)
@given(
  st.lists(st.tuples(st.floats(20, 480), st.floats(20, 280)), min_size=1, max_size=14),
  st.lists(st.integers(2, 9), min_size=14, max_size=14),
)
def test_labels_never_cover_each_other_or_a_point(points, lengths):
  sizes = [(6.0 * length, 11.0) for length, _ in zip(lengths, points)]
  markers = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
  boxes = labels.place(points, sizes, markers, (0, 0, 500, 300))
  assert all(not labels.overlap(a, b) for a, b in itertools.combinations(boxes, 2))
  assert all(not labels.overlap(box, marker) for box in boxes for marker in markers)


def test_a_lone_label_stands_at_the_right_of_its_point():
  (box,) = labels.place([(50, 50)], [(30, 10)], [(45, 45, 55, 55)], (0, 0, 200, 100))
  assert box[0] > 55 and abs((box[1] + box[3]) / 2 - 50) < 1e-9


def test_a_label_at_the_edge_turns_to_the_other_side():
  (box,) = labels.place([(195, 50)], [(30, 10)], [(190, 45, 200, 55)], (0, 0, 200, 100))
  assert box[2] < 190


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9))
def test_positions_on_a_line_keep_their_distance_and_their_order(positions):
  moved = labels.spread_out(positions, 10, 0, 100)
  in_order = [moved[index] for index in sorted(range(len(moved)), key=lambda index: (positions[index], index))]
  assert all(b - a >= 10 - 1e-6 for a, b in itertools.pairwise(in_order))
  assert min(moved) >= -1e-6 and max(moved) <= 100 + 1e-6
