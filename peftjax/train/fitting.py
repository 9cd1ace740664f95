"""Whether a model and a task fit together, of which one is the user's own: found on shapes, before all computing.

A task reads a model's outputs by their names and shapes. Between a family and a task of this package they are known;
here the loss and the predictions are traced once, and what does not fit is one line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from peftjax.data import Input, Loaders
from peftjax.data.own_identity import is_own
from peftjax.data.sources.types import HiddenLabel
from peftjax.errors import UserError
from peftjax.model import Model
from peftjax.own_code import FAILURES, said, shown
from peftjax.tasks import Task


def check(model: Model, task: Task, inputs: Input, config: ConfigDict) -> None:
  """Holds what the model gives against what the task reads, for a batch of the training input.

  Args:
    model: its leaves may be shapes.
    inputs: what makes training batches.

  Raises:
    UserError: an output that the task reads is missing or of another shape, the loss or the predictions fail on the
      outputs, or are not what training asks for.
  """
  batch = inputs.batch_spec(config.train.batch_size)
  key = jax.eval_shape(lambda: jax.random.key(0))
  asked: list[Any] = []  # of each pass, and
  given: list[Any] = []  # what came of it

  def traced(function: Callable[..., Any], *more: Any) -> tuple[Any, str]:
    def run(params: Any, batch: Any, *more: Any) -> Any:
      def forward(inputs: Mapping[str, Any], dropout: Any = None) -> Any:
        del dropout
        asked.append(dict(inputs))
        outputs = model.forward(params, inputs, None)
        given.append(outputs)
        return outputs

      return function(forward, batch, *more)

    asked.clear()
    given.clear()
    name = f"{task.name}.{function.__name__}"
    try:
      found, failed = jax.eval_shape(run, model.params, batch, *more), None
    except FAILURES as error:
      found, failed = None, error
    if given:
      _check_outputs(given[0], task, batch, config)
    if failed is not None:
      if not asked:
        what = f"{name} fails before the model is called"
      elif len(given) < len(asked):
        what = f"{_named(config)} fails on {shown(asked[-1])}"
      else:
        what = f"{_named(config)} gives {shown(given[-1])}; {name} fails on it"
      raise UserError(f"{what}: {said(failed)}") from failed
    return found, name

  found, name = traced(task.loss, key)
  _check_loss(found, name)
  found, name = traced(task.predict)
  _check_predictions(found, name, config.train.batch_size)


def check_first(loaders: Loaders) -> None:
  """Reads the first batch of training and of an evaluation where the source or the input is the user's own, so that
  what fails on every example fails before a run begins.

  Raises:
    UserError: as the source and the input do.
  """
  if is_own(loaders.dataset, loaders.inputs):
    loaders.inputs.training().batch_spec(4)
    loaders.train.first()
    with contextlib.suppress(HiddenLabel):  # such a split is not scored
      next(iter(loaders.evals.values())).first()


def _check_outputs(given: Any, task: Task, batch: Mapping[str, Any], config: ConfigDict) -> None:
  expected = task.outputs(batch)
  for name, shape in expected.items():
    one = given if not name else given.get(name) if isinstance(given, Mapping) else None
    if getattr(one, "shape", None) != shape:
      asked = ", ".join(f"{each!r}: {list(sizes)}" for each, sizes in expected.items())
      asked = f"an array {list(shape)}" if not name else f"{{{asked}}}"
      raise UserError(f"{_named(config)} gives {shown(given)}; task {task.name} reads {asked}")


def _check_loss(found: Any, name: str) -> None:
  scalars = isinstance(found, tuple) and len(found) == 3 and isinstance(found[2], Mapping)
  if not scalars or any(getattr(one, "shape", None) != () for one in (*found[:2], *found[2].values())):
    raise UserError(
      f"{name} gives {shown(found)}; expected (the sum of losses, the sum of weights, a dict of further sums), scalars"
    )


def _check_predictions(found: Any, name: str, rows: int) -> None:
  whole = isinstance(found, Mapping) and getattr(found.get("loss"), "shape", None) == (rows,)
  if not whole or any(getattr(one, "shape", ())[:1] != (rows,) for one in found.values()):
    raise UserError(f"{name} gives {shown(found)}; expected a dict of arrays [{rows}, ...] with 'loss' [{rows}] in it")


def _named(config: ConfigDict) -> str:
  return f"model.path={str(config.model.path)!r}"
