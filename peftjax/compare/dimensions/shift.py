"""Out of domain: the score on test sets from elsewhere (`data.shifted`), and what is lost against the own test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from peftjax.compare import analysis, statistics
from peftjax.compare import formatting as fmt
from peftjax.compare.dimensions import drawing
from peftjax.compare.dimensions.base import Dimension, Json, Plot, Record, Section, Summary, groups, size_of

if TYPE_CHECKING:
  from matplotlib.figure import Figure

NAME = "shift"


def sets_of(records: Sequence[Record]) -> list[str]:
  """The splits that `data.shifted` added to the trials."""
  return list(dict.fromkeys(name for record in records for name in record.get("shifted") or ()))


def summarize(records: Sequence[Record], summary: Summary) -> Json | None:
  """{"groups"}: each row's score on each set at each size, its drop from the own test set, and its paired difference to
  the reference, corrected by Holm over the rows of a set and size. None without shifted sets."""
  found: list[Json] = []
  by_kind = groups(records, summary)
  for name in sets_of(records):
    for size in sorted({size for _, size in by_kind}):
      own = {row: kept for (row, one), kept in by_kind.items() if one == size and _has(kept, name, summary)}
      scores = {row: analysis.scores_of(kept, summary["metric"], name) for row, kept in own.items()}
      home = {row: analysis.scores_of(kept, summary["metric"], summary["split"]) for row, kept in own.items()}
      compared = analysis.comparisons(scores, summary["reference"] or "", summary["margin"])
      for row, one in scores.items():
        found.append(
          {
            "set": name,
            "row": row,
            "size": size,
            **{key: value for key, value in analysis.estimate_of(one).items() if key != "bootstrap"},
            "drop": drop(home[row], one),
            "difference": compared.get(row),
            "seeds": list(one.seeds),
            "runs": [record["run"] for record in own[row]],
          }
        )
  return {"groups": found} if found else None


def _has(records: Sequence[Record], name: str, summary: Summary) -> bool:
  return all(summary["metric"] in (record["metrics"].get(name) or {}) for record in records)


def drop(home: analysis.Scores, away: analysis.Scores) -> Json:
  """{"estimate", "low", "high"} of the score at home less that away: runs are paired, the two sets' examples are not.

  The half-width joins Student's of the seeds' differences with the normal one of both sets' examples, as squares.
  """
  by_seed = home.values.mean(axis=1) - away.values.mean(axis=1)
  estimate, count = float(by_seed.mean()), len(by_seed)
  if count < 2:
    return {"estimate": estimate, "low": None, "high": None}
  t = special.stdtrit(count - 1, 0.5 + statistics.LEVEL / 2)
  z = special.ndtri(0.5 + statistics.LEVEL / 2)
  examples = sum(float(statistics.spread(one.values).example_variance) for one in (home, away) if one.per_example)
  half = float(np.sqrt(t**2 * by_seed.var(ddof=1) / count + z**2 * examples))
  return {"estimate": estimate, "low": estimate - half, "high": estimate + half}


def section(found: Mapping[str, Any], records: Sequence[Record], summary: Summary) -> Section:
  """Its part of the report."""
  metric, reference = summary["metric"], summary["reference"]
  names = list(dict.fromkeys(one["set"] for one in found["groups"]))
  largest = max(one["size"] for one in found["groups"])
  at = f" with {fmt.whole(largest)} training examples" if largest else ""
  sentences, plots = [], []
  for name in names:
    own = [one for one in found["groups"] if one["set"] == name and one["size"] == largest]
    ranked = sorted(own, key=lambda one: -one["estimate"])
    shown = [f"{one['row']} {fmt.estimate(one, metric)}" for one in ranked]
    words = [f"{one['row']} {one['difference']['verdict']}" for one in ranked if one["difference"]]
    sentences.append(f"On {name}{at}: {', '.join(shown)}; against {reference}: {', '.join(words) or 'nothing'}.")

    def draw(narrow: bool, own: list[Any] = own) -> Figure | None:
      compared = [{**one["difference"], "row": one["row"]} for one in own if one["difference"]]
      label = f"{metric} less {reference}'s"
      return drawing.intervals(compared, summary, label, narrow, _judged(metric))

    caption = f"Paired on seeds and examples, with 95% intervals; small strokes are single seeds{at and ';' + at}."
    plots.append(Plot(f"{NAME}-{name}", f"Difference to {reference} on {name}", caption, draw))
  drops = [one for one in found["groups"] if one["size"] == largest]

  def draw_drops(narrow: bool) -> Figure | None:
    shown = [one | {"row": one["row"], "label": f"{one['row']}, {one['set']}"} for one in drops]
    flat = [{**one["drop"], "row": one["row"], "label": one["label"], "by_seed": ()} for one in shown]
    return drawing.intervals(flat, summary, f"{metric} on the own test set less that on the other", narrow)

  plots.append(
    Plot(f"{NAME}-drops", "What is lost away from home", f"With 95% intervals{at and ';' + at}.", draw_drops)
  )
  return Section(
    heading="Out of domain",
    sentences=(*sentences, "Each set was opened once, after the last step of a run, and chose nothing."),
    plots=tuple(plots),
    columns=("run", f"{summary['split']} {metric}", *(f"{name} {metric}" for name in names)),
    rows=tuple(
      (record["run"], *(_cell(record, split, metric) for split in (summary["split"], *names)))
      for record in sorted(records, key=size_of)
    ),
  )


def _judged(metric: str) -> Any:
  return lambda one: f"{fmt.difference(one, metric)} · {one['verdict']}"


def _cell(record: Record, split: str, metric: str) -> str:
  return fmt.score((record["metrics"].get(split) or {}).get(metric), metric)


DIMENSION = Dimension(NAME, None, summarize, section, by_size=True)
