"""Labels beside points that cover neither each other nor a point."""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]  # left, bottom, right, top


def place(
  points: Sequence[tuple[float, float]],
  sizes: Sequence[tuple[float, float]],
  obstacles: Sequence[Box],
  frame: Box,
  gap: float = 4.0,
) -> list[Box]:
  """A box for the label of every point, as near to it as goes; all lengths in one unit, such as pixels.

  Greedy with repeats: labels choose the nearest free place in turn; one that finds none is moved to the head of the
  order and all begin anew. Each tries rings of growing distance around its point.

  Args:
    points: centres that labels belong to.
    sizes: (width, height) of each label.
    obstacles: boxes that labels must not cover: markers, error bars.
    frame: what labels must stay inside of.
    gap: the free space between a point's edge and its label, and between labels.

  Returns:
    boxes in the order of the points. Where the frame is too full a box may lie outside it, never on another.
  """
  order = sorted(range(len(points)), key=lambda index: -sizes[index][0])
  for _ in range(len(points) + 1):
    placed: dict[int, Box] = {}
    for index in order:
      box = _nearest(points[index], sizes[index], [*obstacles, *placed.values()], frame, gap)
      if box is None:
        break
      placed[index] = box
    if len(placed) == len(points):
      return [placed[index] for index in range(len(points))]
    order = [index, *(one for one in order if one != index)]
  placed = {}
  everywhere = (-math.inf, -math.inf, math.inf, math.inf)
  for index in order:
    taken = [*obstacles, *placed.values()]
    box = _nearest(points[index], sizes[index], taken, frame, gap)
    box = box or _nearest(points[index], sizes[index], taken, everywhere, gap, rings=400, free_way=False)
    assert box is not None
    placed[index] = box
  return [placed[index] for index in range(len(points))]


def overlap(a: Box, b: Box, gap: float = 0.0) -> bool:
  """Whether two boxes come nearer than `gap`.

  >>> overlap((0, 0, 2, 2), (1, 1, 3, 3)), overlap((0, 0, 2, 2), (2, 0, 3, 2)), overlap((0, 0, 2, 2), (2.5, 0, 3, 2), 1)
  (True, False, True)
  """
  return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def _nearest(
  point: tuple[float, float],
  size: tuple[float, float],
  taken: Sequence[Box],
  frame: Box,
  gap: float,
  rings: int = 24,
  free_way: bool = True,
) -> Box | None:
  (x, y), (width, height) = point, size
  for ring in range(rings):
    reach = 2 * gap + ring * height / 2
    for angle in _angles(ring):
      across, up = math.cos(angle), math.sin(angle)
      left = x + across * reach + (across - 1) * width / 2
      bottom = y + up * reach + (up - 1) * height / 2
      box = (left, bottom, left + width, bottom + height)
      inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
      if not inside or any(overlap(box, other, gap / 2) for other in taken):
        continue
      if not free_way or not any(_crosses(point, box, other) for other in taken):
        return box
  return None


def _crosses(point: tuple[float, float], box: Box, other: Box) -> bool:
  """Whether the way from a point to its label leads over something that is not the point's own."""
  if other[0] <= point[0] <= other[2] and other[1] <= point[1] <= other[3]:
    return False
  end = (min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3]))
  steps = max(2, int(math.dist(point, end) / 3))
  for step in range(1, steps):
    x, y = (start + (stop - start) * step / steps for start, stop in zip(point, end))
    if other[0] <= x <= other[2] and other[1] <= y <= other[3]:
      return True
  return False


def _angles(ring: int) -> list[float]:
  """Right, left, above, below, then between; more directions in wider rings."""
  first = [0.0, math.pi, math.pi / 2, -math.pi / 2]
  count = 8 + 4 * ring
  return first + [2 * math.pi * (step + 0.5) / count for step in range(count)]
