"""What stands under the answer: how far it may be trusted, in four lines made from the summary by rule."""

from __future__ import annotations

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import MIDDLE, Row, Summary
from peftjax.compare.ending import CONVERGED, LEARNING
from peftjax.compare.metrics import SHARE


def basis(summary: Summary) -> list[tuple[str, str]]:
  """(what, in words): seeds, failed runs, convergence, the search."""
  lines = [("Seeds", _seeds(summary)), ("Failed runs", _failed(summary))]
  return [*lines, ("Convergence", _convergence(summary)), ("Search", _search(summary))]


def _seeds(summary: Summary) -> str:
  count = max((len(row.seeds) for row in summary.rows), default=0)
  if summary.location == MIDDLE:
    kept = count - 2 * (count // 4)
    return f"{count} a method; the middle {kept} by score decide, and differences are paired on them."
  if count == 1:
    return "One a method: nothing can be concluded about new runs."
  return f"{count} a method, each of them counts; from five on, failed runs would no longer decide."


def _failed(summary: Summary) -> str:
  known = [(row, row.failures) for row in summary.rows if row.failures]
  some = [(row.row, one) for row, one in known if one.count]
  parts = [
    f"{name} {one.count} of {one.started} [{fmt.score_text(one.low, SHARE)}, {fmt.score_text(one.high, SHARE)}]%"
    for name, one in some
  ]
  started = sum(one.started for _, one in known)
  said = f"{'; '.join(parts)}; none of the others." if len(some) < len(known) else f"{'; '.join(parts)}."
  if not some:
    least = min((one.high for _, one in known), default=1.0)
    said = f"None of {started}; up to {fmt.score_text(least, SHARE)}% of a method's new runs may still fail."
  groups = [row.row for row, one in known if one.groups]
  if groups:
    said += f" The runs of {fmt.names(groups)} look like two groups."
  if summary.spec.share and all(one.majority is None for _, one in known):
    said += " The score of the most frequent answer is not known to this study, so no run is held against it."
  return said


def _convergence(summary: Summary) -> str:
  known = [(row, row.ending) for row in summary.rows if row.ending]
  if not known:
    return "Not known: no run kept enough of its losses."
  learning = [_still(row) for row, one in known if one.word == LEARNING]
  done = [row.row for row, one in known if one.word == CONVERGED]
  left = [row.row for row, one in known if one.word not in (LEARNING, CONVERGED)]
  parts = []
  if learning:
    parts.append(f"still learning in the last fifth of the updates: {', '.join(learning)}")
  if done:
    parts.append(f"converged: {'all methods' if len(done) == len(known) else fmt.names(done)}")
  if left:
    parts.append(f"cannot be told: {fmt.names(left)}")
  said = "; ".join(parts)
  return said[0].upper() + said[1:] + "."


def _still(row: Row) -> str:
  share = row.ending.share if row.ending else None
  return row.row if share is None else f"{row.row} ({fmt.percent(100 * share)} of the loss's whole fall)"


def _search(summary: Summary) -> str:
  own = [one for one in summary.search if summary.row(one.row)]
  if not own:
    return "None: every method kept the rate that the config gives it."
  seeds = max(len(one.scores) for choice in own for one in choice.tried)
  runs = f"{own[0].runs} runs a method, settings under up to {seeds} seed{'s' if seeds > 1 else ''}"
  edge = list(dict.fromkeys(one.row for one in own if not one.interior))
  where = f"at an edge of what was tried: {fmt.names(edge)}" if edge else "all best rates inside what was tried"
  return f"{runs}; {where}."
