"""What the rules that judge claims share: the words of verdicts, and the figures and runs that they are about."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Estimate, Row, Summary
from peftjax.compare.dimensions.base import Group
from peftjax.compare.dimensions.convergence import Updates
from peftjax.compare.dimensions.data_efficiency import AtSize
from peftjax.compare.dimensions.shift import Away
from peftjax.compare.records import Record
from peftjax.stored import Stored

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
UNTESTABLE = "not testable here"
VERDICTS = (SUPPORTED, CONTRADICTED, INCONCLUSIVE, UNTESTABLE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict(Stored):
  """What a study says of a published claim.

  Attributes:
    id, claim, dimension, measure: of the claim; `claims.judge` fills them in.
    verdict: one of `VERDICTS`.
    effect, unit, interval: the figure that decided; no interval where it is exact.
    runs: ids that it rests on.
    counts: what the verdict counts, empty if there is nothing to count.
    needs: the run that would test the claim, empty if it was.
    page: where the verdict is from if not from this study.
  """

  id: str = ""
  claim: str = ""
  dimension: str = ""
  measure: str = ""
  verdict: str
  reason: str
  effect: float | None = None
  unit: str = ""
  interval: tuple[float, float] | None = None
  runs: tuple[str, ...] = ()
  counts: str = ""
  needs: str = ""
  page: str = ""


Judged = Row | Away | AtSize  # what has a difference to the reference that was judged
Rule = Callable[[Summary, Sequence[Record]], Verdict | None]  # None: the study says nothing of the claim


def untestable(needs: str, reason: str = "this study does not measure it", **more: Any) -> Verdict:
  """The verdict of a claim whose measurement the study lacks; `needs` names the run that would have it."""
  return Verdict(verdict=UNTESTABLE, reason=reason, needs=needs, **more)


def decided(supported: bool, contradicted: bool) -> str:
  """The word for what was found, in this order; else "inconclusive"."""
  return SUPPORTED if supported else CONTRADICTED if contradicted else INCONCLUSIVE


def runs_of(*rows: Judged | Group | Updates | None) -> tuple[str, ...]:
  """The ids of all runs of some rows."""
  return tuple(run for row in rows if row is not None for run in row.runs)


def reference(summary: Summary) -> Row | None:
  """The row of full fine-tuning, where it is what others were compared with."""
  row = summary.row(summary.reference)
  return row if row is not None and row.method.get("name") == "full" else None


def pefts(summary: Summary, found: Iterable[Any]) -> list[Any]:
  """Of groups of a dimension those of PEFT methods."""
  names = {row.row for row in summary.peft}
  return [one for one in found if one.row in names]


def in_metric(one: Estimate, summary: Summary, what: str) -> dict[str, Any]:
  """{"effect", "interval", "unit"} of a figure in the main metric; shares in points."""
  scale = fmt.scale(summary.spec)
  return {
    "effect": scale * one.estimate,
    "interval": (scale * one.ends[0], scale * one.ends[1]) if one.ends else None,
    "unit": f"{'points of ' if summary.spec.share else ''}{summary.metric}{what}",
  }


def best(summary: Summary, rows: Iterable[Any]) -> Any:
  """Of rows with a difference the one that has the best."""
  return max(rows, key=lambda row: summary.spec.direction * row.difference.estimate)


def against(summary: Summary, row: Judged, where: str = "") -> dict[str, Any]:
  """{"effect", "interval", "unit"} of a row's difference to the reference."""
  assert row.difference is not None
  return in_metric(row.difference, summary, f"{where}, {row.row} less {row.difference.to}")


def each(summary: Summary, rows: Iterable[Judged]) -> str:
  """All rows' differences in words."""
  shown = [(row.row, row.difference) for row in rows if row.difference]
  return "; ".join(f"{row} {fmt.difference(one, summary.spec)} ({one.verdict})" for row, one in shown)


def words_of(rows: Iterable[Judged]) -> set[str]:
  """The verdicts of rows' differences."""
  return {row.difference.verdict for row in rows if row.difference}


REACHING = {"better", "matches"}
