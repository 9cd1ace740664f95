"""What a study remembers of a trial: one JSON object, one line of ``results.jsonl``.

A record is complete by itself: the tables, the report and the verdicts of a study follow from ``results.jsonl`` alone,
without the runs' folders. It therefore holds the score of every test example, packed. Each finished trial keeps its
record as ``record.json`` in its own folder, and ``results.jsonl`` is those records in the order of the plan; a kill at
any moment loses nothing but the trial under way, which its checkpoints resume.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.compare.statistics import linearize_ratio
from peftjax.compare.trials import Trial, changes, fingerprint, plain
from peftjax.errors import UserError
from peftjax.files import read_json, write_text

Record = dict[str, Any]

RATIOS = (  # (metric, numerator, denominator): a ratio of sums of counts that a task gives for each example
  ("f1", ("correct_entities", "correct_entities"), ("found_entities", "true_entities")),
  ("accuracy", ("correct_tokens",), ("tokens",)),
  ("log_likelihood", ("losses",), ("tokens",)),  # of language models: less the sum of losses
)


# Scores of examples -----------------------------------------------------------------------------------------------


def pack_scores(rows: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
  """A task's per-example rows as JSON: bits where a prediction is right or wrong, two lists of counts for a ratio.

  None where no metric of the task is an average or a ratio of sums over examples (a correlation, for one).
  """
  if "correct" in rows:
    bits = np.packbits(np.asarray(rows["correct"], dtype=bool))
    return {"kind": "bits", "count": len(rows["correct"]), "bits": base64.b64encode(bits.tobytes()).decode()}
  for metric, above, below in RATIOS:
    if above[0] in rows:
      numerator, denominator = (np.sum([rows[part] for part in parts], axis=0) for parts in (above, below))
      summed = numerator.astype(int).tolist()
      if metric == "log_likelihood":
        summed = [float(f"{-loss:.7g}") for loss in numerator]
      return {
        "kind": "ratio",
        "metric": metric,
        "numerator": summed,
        "denominator": denominator.astype(int).tolist(),
      }
  return None


def averages_to(packed: Mapping[str, Any]) -> str:
  """The metric that packed scores average to."""
  return "accuracy" if packed["kind"] == "bits" else packed["metric"]


def unpack_scores(packed: Mapping[str, Any]) -> np.ndarray:
  """One float64 a test example, whose average is the metric; the inverse of `pack_scores`."""
  if packed["kind"] == "bits":
    data = np.frombuffer(base64.b64decode(packed["bits"]), dtype=np.uint8)
    return np.unpackbits(data)[: packed["count"]].astype(np.float64)
  return linearize_ratio(np.asarray(packed["numerator"]), np.asarray(packed["denominator"]))


def thin(curve: Iterable[tuple[float, float]], points: int = 120) -> list[list[float]]:
  """At most `points` of a curve's (step, value) pairs, each the average of its neighbours."""
  pairs = np.asarray(list(curve), dtype=np.float64).reshape(-1, 2)
  pairs = pairs[np.isfinite(pairs).all(axis=1)]
  groups = np.array_split(pairs, min(points, len(pairs))) if len(pairs) else []
  return [[float(f"{value:.6g}") for value in group.mean(axis=0)] for group in groups]


# Records ----------------------------------------------------------------------------------------------------------


