"""A base that is not trained: evaluated once, with the files and the summary of a run of no update."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax import masks
from peftjax.files import read_json, write_text
from peftjax.stored import plain
from peftjax.train.evaluators import Leaves
from peftjax.train.evaluators.predict import Predict
from peftjax.train.loop import make_run
from peftjax.train.run import Run
from peftjax.train.splits import score_split
from peftjax.train.summary import metrics_spec, versions


def score(config: ConfigDict, folder: Path, name: str) -> dict[str, Any]:
  """Evaluates the base, its head as drawn, on the final splits; nothing is done again in a folder that has a summary.

  Args:
    config: of a method that adds no leaves.
    folder: gets metrics.jsonl, predictions and summary.json, without trainable parameters, gradients and adapter.
    name: of the method, for the summary.

  Raises:
    UserError: as `loop.make_run`.
  """
  if (folder / "summary.json").is_file():
    return read_json(folder / "summary.json")
  folder.mkdir(parents=True, exist_ok=True)
  run = make_run(config)
  leaves = Leaves(run.trainable, run.frozen)
  scores = {split: score_split(run, (Predict(run),), split, leaves, folder, "eval") for split in run.final_splits}
  metrics = plain(scores)
  lines = [json.dumps({"step": 0, "split": split, **scores}) + "\n" for split, scores in metrics.items()]
  write_text(folder / "metrics.jsonl", "".join(lines))
  summary = _summary(run, name) | {"metrics": metrics}
  write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
  return summary


def _summary(run: Run, name: str) -> dict[str, Any]:
  whole = masks.count(run.model.params)
  return {
    "step": 0,
    "main_metric": run.task.main_metric,
    "metrics_spec": metrics_spec(run),
    "train": {},
    "parameters": {"trainable": 0, "adapter": 0, "head": 0, "total": whole.parameters, "percent": 0.0, "groups": {}},
    "bytes": {"weights": whole.bytes, "gradients": 0, "optimizer": 0, "adapter": 0, "head": 0},
    "step_seconds": None,
    "step_flops": None,
    "compiled": [],
    "method": name,
    "task": run.task.name,
    "seed": int(run.config.seed),
    "learning_rates": {},
    "versions": versions(),
  }
