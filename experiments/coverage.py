"""How often a study's intervals hold the truth, and how often its search takes a poor rate, by simulation.

    python -m experiments.coverage [coverage differences groups search]

writes these tables of docs/compare.md anew, or all, in about five minutes of one core; each cell has random numbers of
its own, so that the same versions write the same bytes.

A run answers 500 or 2,000 test questions. The logit of a right answer is 1.5, plus a part of the question (standard
deviation 1.5, the same for all methods), a part of method and question (0.7), and a part of the run, from one of
`FAMILIES`: what its seed did to it.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from experiments import search_risk
from peftjax.compare import statistics
from peftjax.compare.analysis import FEW_SEEDS
from peftjax.compare.failures import two_groups_p
from peftjax.compare.report.table import markdown_grid
from peftjax.compare.statistics import QUARTER, Interval
from peftjax.errors import nearest
from peftjax.files import write_text

PAGE = Path(__file__).parents[1] / "docs" / "compare.md"
BEGIN, END = "<!-- {}: written by python -m experiments.coverage -->", "<!-- {}: end -->"
MEAN, QUESTIONS, TASTE = 1.5, 1.5, 0.7
SEEDS = (2, 3, 5, 10, 20)
ROWS = 7  # methods of a study, which lend each other their spread where seeds are few
STUDIES = 1000

Array = NDArray[np.floating[Any]]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]


def _failing(share: float) -> Draw:
  return lambda rng, shape: rng.normal(0, 0.1, shape) - 1.2 * (rng.random(shape) < share)


# what a seed adds to the logit of a run
FAMILIES: dict[str, Draw] = {
  "normal, 0.1": lambda rng, shape: rng.normal(0, 0.1, shape),
  "normal, 0.4": lambda rng, shape: rng.normal(0, 0.4, shape),
  "skewed: 0.3 (1 − exponential)": lambda rng, shape: 0.3 * (1 - rng.exponential(1, shape)),
  "heavy tails: 0.1 t(2)": lambda rng, shape: 0.1 * rng.standard_t(2, shape),
  "two groups: 15% fail by 1.2": _failing(0.15),
  "two groups: 30% fail by 1.2": _failing(0.30),
}
NORMAL, WIDE, SKEWED, HEAVY, FAILING, OFTEN = FAMILIES
PAIRS = (
  (NORMAL, NORMAL),
  (FAILING, FAILING),
  (FAILING, NORMAL),
  (OFTEN, FAILING),
  (WIDE, NORMAL),
  (SKEWED, NORMAL),
  (HEAVY, NORMAL),
)


@dataclasses.dataclass(frozen=True)
class Truth:
  """Of a method of a family: the expected score over all runs, and over the middle half of them."""

  mean: float
  middle: float

  def of(self, trim: float) -> float:
    return self.middle if trim else self.mean


@functools.cache
def truth(family: str, runs: int = 1_000_000) -> Truth:
  """By quadrature over questions and many runs."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(61)
  logits = np.linspace(-15, 15, 3001)
  right = special.expit(logits[:, None] + np.hypot(QUESTIONS, TASTE) * nodes) @ weights / weights.sum()
  drawn = MEAN + FAMILIES[family](np.random.default_rng(1), (runs,))
  scores = np.sort(np.interp(drawn, logits, right))
  return Truth(float(scores.mean()), float(scores[runs // 4 : -(runs // 4)].mean()))


def simulated(rng: np.random.Generator, families: Sequence[str], studies: int, seeds: int, examples: int) -> Array:
  """Right (1.0) and wrong (0.0) answers, ``[studies, methods, seeds, examples]``; one method for each family named."""
  logits = MEAN + rng.normal(0, QUESTIONS, (studies, 1, 1, examples)).astype(np.float32)
  logits = logits + rng.normal(0, TASTE, (studies, len(families), 1, examples)).astype(np.float32)
  runs = np.stack([FAMILIES[one](rng, (studies, seeds)) for one in families], 1)[..., None].astype(np.float32)
  found: Array = (
    rng.random((studies, len(families), seeds, examples), np.float32) < special.expit(logits + runs)
  ) * 1.0
  return found


def _chunks(studies: int, cells: int) -> Iterator[int]:
  size = max(1, min(studies, 4_000_000 // cells))
  while studies > 0:
    yield min(size, studies)
    studies -= size


@dataclasses.dataclass(frozen=True)
class Covered:
  """The share of intervals that hold the truth, and their median width."""

  share: float
  width: float

  @classmethod
  def of(cls, found: Sequence[Interval], true: float) -> Covered:
    held = [((one.low <= true) & (true <= one.high)).ravel() for one in found]
    widths = [(one.high - one.low).ravel() for one in found]
    return cls(float(np.mean(np.concatenate(held))), float(np.median(np.concatenate(widths))))

  def __str__(self) -> str:
    return f"{_share(self.share)} ({100 * self.width:.0f})"


def single(
  family: str, seeds: int, examples: int, studies: int = STUDIES, rng: np.random.Generator | None = None
) -> list[Covered]:
  """Of one method's score: the mean, and from five seeds on the interquartile mean before it.

  With fewer seeds in a study of `ROWS` methods of the family.
  """
  rows = ROWS if seeds < FEW_SEEDS else 1
  trims = (0.0,) if rows > 1 else (QUARTER, 0.0)
  rng, found = rng or np.random.default_rng([seeds, examples]), [[] for _ in trims]  # type: ignore[var-annotated]
  for count in _chunks(studies // rows, rows * seeds * examples):
    scores = simulated(rng, [family] * rows, count, seeds, examples)
    pooled = _lent(scores)[0] if rows > 1 else None
    for held, trim in zip(found, trims):
      held.append(statistics.accuracy_interval(scores, pooled=pooled, trim=trim))
  return [Covered.of(held, truth(family).of(trim)) for held, trim in zip(found, trims)]


def difference(
  pair: tuple[str, str], seeds: int, examples: int, studies: int = STUDIES, rng: np.random.Generator | None = None
) -> list[Covered]:
  """As `single`, of the difference of two methods, of a family each; with few seeds the others are like the second."""
  few = seeds < FEW_SEEDS
  rows, trims = [pair[0], *[pair[1]] * (ROWS - 1 if few else 1)], (0.0,) if few else (QUARTER, 0.0)
  rng, found = rng or np.random.default_rng([seeds, examples]), [[] for _ in trims]  # type: ignore[var-annotated]
  for count in _chunks(studies // (2 if few else 1), len(rows) * seeds * examples):
    scores = simulated(rng, rows, count, seeds, examples)
    pooled = _lent(scores)[1] if few else None
    for held, trim in zip(found, trims):
      held.append(statistics.difference_interval(scores[:, :1], scores[:, 1:2], pooled=pooled, trim=trim))
  one, other = map(truth, pair)
  return [Covered.of(held, one.of(trim) - other.of(trim)) for held, trim in zip(found, trims)]


def _lent(scores: Array) -> tuple[statistics.Pooled, statistics.Pooled]:
  alone, paired = statistics.pool_seeds(scores.mean(-1))
  both = [statistics.Pooled(one.variance[:, None], one.freedom[:, None]) for one in (alone, paired)]
  return both[0], both[1]


def called_groups(family: str, seeds: int, studies: int = 4000) -> float:
  """How often runs on 500 questions look like two groups: a false alarm, but where runs of two groups are drawn."""
  rng, found = np.random.default_rng(seeds), []
  for count in _chunks(studies, seeds * 500):
    averages = simulated(rng, [family], count, seeds, 500)[:, 0].mean(-1)
    found.append(two_groups_p(averages) < 1 - statistics.LEVEL)
  return float(np.mean(np.concatenate(found)))


# The page ---------------------------------------------------------------------------------------------------------


def _coverage_table(names: Sequence[str], cell: Callable[[str, int, int], list[Covered]], what: str) -> str:
  """One line a family and number of examples: the study's own interval, and that of the mean beside it."""
  headings = [what, "examples", *(f"{one} seeds" for one in SEEDS)]
  headings += [f"mean, {one}" for one in SEEDS if one >= FEW_SEEDS]
  rows = []
  for name in names:
    for examples in (500, 2000):
      cells = [cell(name, one, examples) for one in SEEDS]
      own, means = [str(one[0]) for one in cells], [str(one[1]) for one in cells if len(one) > 1]
      rows.append([name, f"{examples:,}", *own, *means])
  return markdown_grid(headings, rows, (0,))


def _differences() -> str:
  pairs = {f"{one} / {other}": (one, other) for one, other in PAIRS}
  return _coverage_table(list(pairs), lambda name, *rest: difference(pairs[name], *rest), "runs of one / of the other")


def _groups() -> str:
  many = [one for one in SEEDS if one >= FEW_SEEDS]
  rows = [[name, *(_share(called_groups(name, seeds)) for seeds in many)] for name in FAMILIES]
  return markdown_grid(["runs of the method", *(f"{one} seeds" for one in many)], rows, (0,))


def _share(value: float) -> str:
  return f"{value:.2f}".removeprefix("0")


# name -> what makes it
TABLES: dict[str, Callable[[], str]] = {
  "coverage": lambda: _coverage_table(list(FAMILIES), single, "runs of the method"),
  "differences": _differences,
  "groups": _groups,
  "search": search_risk.table,
}


def written(page: str, made: dict[str, str]) -> str:
  """The page with its tables replaced.

  >>> old = "a\\n<!-- x: written by python -m experiments.coverage -->\\nold\\n<!-- x: end -->\\nb"
  >>> written(old, {"x": "new"}).splitlines()[2:5]
  ['', 'new', '']
  """
  for name, table in made.items():
    start, end = BEGIN.format(name), END.format(name)
    before, _, rest = page.partition(start)
    page = f"{before}{start}\n\n{table}\n\n{end}{rest.partition(end)[2]}"
  return page


def main(names: Sequence[str]) -> int:
  """Writes tables anew, all if none is named."""
  for name in names or TABLES:
    if name not in TABLES:
      print(f"error: no table {name!r}; {nearest(name, TABLES)}", file=sys.stderr)
      return 2
  made = {name: TABLES[name]() for name in names or TABLES}
  write_text(PAGE, written(PAGE.read_text(encoding="utf-8"), made))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
