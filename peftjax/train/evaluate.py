"""Evaluation of a split: exact means over examples, and every example's own result."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from peftjax import own_digest
from peftjax.data.loader import EvalLoader
from peftjax.errors import UserError
from peftjax.files import write_bytes
from peftjax.masks import Tree, combine
from peftjax.parallel.mesh import put_batch, replicated
from peftjax.tasks import Task
from peftjax.train import scored
from peftjax.train.step import ModelForward

Predict = Callable[[Tree, Tree, Mapping[str, jax.Array]], dict[str, jax.Array]]
_FILL = {"i": -100, "u": 0, "f": np.nan, "b": 0}  # what ragged rows are filled up with, by kind of dtype


def make_predict(forward: ModelForward, task: Task, mesh: Mesh) -> Predict:
  """predict(trainable, frozen, batch) -> the task's predictions and the examples' ids, compiled, without dropout."""

  def predict(trainable: Tree, frozen: Tree, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    params = combine(trainable, frozen)
    bound = lambda inputs, dropout=None: forward(params, inputs, None)  # noqa: E731
    return task.predict(bound, batch) | {"index": batch["index"]}

  return jax.jit(predict, out_shardings=replicated(mesh))


def evaluate(
  predict: Predict, trainable: Tree, frozen: Tree, batches: EvalLoader, task: Task, mesh: Mesh
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
  """(metrics, one row an example) over all batches.

  Args:
    predict: see `make_predict`.
    batches: of a split; rows whose `index` is negative only fill up and are left out.
    task: scores the predictions.

  Returns:
    The task's metrics, and arrays [N, ...] in the order of `index`, which is among them: "loss" and what the task
    computes its metrics from.

  Raises:
    UserError: the task gives another thing than its `specs` say.
  """
  predictions = predicted(predict, trainable, frozen, batches, task, mesh)
  metrics, own = task.metrics(predictions), task.per_example(predictions)
  for what, given in (("metrics", metrics), ("per_example", own)):
    if not isinstance(given, Mapping):
      raise UserError(f"task {task.name}: {what} gives {given!r:.80}; expected a dict")
  rows = {"index": predictions["index"], "loss": predictions["loss"], **own}
  found = scored.numbers(f"task {task.name}: metrics", metrics, task.specs)
  scored.check_rows(f"task {task.name}: per_example", rows, task.specs)
  if not own_digest.is_packaged(type(task)):  # the package's have tests of their own
    scored.check_agreement(f"task {task.name}", found, rows, task.specs)
  return found, rows


def predicted(
  predict: Predict, trainable: Tree, frozen: Tree, batches: EvalLoader, task: Task, mesh: Mesh
) -> dict[str, np.ndarray]:
  """What `Task.finish` gives over all batches; for the arguments see `evaluate`."""
  parts, ahead = [], None
  for batch in batches:
    dispatched = predict(trainable, frozen, put_batch(mesh, batch))
    if ahead is not None:
      parts.append(jax.device_get(ahead))
    ahead = dispatched
  if ahead is not None:
    parts.append(jax.device_get(ahead))
  return task.finish(_joined(parts), batches.source)


def _joined(parts: list[dict[str, Any]]) -> dict[str, np.ndarray]:
  """The examples of all batches in the order of their ids."""
  real = [part["index"] >= 0 for part in parts]
  joined = {name: _stacked([part[name][keep] for part, keep in zip(parts, real)]) for name in parts[0]}
  order = np.argsort(joined["index"], kind="stable")
  return {name: array[order] for name, array in joined.items()}


def _stacked(arrays: list[np.ndarray]) -> np.ndarray:
  """Concatenates along the first axis; where a second axis differs, shorter rows are filled up."""
  if arrays[0].ndim < 2 or len({array.shape[1] for array in arrays}) == 1:
    return np.concatenate(arrays)
  width = max(array.shape[1] for array in arrays)
  fill = _FILL[arrays[0].dtype.kind]
  padding = [[(0, 0), (0, width - array.shape[1])] + [(0, 0)] * (array.ndim - 2) for array in arrays]
  return np.concatenate([np.pad(array, pad, constant_values=fill) for array, pad in zip(arrays, padding)])


def save_rows(folder: Path, split: str, rows: Mapping[str, np.ndarray]) -> Path:
  """Writes ``predictions-SPLIT.npz``; `np.load` reads it without pickle."""
  path = folder / f"predictions-{split}.npz"
  content = io.BytesIO()
  np.savez_compressed(content, allow_pickle=False, **rows)
  write_bytes(path, content.getvalue())
  return path
