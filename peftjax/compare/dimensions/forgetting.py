"""Forgetting: the rise of the loss on held-out pretraining text (`data.retained`), along the run and at equal gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from peftjax.compare import formatting as fmt
from peftjax.compare.dimensions import drawing
from peftjax.compare.dimensions.base import (
  Dimension,
  Json,
  Plot,
  Record,
  Section,
  Summary,
  by_group,
  groups,
  interval,
)

if TYPE_CHECKING:
  from matplotlib.figure import Figure

NAME = "forgetting"
RETAINED = "retained"  # the split of `data.retained`
Path = tuple[np.ndarray, np.ndarray, np.ndarray]  # steps, validation scores, retained losses


def summarize(records: Sequence[Record], summary: Summary) -> Json | None:
  """{"before", "groups", "matched", "paths"}; None where no run was evaluated on retained text before its first update.

  "before" is the loss before any update, nats a token; a group is the rise from there to the last update, by row and
  size. "matched" has for each row {"row", "size", "level", "own", "reference", "difference", "runs"}: the rise of the
  row and of the reference at the first point of each run where both reach the same validation score, the lower of the
  two runs' best under one seed, between evaluations by the straight line. "paths" is the mean path of each row.
  """
  metric = summary["metric"]
  held = [record for record in records if _retained(record) is not None]
  if not held:
    return None
  risen = by_group(held, summary, _rise)
  by_kind = groups(held, summary)
  matched, paths = [], []
  for (row, size), own in by_kind.items():
    base = {record["seed"]: record for record in by_kind.get((summary["reference"], size), ())}
    pairs = [(record, base[record["seed"]]) for record in own if record["seed"] in base]
    pairs = [pair for pair in pairs if all(path_of(record, metric) for record in pair)]
    if pairs and row != summary["reference"]:
      matched.append(_match(row, size, pairs, metric))
    curves = [path for record in own if (path := path_of(record, metric))]
    if not curves:
      continue
    stacked = [np.stack([curve[part] for curve in curves]) for part in range(3)]
    paths.append(
      {
        "row": row,
        "size": size,
        "steps": stacked[0][0].tolist(),
        "score": stacked[1].mean(0).tolist(),
        "rise": (stacked[2] - stacked[2][:, :1]).mean(0).tolist(),
        "runs": [record["run"] for record in own],
      }
    )
  before = _retained(held[0])
  assert before is not None
  return {"before": float(before[0]), "groups": risen, "matched": matched, "paths": paths}


def path_of(record: Record, metric: str) -> Path | None:
  """(steps, validation scores, retained losses) of a run that was evaluated on both from its start, at their common
  steps: after the last update a run evaluates validation only if `train.final_splits` names it.
  """
  held = record.get("trajectory") or {}
  kept, scored = held.get(RETAINED), held.get("validation")
  if not kept or not scored:
    return None
  losses, scores = (dict(zip(one["step"], one.get(key) or ())) for one, key in ((kept, "loss"), (scored, metric)))
  steps = [step for step in kept["step"] if losses.get(step) is not None and scores.get(step) is not None]
  if len(steps) < 2 or steps[0] != 0:
    return None
  return np.array(steps), np.array([scores[step] for step in steps]), np.array([losses[step] for step in steps])


def _retained(record: Record) -> np.ndarray | None:
  """The losses on retained text, from before the first update to after the last."""
  kept = (record.get("trajectory") or {}).get(RETAINED)
  if not kept or kept["step"][0] != 0 or None in kept["loss"]:
    return None
  return np.array(kept["loss"], dtype=np.float64)


def _rise(record: Record) -> float | None:
  losses = _retained(record)
  return None if losses is None else float(losses[-1] - losses[0])


def _match(row: str, size: int, pairs: Sequence[tuple[Record, Record]], metric: str) -> Json:
  own, base, levels = [], [], []
  for record, other in pairs:
    paths = path_of(record, metric), path_of(other, metric)
    assert paths[0] is not None and paths[1] is not None
    level = min(float(path[1].max()) for path in paths if path)
    levels.append(level)
    own.append(rise_at(paths[0], level))
    base.append(rise_at(paths[1], level))
  return {
    "row": row,
    "size": size,
    "level": float(np.mean(levels)),
    "own": interval(own),
    "reference": interval(base),
    "difference": interval([one - other for one, other in zip(own, base)]),
    "runs": [run for pair in pairs for run in (pair[0]["run"], pair[1]["run"])],
  }


def rise_at(path: Path, level: float) -> float:
  """The rise of the retained loss where the validation score first is `level`; it must be reached somewhere."""
  _, scores, losses = path
  first = int(np.flatnonzero(scores >= level)[0])
  if first == 0:
    return 0.0
  part = (level - scores[first - 1]) / (scores[first] - scores[first - 1])
  return float(losses[first - 1] + part * (losses[first] - losses[first - 1]) - losses[0])


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Its part of the report."""
  metric, reference = summary["metric"], summary["reference"]
  largest = max(one["size"] for one in found["groups"])
  last = sorted((one for one in found["groups"] if one["size"] == largest), key=lambda one: one["estimate"])
  matched = sorted(
    (one for one in found["matched"] if one["size"] == largest), key=lambda one: one["difference"]["estimate"]
  )
  at = f" with {fmt.whole(largest)} training examples" if largest else ""
  sentences = [
    f"On held-out pretraining text the loss was {found['before']:.3f} nats a token before; after the last update it "
    f"had risen{at} by: " + "; ".join(f"{one['row']} {nats(one)}" for one in last) + ".",
  ]
  if matched:
    shown = "; ".join(f"{one['row']} {nats(one['difference'])}" for one in matched)
    sentences.append(
      f"Where a method and {reference} first have the same validation {metric}, the method's rise less {reference}'s "
      f"is: {shown}."
    )

  def draw_matched(narrow: bool) -> Figure | None:
    flat = [one["difference"] | {"row": one["row"]} for one in matched]
    return drawing.intervals(flat, summary, f"rise less {reference}'s, nats a token", narrow, nats, 1.0)

  plots = (
    Plot(
      f"{NAME}-paths",
      "What each gain costs",
      f"Rise of the loss on pretraining text against validation {metric}, from the first update to the last (marker); "
      "means over seeds. Lower at the same place means that less was forgotten for the same gain.",
      lambda narrow: _paths_figure(found, summary, narrow, largest),
    ),
    Plot(
      f"{NAME}-last",
      "Forgetting after the last update",
      "Mean over seeds with Student's 95% interval; small strokes are single seeds.",
      lambda narrow: drawing.intervals(last, summary, "rise of the loss, nats a token", narrow, nats, 1.0),
    ),
    Plot(f"{NAME}-matched", f"Forgetting at {reference}'s gain", "Paired on seeds, with 95% intervals.", draw_matched),
  )
  return Section(
    heading="Forgetting",
    sentences=tuple(sentences),
    plots=plots,
    columns=("run", "before", "highest", "after", "rise"),
    rows=tuple(_line(record) for record in records if _retained(record) is not None),
  )


