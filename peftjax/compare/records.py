"""What a study remembers of a trial: one JSON object, one line of ``results.jsonl``.

A record is complete by itself: the tables, the report and the verdicts of a study follow from ``results.jsonl`` alone,
without the runs' folders. It therefore holds the score of every test example, packed. Each finished trial keeps its
record as ``record.json`` in its own folder, and ``results.jsonl`` is those records in the order of the plan; a kill at
any moment loses nothing but the trial under way, which its checkpoints resume.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from peftjax.compare.metrics import spec_of, specs_in
from peftjax.compare.scores import pack_scores
from peftjax.compare.trials import Trial, config_changes, fingerprint, plain_config
from peftjax.data.extra_sets import shifted_names
from peftjax.errors import UserError
from peftjax.files import parse_json, write_text
from peftjax.named_code import check_code, code_of
from peftjax.stored import Stored
from peftjax.tasks.metric import Metric
from peftjax.train.rows import read_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters(Stored):
  """Numbers of parameters; `percent` is of all."""

  trainable: int
  adapter: int = 0
  head: int = 0
  total: int = 0
  percent: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bytes(Stored):
  """Bytes of what a step holds, and of the file that one more task adds to the disk."""

  weights: int
  gradients: int
  optimizer: int
  adapter_file: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCost(Stored):
  """FLOPs and temporary bytes of the step that was compiled for one shape of batch."""

  flops: int
  temp_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record(Stored):
  """A finished trial.

  Attributes:
    run: its id; row, seed: of the trial.
    size: training examples in a study of several sizes; 0 in any other.
    config, config_hash, method: what was trained; the last is the config's section.
    code: the user's own code that it ran: ``module:Name`` -> digest.
    metric: the main one; metrics: split -> name -> value; metrics_spec: name -> what it is.
    scores: split -> the packed main metric of every example, where it has one.
    majority: split -> the score of always giving its most frequent answer, where answers are single classes.
    shifted: the splits of `data.shifted`.
    compiled: shape of batch -> cost.
    step_seconds: the median; train_seconds: of steps alone; None where nothing is trained.
    steps: updates.
    learning_rate: the peak, of what the method adds or frees, else of the head; learning_rates: by group.
    curve: (step, training loss).
    trajectory: split -> {"step", "loss", the main metric: lists}, of splits evaluated more than once in the run.
    versions: of packages.
    dimensions: name -> what was measured.
  """

  run: str
  row: str
  seed: int
  stage: str = "final"
  size: int = 0
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  config_hash: str = ""
  code: Mapping[str, str] = dataclasses.field(default_factory=dict)
  method: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  metric: str
  metrics: Mapping[str, Mapping[str, float]]
  metrics_spec: Mapping[str, Metric] = dataclasses.field(default_factory=dict)
  scores: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  majority: Mapping[str, float] = dataclasses.field(default_factory=dict)
  shifted: tuple[str, ...] = ()
  parameters: Parameters
  bytes: Bytes
  compiled: Mapping[str, StepCost] = dataclasses.field(default_factory=dict)
  step_seconds: float | None = None
  train_seconds: float | None = None
  steps: int
  learning_rate: float | None = None
  learning_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
  curve: tuple[tuple[float, float], ...] = ()
  trajectory: Mapping[str, Mapping[str, list[Any]]] = dataclasses.field(default_factory=dict)
  versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
  dimensions: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def from_json(cls, found: Mapping[str, Any]) -> Self:
    """Also of versions that did not describe their metrics."""
    made = super().from_json(found)
    return dataclasses.replace(made, metrics_spec=specs_in(found, made.metric))

  def score(self, split: str, metric: str = "") -> float | None:
    """A metric on a split, the main one if none is named; None where it was not evaluated."""
    return self.metrics.get(split, {}).get(metric or self.metric)

  def examples(self, split: str) -> int:
    """The examples of a split whose scores are right or wrong; 0 where there are no such scores."""
    return int(self.scores.get(split, {}).get("count", 0))


def thin(curve: Iterable[tuple[float, float]], points: int = 120) -> tuple[tuple[float, float], ...]:
  """At most `points` of a curve's (step, value) pairs, each the average of its neighbours."""
  pairs = np.asarray(list(curve), dtype=np.float64).reshape(-1, 2)
  pairs = pairs[np.isfinite(pairs).all(axis=1)]
  groups = np.array_split(pairs, min(points, len(pairs))) if len(pairs) else []
  means = [group.mean(axis=0) for group in groups]
  return tuple((float(f"{step:.6g}"), float(f"{value:.6g}")) for step, value in means)


