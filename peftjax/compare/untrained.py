"""The row `frozen`: the base with its head as drawn, evaluated and not trained; its files are those of a run."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax import masks
from peftjax.files import write_text
from peftjax.train.evaluate import make_predict
from peftjax.train.run import resolve
from peftjax.train.splits import score_split
from peftjax.train.summary import metrics_spec, versions

FROZEN = "frozen"  # a method's name in the study alone: training refuses a method that leaves nothing to train


def is_frozen(config: ConfigDict) -> bool:
  """Whether a trial trains nothing."""
  return bool(config.method.name == FROZEN)


def buildable(config: ConfigDict) -> ConfigDict:
  """A copy with a method that adds no leaves, so that the model of a frozen row can be built."""
  made = copy.deepcopy(config)
  with made.unlocked():
    made.method = ConfigDict({"name": "full"})
  return made


def score(config: ConfigDict, folder: Path) -> dict[str, Any]:
  """Evaluates the final splits once; the summary has zero updates, trainable parameters, gradients and adapter bytes.

  Raises:
    UserError: as `train.run.resolve`.
  """
  if (folder / "summary.json").is_file():
    return dict(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
  folder.mkdir(parents=True, exist_ok=True)
  run = resolve(buildable(config))
  predict = make_predict(run.forward, run.task, run.mesh)
  metrics = {
    split: score_split(run, predict, split, run.trainable, run.frozen, folder, rows=True) for split in run.final_splits
  }
  whole = masks.count(run.model.params)
  lines = [json.dumps({"step": 0, "split": split, **scores}) + "\n" for split, scores in metrics.items()]
  write_text(folder / "metrics.jsonl", "".join(lines))
  summary = {
    "step": 0,
    "metrics": metrics,
    "main_metric": run.task.main_metric,
    "metrics_spec": metrics_spec(run.task),
    "train": {},
    "parameters": {"trainable": 0, "adapter": 0, "head": 0, "total": whole.parameters, "percent": 0.0, "groups": {}},
    "bytes": {"weights": whole.bytes, "gradients": 0, "optimizer": 0, "adapter": 0, "head": 0},
    "step_seconds": None,
    "step_flops": None,
    "compiled": [],
    "method": FROZEN,
    "task": run.task.name,
    "seed": int(config.seed),
    "learning_rates": {},
    "versions": versions(),
  }
  write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
  return summary
