"""Out of domain: the score on test sets from elsewhere (`data.shifted`), and what is lost against the own test set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from peftjax.compare import analysis, statistics
from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Difference, Estimate, Scores, SeedEstimate, Summary
from peftjax.compare.dimensions.base import Dimension, Json, Plot, Section, at_size, by_kind, of_largest_size
from peftjax.compare.drawing.rows import estimated, marked
from peftjax.compare.records import Record

NAME = "shift"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Away(SeedEstimate):
  """A row's score on one set at one size.

  Attributes:
    drop: what is lost against the own test set.
    difference: to the reference, corrected by Holm over the rows of a set and size.
  """

  set: str
  row: str
  size: int
  drop: Estimate
  difference: Difference | None
  seeds: tuple[int, ...]
  runs: tuple[str, ...]


def summarize(records: Sequence[Record], summary: Summary) -> Json | None:
  """{"groups": `Away`}; None without shifted sets."""
  found: list[Away] = []
  kinds = by_kind(records, summary)
  for name in dict.fromkeys(name for record in records for name in record.shifted):
    for size in sorted({size for _, size in kinds}):
      own = {
        row: kept
        for (row, one), kept in kinds.items()
        if one == size and all(record.score(name) is not None for record in kept)
      }
      away, home = (
        {row: analysis.scores_of(kept, summary.metric, split) for row, kept in own.items()}
        for split in (name, summary.split)
      )
      compared = analysis.comparisons(away, summary.reference or "", summary.margin, summary.spec)
      for row, one in away.items():
        found.append(
          Away(
            **analysis.estimate_of(one, summary.spec, trim=analysis.trim_of(away)),
            set=name,
            row=row,
            size=size,
            drop=drop(home[row], one, summary.spec.direction),
            difference=compared.get(row),
            seeds=one.seeds,
            runs=tuple(record.run for record in own[row]),
          )
        )
  return {"groups": found} if found else None


def drop(home: Scores, away: Scores, direction: float = 1.0) -> Estimate:
  """How much better the score at home is than that away: runs are paired, the two sets' examples are not.

  The half-width joins Student's of the seeds' differences with the normal one of both sets' examples, as squares.
  """
  by_seed = direction * (home.values.mean(axis=1) - away.values.mean(axis=1))
  estimate, count = float(by_seed.mean()), len(by_seed)
  if count < 2:
    return Estimate(estimate=estimate)
  t = special.stdtrit(count - 1, 0.5 + statistics.LEVEL / 2)
  z = special.ndtri(0.5 + statistics.LEVEL / 2)
  examples = sum(float(statistics.spread(one.values).example_variance) for one in (home, away) if one.per_example)
  half = float(np.sqrt(t**2 * by_seed.var(ddof=1) / count + z**2 * examples))
  return Estimate(estimate=estimate, low=estimate - half, high=estimate + half)


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Scores on shifted sets by row, and what is lost against the own test set."""
  spec, reference, scale = summary.spec, summary.reference, fmt.scale(summary.spec)
  groups: list[Away] = of_largest_size(found["groups"])
  names = list(dict.fromkeys(one.set for one in groups))
  at = at_size(groups[0].size)
  sentences, plots = [], []
  for name in names:
    ranked = sorted((one for one in groups if one.set == name), key=lambda one: -spec.direction * one.estimate)
    judged = [(one.row, one.difference) for one in ranked if one.difference]
    shown = ", ".join(f"{one.row} {fmt.estimate(one, spec)}" for one in ranked)
    words = ", ".join(f"{row} {less.verdict}" for row, less in judged)
    sentences.append(f"On {name}{at}: {shown}; against {reference}: {words or 'nothing'}.")
    drawn = [estimated(row, less, f"{fmt.difference(less, spec)} · {less.verdict}", scale) for row, less in judged]
    plots.append(
      Plot(
        f"{NAME}-{name}",
        f"Difference to {reference} on {name}",
        f"Paired on seeds and examples, with 95% intervals; small strokes are single seeds{at and ';' + at}.",
        lambda narrow, drawn=drawn: marked(  # type: ignore[misc]
          drawn, summary, f"{summary.metric} less {reference}'s{fmt.counted_in(spec)}", narrow, at=0.0
        ),
      )
    )
  drops = [
    estimated(one.row, SeedEstimate(**vars(one.drop)), fmt.difference(one.drop, spec), scale, f"{one.row}, {one.set}")
    for one in groups
  ]
  label = f"lead of the own test set's {summary.metric}{fmt.counted_in(spec)}"
  plots.append(
    Plot(
      f"{NAME}-drops",
      "What is lost away from home",
      f"With 95% intervals{at and ';' + at}.",
      lambda narrow: marked(drops, summary, label, narrow, at=0.0),
    )
  )
  return Section(
    heading="Out of domain",
    sentences=(*sentences, "Each set was opened once, after the last step of a run, and chose nothing."),
    plots=tuple(plots),
    columns=("run", f"{summary.split} {summary.metric}", *(f"{name} {summary.metric}" for name in names)),
    rows=tuple(
      (record.run, *(fmt.score_text(record.score(split), spec) for split in (summary.split, *names)))
      for record in sorted(records, key=lambda record: record.size)
    ),
  )


DIMENSION = Dimension(NAME, None, summarize, section, by_size=True)