def record_of(trial: Trial, summary: Mapping[str, Any], folder: Path) -> Record:
  """The record of a finished trial, from its summary and what stands beside it in its folder."""
  config, main = plain_config(trial.config), summary["main_metric"]
  specs, rates = specs_in(summary, main), summary["learning_rates"]
  seconds = [row["step_seconds"] for row in read_rows(folder / "timing.jsonl")]
  logged = read_rows(folder / "metrics.jsonl")
  losses = [(row["step"], row["loss"]) for row in logged if "split" not in row and row["loss"] is not None]
  own_rates = [rate for group, rate in rates.items() if group != "head"] or list(rates.values())
  return Record(
    run=trial.run,
    row=trial.row,
    seed=trial.seed,
    size=trial.size,
    config=config,
    config_hash=fingerprint(config),
    code=code_of(trial.config),
    method=config["method"],
    metric=main,
    metrics=summary["metrics"],
    metrics_spec=specs,
    scores={split: packed for split in summary["metrics"] if (packed := _scores(folder, split, spec_of(main, specs)))},
    majority={
      split: share for split in summary["metrics"] if (share := _majority(folder, split, spec_of(main, specs)))
    },
    shifted=shifted_names(trial.config.data),
    parameters=Parameters.from_json(summary["parameters"]),
    bytes=Bytes.from_json({**summary["bytes"], "adapter_file": _adapter_file(summary["bytes"], folder)}),
    compiled={one["shape"]: StepCost.from_json(one) for one in summary.get("compiled", ())},
    step_seconds=summary.get("step_seconds"),
    train_seconds=float(np.mean(seconds)) * summary["step"] if seconds else None,
    steps=summary["step"],
    learning_rate=max(own_rates, default=None),
    learning_rates=rates,
    curve=thin(losses),
    trajectory=trajectory(logged, main),
    versions=summary.get("versions", {}),
  )


def trajectory(logged: Iterable[Mapping[str, Any]], metric: str) -> dict[str, dict[str, list[Any]]]:
  """split -> {"step", "loss", the main metric: lists} of the splits that were evaluated more than once in a run."""
  found: dict[str, dict[str, list[Any]]] = {}
  for row in logged:
    if "split" in row and not row.get("final"):
      for name in dict.fromkeys(("step", "loss", metric)):
        found.setdefault(row["split"], {}).setdefault(name, []).append(row.get(name))
  return {split: columns for split, columns in found.items() if len(columns["step"]) > 1}


def _scores(folder: Path, split: str, spec: Metric) -> dict[str, Any] | None:
  path = folder / f"predictions-{split}.npz"
  if not path.is_file():
    return None
  with np.load(path, allow_pickle=False) as rows:
    return pack_scores(dict(rows), spec)


def _majority(folder: Path, split: str, spec: Metric) -> float | None:
  """The share of a split's most frequent label, where the main metric is the share of examples that have theirs."""
  path = folder / f"predictions-{split}.npz"
  if spec.kind != "per-example" or spec.value != "correct" or not path.is_file():
    return None
  with np.load(path, allow_pickle=False) as rows:
    if "label" not in rows or not len(rows["label"]):
      return None
    counts = np.unique(rows["label"], axis=0, return_counts=True)[1]
  return float(counts.max() / counts.sum())


def _adapter_file(held: Mapping[str, int], folder: Path) -> int:
  """Bytes on disk of what one more task adds: the exported file, or else the trained leaves themselves."""
  files = list((folder / "adapter").glob("*.safetensors"))
  return sum(path.stat().st_size for path in files) if files else held["adapter"] + held["head"]


# Files ------------------------------------------------------------------------------------------------------------


def keep_record(record: Record, folder: Path) -> None:
  """Writes ``record.json`` in a trial's folder."""
  write_text(folder / "record.json", json.dumps(record.to_json(), sort_keys=True) + "\n")


def finished(trial: Trial, workdir: Path) -> Record | None:
  """The record of a finished trial, or None.

  Raises:
    UserError: the folder holds a trial of another config, or of other code of the user's own.
  """
  path = trial.folder(workdir) / "record.json"
  if not path.is_file():
    return None
  record = Record.read(path)
  wanted = plain_config(trial.config)
  if record.config_hash != fingerprint(wanted):
    shown = "; ".join(config_changes(record.config, wanted)[:3])
    raise UserError(f"{path.parent} holds a run of another config ({shown}): use another --workdir, or delete it")
  check_code(record.code, code_of(trial.config), path.parent, trial.config.data.code_changed)
  return record


def write_results(records: Iterable[Record], workdir: Path) -> Path:
  """``D/results.jsonl``, one line a record."""
  path = workdir / "results.jsonl"
  write_text(path, "".join(json.dumps(record.to_json(), sort_keys=True) + "\n" for record in records))
  return path


def read_results(path: Path) -> list[Record]:
  """The records of a ``results.jsonl``.

  Raises:
    UserError: no such file, a line that is no record.
  """
  if not path.is_file():
    raise UserError(f"no file {path}; `peftjax compare --workdir={path.parent}` makes it")
  records = []
  for number, line in enumerate(path.read_bytes().splitlines(), 1):
    where = f"{path}, line {number}: no record of a trial"
    records.append(Record.checked(parse_json(line, where), where))
  return records
