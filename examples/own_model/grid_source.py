"""A source: positions in small mazes, and the moves that lead to the goal, as an expert knows them."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from peftjax.data.sources import Dataset

SIDE = 7
MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
MAZES = {"train": 96, "validation": 16, "test": 32}
PER_MAZE = 16


def distances(walls, goal):
  """int[SIDE, SIDE]: moves from each free cell to the goal, by breadth first; -1 where it cannot be reached."""
  found = np.full(walls.shape, -1)
  found[goal] = 0
  queue = collections.deque([goal])
  while queue:
    row, column = queue.popleft()
    for down, right in MOVES.values():
      cell = (row + down, column + right)
      if min(cell) >= 0 and max(cell) < SIDE and not walls[cell] and found[cell] < 0:
        found[cell] = found[row, column] + 1
        queue.append(cell)
  return found


@dataclasses.dataclass(frozen=True)
class Walks:
  """The examples of one split.

  Each has `planes`, float32 [SIDE, SIDE, 3]: walls, the goal, where one stands; `best`, a 1 for each of the moves that
  lead nearer to the goal; `label`, the first of them.
  """

  split: str

  def __len__(self):
    return MAZES[self.split] * PER_MAZE

  def __getitem__(self, index):
    maze, place = divmod(index, PER_MAZE)
    random = np.random.default_rng([list(MAZES).index(self.split), maze])
    walls = random.random((SIDE, SIDE)) < 0.25
    goal = tuple(int(one) for one in random.integers(0, SIDE, 2))
    walls[goal] = False
    steps = distances(walls, goal)
    cells = np.argwhere(steps > 0)
    here = tuple(cells[random.permutation(len(cells))[place % len(cells)]]) if len(cells) else goal
    planes = np.zeros((SIDE, SIDE, 3), np.float32)
    planes[..., 0], planes[(*goal, 1)], planes[(*here, 2)] = walls, 1.0, 1.0
    best = np.asarray([self._is_nearer(steps, here, move) for move in MOVES.values()], np.int32)
    return {"planes": planes, "best": best, "label": int(best.argmax())}

  @staticmethod
  def _is_nearer(steps, here, move):
    row, column = here[0] + move[0], here[1] + move[1]
    return min(row, column) >= 0 and max(row, column) < SIDE and steps[row, column] == steps[here] - 1


def walks(rest, named):
  """``data.name=grid_source:walks``"""
  del rest, named
  return Dataset(
    name="walks",
    label_names=tuple(MOVES),
    splits={split: count * PER_MAZE for split, count in MAZES.items()},
    fields=("planes", "best", "label"),
    label_kind="class",
    identity={"walks": 1},
    read=Walks,
  )
