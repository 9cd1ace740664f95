"""Tasks one after the other: what a method still knows of the first one after the last.

`config.compare.sequence` names data sets; a trial's training is repeated on each of them in turn, with its own
settings.

    one adapter going on    task i starts from what training left after task i - 1. A head of the same classes goes on
                            too; a task of other classes has a head of its own, which is put back to test it.
    adapters kept           (`config.compare.sequence_keep`) each task starts from the base and keeps its own leaves; a
                            task is tested with those, so that nothing is forgotten, and nothing is carried over.

R[i][j] is the score on task j's test examples after training on task i, N the number of tasks. Lopez-Paz & Ranzato 2017
("Gradient episodic memory for continual learning", arXiv 1706.08840), section 2, and Chaudhry et al. 2018 ("Riemannian
walk for incremental learning", arXiv 1801.10112), section 3.1, for forgetting:

    average accuracy     ACC = 1/N Σ_j R[N][j]
    backward transfer    BWT = 1/(N - 1) Σ_{j<N} (R[N][j] - R[j][j])
    forgetting           F   = 1/(N - 1) Σ_{j<N} (max_{i<N} R[i][j] - R[N][j])

D/runs/ROW/seed-N/sequence/I/ holds the training on task I, an ordinary run: a killed one goes on from its checkpoint.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from peftjax import masks
from peftjax.errors import UserError
from peftjax.files import read_json, write_text
from peftjax.kinds import list_of, number, value_of
from peftjax.masks import Tree
from peftjax.parallel.mesh import put_tree
from peftjax.tasks.metric import Metric
from peftjax.train import loop
from peftjax.train.evaluate import evaluate, make_predict
from peftjax.train.finished import restored
from peftjax.train.loop import make_run
from peftjax.train.run import Run

Matrix = Sequence[Sequence[float | None]]  # [after task, on task]


def figures(matrix: Matrix, direction: float = 1.0) -> dict[str, Any]:
  """{"average", "backward", "forgetting"} of a matrix of scores [after task, on task], in which None stands where a
  task's head was not there yet; the last two None with one task.

  Args:
    direction: of the metric; for one of which less is better, backward transfer and forgetting are turned around.
  """
  last = len(matrix) - 1
  final = [float(value) for value in matrix[last] if value is not None]
  backward, forgotten = [], []
  for task in range(last):
    now = matrix[last][task]
    before = [matrix[after][task] for after in range(task, last)]
    known = [float(value) for value in before if value is not None]
    if now is None or not known:
      continue
    backward.append(direction * (float(now) - known[0]))
    forgotten.append(max(direction * value for value in known) - direction * float(now))
  return {
    "average": float(np.mean(final)),
    "backward": float(np.mean(backward)) if backward else None,
    "forgetting": float(np.mean(forgotten)) if forgotten else None,
  }


def train_in_turn(config: ConfigDict, names: Sequence[str], folder: Path, keep: bool = False) -> dict[str, Any]:
  """Trains on data sets one after the other, or goes on where it stopped, and tests each after each.

  Args:
    config: of one trial; `data.name` is replaced.
    names: of data sets.
    folder: "0", "1" ... in it are the runs.
    keep: each task keeps its own leaves.

  Returns:
    "tasks" (names), "metric", "matrix" (R), "examples" (tested, of each task), "keep", and `figures`.

  Raises:
    UserError: as training does; data sets without a test split.
  """
  if len(names) < 2:
    raise UserError(f"compare.sequence={tuple(names)}: expected two data sets or more")
  configs = [_on(config, name) for name in names]
  runs: list[Run] = []
  trained: list[Tree] = []
  matrix: list[list[float | None]] = []
  for index, one in enumerate(configs):
    place = folder / str(index)
    run = _going_on(one, runs, trained if not keep else [])
    summary = loop.train(one, place, make_run=lambda _, run=run: run)  # type: ignore[misc]
    runs.append(run)
    trained.append(restored(place, run))
    matrix.append(_row(place, summary, runs, trained, configs, keep))
  return {
    "tasks": list(names),
    "metric": runs[0].task.main_metric,
    "matrix": matrix,
    "examples": [int(run.loaders.dataset.splits["test"]) for run in runs],
    "keep": keep,
    **figures(matrix, _main(runs[0]).direction),
  }


def _main(run: Run) -> Metric:
  return next(one for one in run.task.specs if one.name == run.task.main_metric)


def _on(config: ConfigDict, name: str) -> ConfigDict:
  config = copy.deepcopy(config)
  config.data.name = name
  config.train.final_splits = ("test",)
  config.train.tensorboard, config.train.writers = False, ()
  return config


def _going_on(config: ConfigDict, runs: Sequence[Run], trained: Sequence[Tree]) -> Run:
  """The run of the next task, with the leaves that go on from the last one."""
  run = make_run(config)
  if "test" not in run.loaders.evals:
    raise UserError(f"compare.sequence: {config.data.name!r} has no test split")
  if not trained:
    return run
  place = run.layout.shardings(run.trainable)
  return dataclasses.replace(run, trainable=put_tree(_carried(run, run.trainable, runs, trained), place))


def _carried(run: Run, own: Tree, runs: Sequence[Run], trained: Sequence[Tree]) -> Tree:
  """The last task's leaves, with a head of the same classes from the last task that had it, or else with its own."""
  last = masks.flatten(trained[-1])
  head = _head(run)
  same = [tree for other, tree in zip(runs, trained) if other.task.label_names == run.task.label_names]
  heads = masks.flatten(same[-1]) if same else masks.flatten(own)
  return masks.unflatten(
    {path: heads[path] if path.startswith(head) else last[path] for path in masks.flatten(own)} if head else last
  )


def _head(run: Run) -> tuple[str, ...]:
  return tuple(f"{prefix}." for prefix in run.model.head)


def _row(
  place: Path, summary: Mapping[str, Any], runs: Sequence[Run], trained: Sequence[Tree], configs: Any, keep: bool
) -> list[float | None]:
  """The scores on all tasks after the last one that was trained; kept beside its run."""
  path = place / "sequence.json"
  if path.is_file():
    row: list[float | None] = list(
      value_of(str(path), "scores", read_json(path).get("scores"), list_of(number().or_null))
    )
    return row
  metric = runs[-1].task.main_metric
  scores: list[float | None] = [None] * len(configs)
  for task, run in enumerate(runs[:-1]):
    scores[task] = _score(run, trained[task] if keep else _carried(run, trained[task], runs, trained), metric)
  scores[len(runs) - 1] = float(summary["metrics"]["test"][metric])
  write_text(path, json.dumps({"scores": scores}) + "\n")
  return scores


def _score(run: Run, trainable: Tree, metric: str) -> float:
  predict = make_predict(run.forward, run.task, run.mesh)
  found, _ = evaluate(predict, trainable, run.frozen, run.loaders.evals["test"], run.task, run.mesh)
  return float(found[metric])
