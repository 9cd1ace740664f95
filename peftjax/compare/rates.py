"""Which settings a search tries next, and which one it takes: from scores alone, so that it can be simulated.

    1. peak learning rates c/√10, c, c·√10 around the row's own, c, under the first seed
    2. while the best is the lowest or the highest, one further out; one further down while all are alike
    3. the row's knobs, one value after the other at the best rate; what is better stays
    4. rates between the best and its neighbours, until about half of the runs are spent (all, where there is one seed)
    5. the better half of the settings under the next seed, then the better half of these, until all runs are spent;
       where the best lies at an edge by now, a rate further out, too

"Best" is never one run's luck: each rate's score is read from a curve over the logarithm of the rate, the local
quadratic regression (Cleveland 1979; Fan & Gijbels 1996) of all runs of all seeds, in which a run that diverged counts
as the worst score that the row has seen, and a run that stayed at chance as it is. A rate beside a cliff is therefore
worth less than its own lucky run, and one at or above a rate where a run diverged is taken only where there is no
other. Halving is that of Jamieson & Talwalkar (2016), over seeds in place of updates. What this gains at equal cost is
simulated by ``python -m experiments.coverage``; docs/compare.md has the table.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

BANDWIDTH = 0.6  # of the curve, in steps of the grid
ALIKE = 0.03  # of their median: scores that differ by less may all be those of failed runs
LOWEST = 5  # steps below the middle to which runs that are all alike lead
RIDGE = np.array([1e-9, 4e-3, 0.16])  # holds the curve's slope and bend down where few runs say anything of them

Knobs = tuple[tuple[str, Any], ...]


class Outcome(Protocol):
  """One run of the search: its score and its loss; None where it diverged."""

  @property
  def score(self) -> float | None: ...

  @property
  def loss(self) -> float | None: ...

  @property
  def direction(self) -> float:
    """1.0 where a higher score is better, else -1.0."""


@dataclasses.dataclass(frozen=True)
class SearchPoint:
  """What one trial of the search tries: a peak learning rate, and values of the row's knobs."""

  rate: float
  knobs: Knobs = ()

  @property
  def name(self) -> str:
    """The name of its folder below the row's, such as "lr=0.001"."""
    return ",".join(f"{field.rpartition('.')[2]}={value}" for field, value in (("lr", self.rate), *self.knobs))

  def laid_on(self, config: ConfigDict) -> ConfigDict:
    """A copy of a row's config with this setting."""
    config = copy.deepcopy(config)
    for field, value in (("optim.learning_rate", self.rate), *self.knobs):
      section, _, last = field.rpartition(".")
      with config.unlocked():
        config[section][last] = value
    return config


Run = tuple[SearchPoint, int]  # a setting and the number of its seed
Train = Callable[[Sequence[Run]], Sequence[Outcome]]


@dataclasses.dataclass(frozen=True)
class Found:
  """What a search ended with.

  Attributes:
    runs: setting -> number of the seed -> its outcome, in the order of the trials.
    values: setting -> the score that the curve gives it; more is better, whatever the metric.
  """

  runs: Mapping[SearchPoint, Mapping[int, Outcome]]
  values: Mapping[SearchPoint, float]
  best: SearchPoint


def find(
  train: Train, centre: float, factor: float, budget: int, seeds: int, knobs: Mapping[str, Sequence[Any]]
) -> Found:
  """Spends a budget of runs on a row's settings.

  Args:
    train: some runs -> their outcomes.
    centre: the middle of the grid of rates; factor: between neighbours.
    budget: runs, the same for every row.
    seeds: how many there are; they are numbered from 0.
    knobs: dotted field -> values to try.
  """
  search = _Search(train, centre, factor, budget)
  first = round(budget / (2 - 0.5 ** (seeds - 1)))  # as many and half and a quarter ... of them are the budget
  search.explore(first, knobs)
  search.halve(seeds)
  return Found(search.runs, search.values(), search.best())