def nats(one: Mapping[str, Any]) -> str:
  """An estimate in nats with its interval."""
  text, *ends = [
    f"{value:+.3f}".replace("-", fmt.MINUS) for value in (one["estimate"], one["low"], one["high"]) if value is not None
  ]
  return f"{text} [{', '.join(ends)}]" if ends else text


def _line(record: Record) -> tuple[str, ...]:
  losses = _retained(record)
  assert losses is not None
  shown = [f"{value:.3f}" for value in (losses[0], losses.max(), losses[-1])]
  return (record["run"], *shown, f"{losses[-1] - losses[0]:+.3f}".replace("-", fmt.MINUS))


def _paths_figure(found: Mapping[str, Any], summary: Summary, narrow: bool, size: int) -> Figure | None:
  scale = drawing.scale_of(summary["metric"])
  lines = {
    one["row"]: [(scale * x, y, y, y) for x, y in zip(one["score"], one["rise"])]
    for one in found["paths"]
    if one["size"] == size
  }
  if not lines:
    return None
  unit = " in %" if scale == 100 else ""
  label = f"validation {summary['metric']}{unit}"
  return drawing.line_figure(lines, summary, label, "rise, nats a token", narrow, ends=True)


DIMENSION = Dimension(NAME, None, summarize, section, by_size=True)