def make(trial: Trial, summary: Mapping[str, Any], folder: Path) -> Record:
  """The record of a finished trial, from its summary and what stands beside it in its folder.

  Returns:
    "run", "row", "seed", "stage", "size" in a study of several; "config" and "config_hash", "method"; "metric" (the
    main one), "metrics" and "scores" by split; "shifted", the splits of `data.shifted`; "parameters"; "bytes" {weights,
    gradients, optimizer, adapter_file}; "compiled" {shape of batch: {flops, temp_bytes}}; "step_seconds",
    "train_seconds" (of steps alone), "steps"; "learning_rate" (of what the method adds or frees, else of the head),
    "learning_rates"; "curve" of the training loss; "trajectory"; "versions".
  """
  from peftjax.data.extra_sets import shifted_names  # imported late: reading records needs no data

  config, held = plain(trial.config), summary["bytes"]
  steps, rates = summary["step"], summary["learning_rates"]
  times = [row["step_seconds"] for row in _rows(folder / "timing.jsonl")]
  logged = _rows(folder / "metrics.jsonl")
  curve = [(row["step"], row["loss"]) for row in logged if "split" not in row]
  return {
    "run": trial.run,
    "row": trial.row,
    "seed": trial.seed,
    "stage": "final",
    **({"size": trial.size} if trial.size else {}),
    "config": config,
    "config_hash": fingerprint(config),
    "method": config["method"],
    "metric": summary["main_metric"],
    "metrics": summary["metrics"],
    "scores": {split: packed for split in summary["metrics"] if (packed := _scores(folder, split))},
    "shifted": list(shifted_names(trial.config.data)),
    "parameters": {name: summary["parameters"][name] for name in ("trainable", "adapter", "head", "total", "percent")},
    "bytes": {name: held[name] for name in ("weights", "gradients", "optimizer")}
    | {"adapter_file": _adapter_file(summary, folder)},
    "compiled": {
      one["shape"]: {"flops": one["flops"], "temp_bytes": one["temp_bytes"]} for one in summary.get("compiled", [])
    },
    "step_seconds": summary.get("step_seconds"),
    "train_seconds": float(np.mean(times)) * steps if times else None,
    "steps": steps,
    "learning_rate": max(
      [rate for group, rate in rates.items() if group != "head"] or list(rates.values()), default=None
    ),
    "learning_rates": rates,
    "curve": thin((step, loss) for step, loss in curve if loss is not None),
    "trajectory": trajectory(logged, summary["main_metric"]),
    "versions": summary.get("versions", {}),
  }


def trajectory(logged: Iterable[Mapping[str, Any]], metric: str) -> dict[str, dict[str, list[Any]]]:
  """split -> {"step", "loss", the main metric: lists} of the splits that were evaluated more than once in a run."""
  found: dict[str, dict[str, list[Any]]] = {}
  for row in logged:
    if "split" in row:
      for name in dict.fromkeys(("step", "loss", metric)):
        found.setdefault(row["split"], {}).setdefault(name, []).append(row.get(name))
  return {split: columns for split, columns in found.items() if len(columns["step"]) > 1}


def _rows(path: Path) -> list[dict[str, Any]]:
  if not path.is_file():
    return []
  return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _scores(folder: Path, split: str) -> dict[str, Any] | None:
  path = folder / f"predictions-{split}.npz"
  if not path.is_file():
    return None
  with np.load(path, allow_pickle=False) as rows:
    return pack_scores(dict(rows))


def _adapter_file(summary: Mapping[str, Any], folder: Path) -> int:
  """Bytes on disk of what one more task adds: the exported file, or else the trained leaves themselves."""
  files = list((folder / "adapter").glob("*.safetensors"))
  held = summary["bytes"]
  return sum(path.stat().st_size for path in files) if files else held["adapter"] + held["head"]


# Files ------------------------------------------------------------------------------------------------------------


def keep(record: Record, folder: Path) -> None:
  """Writes ``record.json`` in a trial's folder."""
  write_text(folder / "record.json", json.dumps(record, sort_keys=True) + "\n")


def finished(trial: Trial, workdir: Path) -> Record | None:
  """The record of a finished trial, or None.

  Raises:
    UserError: the folder holds a trial of another config.
  """
  path = trial.folder(workdir) / "record.json"
  if not path.is_file():
    return None
  record = read_json(path)
  wanted = plain(trial.config)
  if record["config_hash"] != fingerprint(wanted):
    shown = "; ".join(changes(record["config"], wanted)[:3])
    raise UserError(f"{path.parent} holds a run of another config ({shown}): use another --workdir, or delete it")
  return record


def write_results(records: Iterable[Record], workdir: Path) -> Path:
  """``D/results.jsonl``, one line a record."""
  path = workdir / "results.jsonl"
  write_text(path, "".join(json.dumps(record, sort_keys=True) + "\n" for record in records))
  return path


def read_results(path: Path) -> list[Record]:
  """The records of a ``results.jsonl``.

  Raises:
    UserError: no such file, a line that is no record.
  """
  if not path.is_file():
    raise UserError(f"no file {path}; `peftjax compare --workdir={path.parent}` makes it")
  records = []
  for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
    try:
      record = json.loads(line)
      record["run"], record["row"], record["seed"], record["metrics"]
    except (ValueError, KeyError, TypeError):
      raise UserError(f"{path}, line {number}: no record of a trial") from None
    records.append(record)
  return records
