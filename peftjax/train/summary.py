"""What a finished run was: scores, counts, bytes, time and what it was made with."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from peftjax import masks, optim
from peftjax.train import evaluators, inspection
from peftjax.train import folder as folder_lib
from peftjax.train.best import BestSoFar
from peftjax.train.compiling import Cost
from peftjax.train.rows import read_rows
from peftjax.train.run import Run
from peftjax.train.state import TrainState

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def summarize(
  run: Run, state: TrainState, folder: Path, costs: Mapping[str, Cost], best: BestSoFar | None = None
) -> dict[str, Any]:
  """The content of ``summary.json``.

  Args:
    run: as it started.
    state: after the last step.
    folder: with metrics.jsonl and timing.jsonl, whole.
    costs: of the compiled steps, by the shape of their batch.
    best: what is known of the best evaluation.

  Returns:
    step; ended, why; best, the best evaluation {step, split, metric, value}, None where none is looked for;
    result_step, whose checkpoint the metrics are of; config, the hash of what decides it (`folder.config_hash`);
    metrics {split: {name: value}}; train {loss, ...}, of the last row; parameters {trainable, adapter, head, total,
    percent, groups}; bytes {weights, gradients, optimizer (a moving average with it), adapter, head}; step_seconds, the
    median; step_flops, of the costliest shape; compiled, the cost of each shape; base {path, hash}; examples
    {split: number}; main_metric, metrics_spec {name: fields of `Metric`}, method, task, seed, learning_rates, devices,
    versions.
  """
  counts = inspection.report(run.model)
  trainable, whole = masks.count(state.trainable), masks.count(run.model.params)
  head = masks.count(_head(run, state.trainable))
  rows = read_rows(folder / "metrics.jsonl")
  seconds = [row["step_seconds"] for row in read_rows(folder / "timing.jsonl")]
  train = [row for row in rows if "split" not in row]
  final = [row for row in rows if row.get("final")]
  last = {
    row["split"]: {name: value for name, value in row.items() if name not in ("split", "step", "final")}
    for row in final or [row for row in rows if "split" in row and row["step"] == int(state.step)]
  }
  largest = max(costs.values(), key=lambda cost: cost.flops, default=None)
  return {
    "step": int(state.step),
    "ended": _why(run, best),
    "best": best.shown() if best else None,
    "result_step": best.step if best and best.step and run.config.train.result == "best" else int(state.step),
    "metrics": last,
    "config": folder_lib.config_hash(run.config.to_dict()),
    "main_metric": run.task.main_metric,
    "metrics_spec": metrics_spec(run),
    "train": {name: value for name, value in train[-1].items() if name != "step"} if train else {},
    "parameters": {name: counts[name] for name in ("trainable", "adapter", "head", "total", "percent", "groups")},
    "bytes": {
      "weights": whole.bytes,
      "gradients": trainable.bytes,
      "optimizer": optim.optimizer_bytes((state.opt_state, state.average)),
      "adapter": trainable.bytes - head.bytes,
      "head": head.bytes,
    },
    "step_seconds": statistics.median(seconds) if seconds else None,
    "step_flops": largest.flops if largest else None,
    "compiled": [dataclasses.asdict(cost) for cost in costs.values()],
    "base": dataclasses.asdict(run.base),
    "method": str(run.config.method.name),
    "task": run.task.name,
    "seed": int(run.config.seed),
    "examples": {
      **{name: one.examples for name, one in run.loaders.evals.items()},
      "train": run.loaders.train.examples,
    },
    "learning_rates": {group: one.learning_rate for group, one in run.program.optimizer.settings.items()},
    "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
    "versions": versions(),
  }


def _why(run: Run, best: BestSoFar | None) -> str:
  if best is None or not best.is_over:
    return "after all updates"
  return f"{run.config.train.patience} evaluations of {best.wanted} were no better"


def metrics_spec(run: Run) -> dict[str, dict[str, Any]]:
  """Metric name -> its `Metric` as JSON gives it back, of all that the run's evaluators give."""
  specs = {one.name: dataclasses.asdict(one) for each in evaluators.make(run) for one in each.specs}
  found: dict[str, dict[str, Any]] = json.loads(json.dumps(specs))
  return found


def _head(run: Run, trainable: masks.Tree) -> masks.Tree:
  prefixes = tuple(f"{prefix}." for prefix in run.model.head)
  flat = masks.flatten(trainable)
  return {name: leaf for name, leaf in flat.items() if name.startswith(prefixes)} if prefixes else {}


def versions() -> dict[str, str]:
  """Package -> version, of what decides the numbers."""
  from peftjax import __version__

  found = {"peftjax": __version__, "python": platform.python_version()}
  return found | {name: importlib.metadata.version(name) for name in _PACKAGES}
