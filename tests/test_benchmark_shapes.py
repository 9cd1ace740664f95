"""The benchmarks' shapes: a name is one model, whatever the size it is listed under."""

from __future__ import annotations

from experiments.benchmarks.shapes import SHAPES, find


def test_a_name_is_one_shape():
  listed = [(name, shape) for group in SHAPES.values() for name, shape in group.items()]
  assert len({name for name, _ in listed}) == len(listed)
  assert all(find(name) is shape for name, shape in listed)
