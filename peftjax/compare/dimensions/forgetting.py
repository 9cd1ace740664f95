"""Forgetting: the rise of the loss on the retained data (`data.retained`), along the run and at equal gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary, of_seeds
from peftjax.compare.dimensions.base import Dimension, Json, Plot, Section, at_size, by_group, by_kind, of_largest_size
from peftjax.compare.dimensions.convergence import first_at
from peftjax.compare.dimensions.told import INTERVALS
from peftjax.compare.drawing import lines
from peftjax.compare.drawing.rows import estimated, marked
from peftjax.compare.metrics import spec_of
from peftjax.compare.records import Record
from peftjax.data.extra_sets import RETAINED

NAME = "forgetting"
Path = tuple[np.ndarray, np.ndarray, np.ndarray]  # steps, validation scores times their direction, retained losses


def summarize(records: Sequence[Record], summary: Summary) -> Json | None:
  """{"before", "groups", "matched", "paths"}; None where no run was evaluated on retained text before its first update.

  "before" is the loss before any update; a group is the rise from there to the last update, by row and size. "matched"
  has for each row {"row", "size", "level", "own", "reference", "difference", "runs"}: the rise of the row and of the
  reference at the first point of each run where both reach the same validation score, the worse of the two runs' best
  under one seed, between evaluations by the straight line. "paths" is the mean path of each row.
  """
  held = [record for record in records if _retained(record) is not None]
  if not held:
    return None
  direction = summary.spec.direction
  all_paths = {record.run: path for record in held if (path := path_of(record, direction)) is not None}
  kinds = by_kind([record for record in held if record.run in all_paths], summary)
  matched, paths = [], []
  for (row, size), own in kinds.items():
    base = {record.seed: record for record in kinds.get((summary.reference or "", size), ())}
    pairs = [(record.run, base[record.seed].run) for record in own if record.seed in base]
    if pairs and row != summary.reference:
      levels, rises, others = np.array([_match(all_paths[one], all_paths[other]) for one, other in pairs]).T
      matched.append(
        {
          "row": row,
          "size": size,
          "level": direction * float(levels.mean()),
          "own": of_seeds(rises),
          "reference": of_seeds(others),
          "difference": of_seeds(rises - others),
          "runs": [run for pair in pairs for run in pair],
        }
      )
    steps, scores, losses = (np.stack(parts) for parts in zip(*(all_paths[record.run] for record in own)))
    paths.append(
      {
        "row": row,
        "size": size,
        "steps": steps[0].tolist(),
        "score": (direction * scores.mean(0)).tolist(),
        "rise": (losses - losses[:, :1]).mean(0).tolist(),
        "runs": [record.run for record in own],
      }
    )
  before = float(_losses(held[0])[0])
  risen = by_group(held, summary, lambda record: float(_losses(record)[-1] - _losses(record)[0]))
  return {"before": before, "groups": risen, "matched": matched, "paths": paths}


def path_of(record: Record, direction: float = 1.0) -> Path | None:
  """(steps, validation scores, retained losses) of a run that was evaluated on both from its start, at their common
  steps: after the last update a run evaluates validation only if `train.final_splits` names it.
  """
  kept, scored = record.trajectory.get(RETAINED), record.trajectory.get("validation")
  if not kept or not scored:
    return None
  losses, scores = (
    dict(zip(one["step"], one.get(key) or ())) for one, key in ((kept, "loss"), (scored, record.metric))
  )
  steps = [step for step in kept["step"] if losses.get(step) is not None and scores.get(step) is not None]
  if len(steps) < 2 or steps[0] != 0:
    return None
  gains = direction * np.array([scores[step] for step in steps])
  return np.array(steps), gains, np.array([losses[step] for step in steps])


def _retained(record: Record) -> np.ndarray | None:
  """The losses on retained text, from before the first update to after the last."""
  kept = record.trajectory.get(RETAINED)
  if not kept or kept["step"][0] != 0 or None in kept["loss"]:
    return None
  return np.array(kept["loss"], dtype=np.float64)


def _losses(record: Record) -> np.ndarray:
  losses = _retained(record)
  assert losses is not None
  return losses


def _match(own: Path, base: Path) -> tuple[float, float, float]:
  """(the score that both reach, the rise of the one there, the rise of the other)."""
  level = min(float(path[1].max()) for path in (own, base))
  return level, rise_at(own, level), rise_at(base, level)


def rise_at(path: Path, level: float) -> float:
  """The rise of the retained loss where the validation score first is `level`; it must be reached somewhere."""
  _, scores, losses = path
  there = first_at(level, scores, losses)
  assert there is not None
  return there - float(losses[0])


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """The rise of the loss on retained text by row: at the end, along the run, at equal gains."""
  reference, loss = summary.reference, spec_of("loss", summary.metrics_spec)
  last = sorted(of_largest_size(found["groups"]), key=lambda one: one.estimate)
  size = last[0].size
  matched = [one for one in found["matched"] if one["size"] == size]
  matched.sort(key=lambda one: one["difference"].estimate)
  unit = fmt.unit(loss)
  risen = "; ".join(f"{one.row} {fmt.difference(one, loss)}" for one in last)
  told = (
    f"On the retained data the loss was {found['before']:.3f}{unit} before; after the last update it had "
    f"risen{at_size(size)} by: {risen}."
  )
  if matched:
    shown = "; ".join(f"{one['row']} {fmt.difference(one['difference'], loss)}" for one in matched)
    told += (
      f" Where a method and {reference} first have the same validation {summary.metric}, the method's rise less "
      f"{reference}'s is: {shown}."
    )
  at_end = [estimated(one.row, one, fmt.difference(one, loss)) for one in last]
  at_gain = [estimated(one["row"], one["difference"], fmt.difference(one["difference"], loss)) for one in matched]
  plots = (
    Plot(
      f"{NAME}-paths",
      "What each gain costs",
      f"Rise of the loss on the retained data against validation {summary.metric}, from the first update to the last "
      "(marker); means over seeds. Lower at the same place means that less was forgotten for the same gain.",
      lambda narrow: _paths_figure(found, summary, narrow, size),
    ),
    Plot(
      f"{NAME}-last",
      "Forgetting after the last update",
      INTERVALS,
      lambda narrow: marked(at_end, summary, f"rise of the loss,{unit}", narrow, at=0.0),
    ),
    Plot(
      f"{NAME}-matched",
      f"Forgetting at {reference}'s gain",
      "Paired on seeds, with 95% intervals.",
      lambda narrow: marked(at_gain, summary, f"rise less {reference}'s,{unit}", narrow, at=0.0),
    ),
  )
  return Section(
    heading="Forgetting",
    sentences=(told,),
    plots=plots,
    columns=("run", "before", "highest", "after", "rise"),
    rows=tuple(
      (
        record.run,
        *(fmt.score_text(float(value), loss) for value in (losses[0], losses.max(), losses[-1])),
        fmt.signed(float(losses[-1] - losses[0]), loss),
      )
      for record in records
      if (losses := _retained(record)) is not None
    ),
  )


def _paths_figure(found: Mapping[str, Any], summary: Summary, narrow: bool, size: int) -> Figure | None:
  scale, unit = fmt.scale(summary.spec), fmt.unit(spec_of("loss", summary.metrics_spec))
  drawn = {
    one["row"]: lines.flat([(scale * x, y) for x, y in zip(one["score"], one["rise"])])
    for one in found["paths"]
    if one["size"] == size
  }
  return lines.curves(drawn, summary, f"validation {fmt.named(summary.spec)}", f"rise,{unit}", narrow, marks="last")


DIMENSION = Dimension(NAME, None, summarize, section, by_size=True)