class _Search:
  def __init__(self, train: Train, centre: float, factor: float, budget: int):
    self._train, self._centre, self._factor, self._left = train, centre, factor, budget
    self._exponents: dict[float, float] = {}  # rate -> steps from the centre
    self._read: dict[Any, dict[SearchPoint, float]] = {}
    self.runs: dict[SearchPoint, dict[int, Outcome]] = {}

  def rate(self, exponent: float) -> float:
    found = float(f"{self._centre * self._factor**exponent:.3g}")
    self._exponents.setdefault(found, exponent)
    return found

  def place(self, setting: SearchPoint) -> float:
    return self._exponents[setting.rate]

  def attempt(self, wanted: Sequence[Run]) -> None:
    """Trains what is new and can still be paid."""
    fresh = [(one, seed) for one, seed in dict.fromkeys(wanted) if seed not in self.runs.get(one, {})][: self._left]
    if fresh:
      for (one, seed), outcome in zip(fresh, self._train(fresh), strict=True):
        self.runs.setdefault(one, {})[seed] = outcome
      self._left -= len(fresh)

  def explore(self, count: int, knobs: Mapping[str, Sequence[Any]]) -> None:
    """Settings under the first seed, at most `count`."""
    self.attempt([(SearchPoint(self.rate(one)), 0) for one in (-1.0, 0.0, 1.0)])
    for_rates = max(3, count - sum(map(len, knobs.values())))
    while len(self.runs) < for_rates and (out := self.beyond(self.best())) is not None:
      self.attempt([(out, 0)])
    for field, values in knobs.items():
      for value in values:
        if len(self.runs) < count:
          now = self.best()
          others = tuple(knob for knob in now.knobs if knob[0] != field)
          self.attempt([(SearchPoint(now.rate, (*others, (field, value))), 0)])
    while len(self.runs) < count and (between := list(self.between())):
      self.attempt([(one, 0) for one in between[: count - len(self.runs)]])

  def halve(self, seeds: int) -> None:
    """The better half of the settings under a further seed each, as long as there are runs."""
    while self._left:
      best, number = self.best(), max(map(len, self.runs.values()))
      batch: list[Run] = []
      further = self.beyond(best)
      if further is not None:
        batch.append((further, min(number, seeds - 1)))
      ranked = sorted(self.runs, key=self.rank, reverse=True)
      open_ = [one for one in ranked if len(self.runs[one]) < seeds]
      open_ = open_[: max(2, -(-self._left // 2)) - len(batch)]
      batch += [(one, next(seed for seed in range(seeds) if seed not in self.runs[one])) for one in open_]
      if not batch:
        return
      self.attempt(batch)

  def beyond(self, best: SearchPoint) -> SearchPoint | None:
    """One step further out, if the best is the lowest or the highest.

    While no score stands out, the loss says which is best; where it does not either, as where all runs so far failed at
    rates that are too high, it is further down.
    """
    places, here = [self.place(one) for one in self.runs], self.place(best)
    if self.alike(_gain):
      if not self.alike(_less_loss):
        losses = self._smooth(_less_loss)
        here = self.place(max(losses, key=lambda one: losses[one]))
      elif min(places) > -LOWEST:
        here = min(places)
    if here in (min(places), max(places)):
      return dataclasses.replace(best, rate=self.rate(here - 1 if here == min(places) else here + 1))
    return None

  def alike(self, value: Callable[[Outcome], float | None]) -> bool:
    """Whether no run stands out by a value."""
    found = [one for own in self.runs.values() for outcome in own.values() if (one := value(outcome)) is not None]
    return not found or max(found) - min(found) <= ALIKE * abs(float(np.median(found)))

  def between(self) -> Iterator[SearchPoint]:
    """Half-way to the neighbours of the best setting that still has any farther than an eighth of a step."""
    for best in sorted(self.runs, key=self.rank, reverse=True):
      here, places = self.place(best), [self.place(one) for one in self.runs if one.knobs == best.knobs]
      lower, upper = ([one for one in places if (one - here) * side > 0] for side in (-1, 1))
      ends = [max(lower, default=here - 1), min(upper, default=here + 1)]
      fresh = [
        dataclasses.replace(best, rate=self.rate((here + end) / 2)) for end in ends if abs(end - here) > 0.125 + 1e-9
      ]
      fresh = [one for one in fresh if one not in self.runs]
      if fresh:
        yield from fresh
        return

  def best(self) -> SearchPoint:
    return max(self.runs, key=self.rank)

  def rank(self, setting: SearchPoint) -> tuple[bool, float, float]:
    """More is better: no run that diverged at this rate or below, the score on the curve, the lower loss on its own."""
    ended = all(
      outcome.score is not None
      for one, own in self.runs.items()
      for outcome in own.values()
      if one.rate <= setting.rate
    )
    return ended, round(self.values()[setting], 9), round(self._smooth(_less_loss)[setting], 9)

  def values(self) -> dict[SearchPoint, float]:
    """See `Found`."""
    return self._smooth(_gain)

  def _smooth(self, value: Callable[[Outcome], float | None]) -> dict[SearchPoint, float]:
    key = value, self._left
    if key not in self._read:
      self._read[key] = smooth(self.runs, {one: self.place(one) for one in self.runs}, value)
    return self._read[key]


def smooth(
  runs: Mapping[SearchPoint, Mapping[int, Outcome]],
  places: Mapping[SearchPoint, float],
  value: Callable[[Outcome], float | None],
) -> dict[SearchPoint, float]:
  """What the curve gives each setting; what knobs add is taken out of it and added again.

  Args:
    runs: see `Found`.
    places: setting -> steps of the grid from its middle.
    value: of a run, more is better; None counts as the worst of all.
  """
  flat = [(one, seed, value(outcome)) for one, own in runs.items() for seed, outcome in own.items()]
  worst = min((found for _, _, found in flat if found is not None), default=0.0)
  scores = np.array([worst if found is None else found for _, _, found in flat], dtype=np.float64)
  offsets = _offsets([(one, seed) for one, seed, _ in flat], scores)
  freed = scores - np.array([offsets[one.knobs] for one, _, _ in flat])
  found = curve(np.array([places[one] for one, _, _ in flat]), freed, np.array([places[one] for one in runs]))
  return {one: float(score) + offsets[one.knobs] for one, score in zip(runs, found)}


def _gain(one: Outcome) -> float | None:
  return None if one.score is None else one.direction * one.score


def _less_loss(one: Outcome) -> float | None:
  return None if one.loss is None else -one.loss


def curve(places: NDArray[np.float64], scores: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
  """The local quadratic regression of scores.

  Args:
    places: of the runs, ``[R]``, in steps of the grid; scores: ``[R]``.
    at: where it is read, ``[P]``.
  """
  away = places - at[:, None]
  weights = np.exp(-0.5 * (away / BANDWIDTH) ** 2)
  powers = away[..., None] ** np.arange(3)  # [P, R, 3]
  normal = np.einsum("pr,pri,prj->pij", weights, powers, powers) + np.diag(RIDGE)
  right = np.einsum("pr,pri,r->pi", weights, powers, scores)
  solved: NDArray[np.float64] = np.linalg.solve(normal, right[..., None])[:, 0, 0]
  return solved


def _offsets(runs: Sequence[Run], scores: NDArray[np.float64]) -> dict[Knobs, float]:
  """What knobs add to the score, by least squares over runs of one rate and seed; 0 without any."""
  kinds = list(dict.fromkeys([(), *(one.knobs for one, _ in runs)]))
  if len(kinds) == 1:
    return {(): 0.0}
  cells = list(dict.fromkeys((one.rate, seed) for one, seed in runs))
  design = np.zeros((len(runs), len(cells) + len(kinds) - 1))
  for row, (one, seed) in enumerate(runs):
    design[row, cells.index((one.rate, seed))] = 1
    if one.knobs:
      design[row, len(cells) + kinds.index(one.knobs) - 1] = 1
  solved = np.linalg.lstsq(design, scores, rcond=None)[0][len(cells) :]
  return dict(zip(kinds, (0.0, *map(float, solved))))
