"""What is known of methods' accuracy and forgetting: published figures, and the records of one's own studies.

metamathqa.csv: Hugging Face PEFT's method comparison (github.com/huggingface/peft, Apache-2.0): Llama-3.2-3B trained on
MetaMathQA, accuracy on GSM8K, and the rise of the loss on text of its pretraining. One seed a run and no search of
learning rates, so a method's settings are taken as a range, widened by the sampling error of 1,319 problems.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from peftjax.compare import Question, Summary, conclusions, read_results
from peftjax.compare import formatting as fmt

PROBLEMS = 1319  # of GSM8K's test split
PUBLISHED = "PEFT's method comparison, Llama-3.2-3B on MetaMathQA, one seed a run"


@dataclasses.dataclass(frozen=True)
class Range:
  """A method's figure less full fine-tuning's, from one source.

  Attributes:
    low, high: ends of the range, or of the 95% interval of a study.
    source: where it is from.
    runs: how many runs it rests on.
  """

  low: float
  high: float
  source: str
  runs: int

  def as_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


@functools.cache
def metamathqa() -> tuple[dict[str, str], ...]:
  """The rows of ``metamathqa.csv``."""
  text = resources.files("peftjax.guide").joinpath("metamathqa.csv").read_text(encoding="utf-8")
  return tuple(csv.DictReader(text.splitlines()))


def published_accuracy(method: str) -> Range | None:
  """Share of problems solved less full fine-tuning's: from the median setting to the best one, each with its 95%."""
  values = [float(row["accuracy"]) for row in metamathqa() if row["method"] == method]
  full = next(float(row["accuracy"]) for row in metamathqa() if row["method"] == "full")
  if not values or method == "full":
    return None
  error = 1.96 * (2 * full * (1 - full) / PROBLEMS) ** 0.5
  return Range(statistics.median(values) - full - error, max(values) - full + error, PUBLISHED, len(values))


def published_forgetting(method: str) -> Range | None:
  """Rise of the loss on pretraining text, nats a token: over all settings."""
  values = [float(row["forgetting"]) for row in metamathqa() if row["method"] == method]
  return Range(min(values), max(values), PUBLISHED, len(values)) if values else None


@dataclasses.dataclass(frozen=True)
class OwnStudy:
  """What one's own study found.

  Attributes:
    accuracy: row -> the difference to the reference, an interval.
    forgetting: row -> the rise of the loss on pretraining text, an interval, where the study measured it.
    notes: row -> what its other dimensions found, for people.
    methods: row -> the method's name.
    settings: row -> the config's method section.
    spread: standard deviation over seeds of a difference between two methods; None with one seed.
    reference: the row that others were compared with.
  """

  accuracy: dict[str, Range]
  methods: dict[str, str]
  settings: dict[str, dict[str, Any]]
  spread: float | None
  reference: str
  forgetting: dict[str, Range] = dataclasses.field(default_factory=dict)
  notes: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def own_study(path: Path, reference: str = "full") -> OwnStudy:
  """A study's ``results.jsonl`` as evidence; of a study of several sizes what it found at the largest.

  Raises:
    UserError: no such file, or no record in it.
  """
  records = read_results(path)
  summary = conclusions(records, Question(reference=reference, baseline=""))
  accuracy, spreads = {}, []
  for row in summary.rows:
    one = row.difference
    if one and one.ends:
      accuracy[row.row] = _gains(one.ends, summary, f"your study {path}", len(row.runs))
      if len(one.by_seed) > 1:
        spreads.append(statistics.stdev(one.by_seed))
  return OwnStudy(
    accuracy,
    {record.row: str(record.method["name"]) for record in records},
    {record.row: dict(record.method) for record in records},
    _root_mean_square(spreads),
    reference,
    forgetting_of(summary, f"your study {path}"),
    _notes(summary),
  )


def _gains(ends: tuple[float, float], summary: Summary, source: str, runs: int) -> Range:
  """A range of differences, turned around for a metric of which less is better."""
  low, high = sorted(summary.spec.direction * end for end in ends)
  return Range(low, high, source, runs)


def forgetting_of(summary: Summary, source: str) -> dict[str, Range]:
  """Each row's interval of the dimension "forgetting", at the largest size; a single seed is no range."""
  groups = (summary.dimensions.get("forgetting") or {}).get("groups", ())
  return {
    one.row: Range(one.low, one.high, source, len(one.runs))
    for one in sorted(groups, key=lambda one: one.size)
    if one.ends
  }


def _notes(summary: Summary) -> dict[str, list[str]]:
  """What a study's dimensions found of each row, in words; each with its run."""
  found: dict[str, list[str]] = {}

  def note(row: str, text: str, runs: Sequence[str]) -> None:
    found.setdefault(row, []).append(f"{text} (your study's {fmt.runs(runs)})")

  def rows(name: str) -> Sequence[Mapping[str, Any]]:
    return (summary.dimensions.get(name) or {}).get("rows", ())

  for one in rows("inference"):
    ratio = one["ratio"]["unmerged"]
    after = "; it cannot be merged" if one["ratio"]["merged"] is None else ""
    note(one["row"], f"a forward pass took {ratio['estimate']:.2f} of the base's beside it{after}", [one["run"]])
  for one in rows("switching"):
    note(one["row"], f"switching took {fmt.seconds(one['switch_seconds'])}", [one["run"]])
  for one in rows("energy") if (summary.dimensions.get("energy") or {}).get("unit") == "joules" else ():
    note(one["row"], f"a step took {one['value']:.3g} J", [one["run"]])
  sequence = summary.dimensions.get("sequence") or {}
  for one in sequence.get("backward", ()):
    metric = summary.metrics_spec[sequence["metric"]]
    note(one.row, f"later tasks changed earlier ones by {fmt.signed(one.estimate, metric)}{fmt.unit(metric)}", one.runs)
  return found


def _root_mean_square(values: Sequence[float]) -> float | None:
  return (sum(value**2 for value in values) / len(values)) ** 0.5 if values else None
