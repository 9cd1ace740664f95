"""How often a search takes a rate whose expected score is more than a point below the best one's, by simulation.

A curve is a quadratic in the logarithm of the rate. Its top lies anywhere within a decade of the middle of the grid;
single runs scatter around it, and in the families with a cliff each fails, down to chance, with a probability that
grows with the rate. The expected score counts failed runs. `by_means` is the search of earlier versions: every setting
under every seed, the best mean is taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import special

from peftjax.compare import rates
from peftjax.compare.rates import Run
from peftjax.compare.report.table import markdown_grid

TOP, CHANCE, FACTOR = 0.80, 0.50, 10**0.5
BUDGETS = ((7, 1), (8, 2), (6, 4))  # settings and seeds of `by_means`; the product is the budget of both
REPEATS = 400


@dataclasses.dataclass(frozen=True)
class Family:
  """How scores depend on the rate.

  Attributes:
    bend: points of accuracy lost at a decade from the top of the quadratic.
    scatter: of single runs, in points.
    cliff: decades from the top at which half of the runs fail; None: none does.
  """

  bend: float
  scatter: float
  cliff: float | None = None


FAMILIES: dict[str, Family] = {
  "flat: 1 point a decade from the top": Family(1, 1.2),
  "broad: 5 points": Family(5, 1.2),
  "narrow: 25 points": Family(25, 1.2),
  "broad, scattered runs (3 points)": Family(5, 3.0),
  "broad, a cliff 0.35 decades above the top": Family(6, 1.2, 0.35),
  "broad, a cliff 0.35 decades below the top": Family(6, 1.2, -0.35),
}


@dataclasses.dataclass
class Outcome:
  """One simulated run."""

  score: float | None
  loss: float | None = 0.0
  direction: float = 1.0


class World:
  """One curve and its runs; the same run has the same score again."""

  def __init__(self, family: Family, number: int):
    self._family, self._rng = family, np.random.default_rng([number, 3])
    self._top = self._rng.uniform(-1, 1)
    self._seeds: dict[int, float] = {}
    self._runs: dict[tuple[float, int], float] = {}

  def _fails(self, place: np.ndarray) -> np.ndarray:
    if self._family.cliff is None:
      return np.zeros_like(place)
    return special.expit((place - self._top - self._family.cliff) / 0.12)

  def expected(self, rate: float | np.ndarray) -> np.ndarray:
    """The mean score of runs at a rate, the failed ones among them; the middle of the grid is 1."""
    place = np.log10(np.asarray(rate, dtype=np.float64))
    good = np.maximum(TOP - self._family.bend / 100 * (place - self._top) ** 2, CHANCE)
    fails = self._fails(place)
    return fails * CHANCE + (1 - fails) * good

  def lost(self, rate: float) -> float:
    """How far a rate's expected score is below the best rate's."""
    return float(self.expected(10 ** np.linspace(-3, 3, 1201)).max() - self.expected(rate))

  def run(self, rate: float, seed: int) -> float:
    """The score of a run; seeds move all rates alike by half of the scatter's variance."""
    if (rate, seed) not in self._runs:
      place, scatter = np.asarray(np.log10(rate)), self._family.scatter / 100 / np.sqrt(2)
      shared = self._seeds.setdefault(seed, float(self._rng.normal()))
      good = np.maximum(TOP - self._family.bend / 100 * (place - self._top) ** 2, CHANCE)
      score = good + scatter * (shared + self._rng.normal())
      failed = CHANCE + 0.005 * self._rng.normal()
      self._runs[rate, seed] = float(failed if self._rng.random() < self._fails(place) else score)
    return self._runs[rate, seed]


def by_curve(world: World, settings: int, seeds: int) -> float:
  """The rate that `peftjax.compare.rates` takes, at the cost of so many settings under so many seeds."""

  def train(runs: Sequence[Run]) -> list[Outcome]:
    return [Outcome(world.run(one.rate, seed)) for one, seed in runs]

  return rates.find(train, 1.0, FACTOR, settings * seeds, seeds, {}).best.rate


def by_means(world: World, settings: int, seeds: int) -> float:
  """The rate that the search of earlier versions took."""
  tried: dict[float, float] = {}  # steps of the grid -> mean score

  def attempt(places: Sequence[float]) -> None:
    for place in [one for one in places if one not in tried][: settings - len(tried)]:
      tried[place] = float(np.mean([world.run(FACTOR**place, seed) for seed in range(seeds)]))

  def best() -> float:
    return max(tried, key=lambda place: tried[place])

  ends = [-1.0, 1.0]
  attempt([-1.0, 0.0, 1.0])
  while len(tried) < settings and best() in ends:
    ends = [ends[0] - (best() == ends[0]), ends[1] + (best() == ends[1])]
    attempt(ends)
  for distance in (0.5, 0.25, 0.125):
    attempt([best() - distance, best() + distance])
  return float(FACTOR ** best())


def risk(
  family: Family, search: Callable[[World, int, int], float], settings: int, seeds: int, repeats: int = REPEATS
) -> tuple[float, float]:
  """(share of searches whose rate is more than a point below the best, points lost on average)."""
  worlds = [World(family, number) for number in range(repeats)]
  lost = np.array([one.lost(search(one, settings, seeds)) for one in worlds])
  return float(np.mean(lost > 0.01)), float(100 * lost.mean())


def table(families: Mapping[str, Family] = FAMILIES) -> str:
  """In Markdown: by means and by the curve, at each budget."""
  headings = ["scores over rates"]
  headings += [f"{how}, {a * b} runs" for a, b in BUDGETS for how in ("means", "curve")]
  rows = []
  for name, family in families.items():
    cells = [risk(family, search, *budget) for budget in BUDGETS for search in (by_means, by_curve)]
    rows.append([name, *(f"{100 * share:.0f}% ({lost:.1f})" for share, lost in cells)])
  return markdown_grid(headings, rows, (0,))
