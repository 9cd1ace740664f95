"""Evaluators: how a model is scored on a split, one file a kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from peftjax.errors import UserError
from peftjax.registry import resolve
from peftjax.tasks import Task
from peftjax.train.evaluators.base import Evaluated, Evaluator, Leaves, Moment

if TYPE_CHECKING:
  from peftjax.data.loader import EvalLoader
  from peftjax.train.run import Run

__all__ = ["EVALUATORS", "Evaluated", "Evaluator", "Leaves", "Moment", "check", "classes", "make"]

# config.train.evaluators -> class
EVALUATORS: dict[str, str] = {
  "detect": "peftjax.train.evaluators.detect:Detect",
  "generate": "peftjax.train.evaluators.generate:Generate",
  "predict": "peftjax.train.evaluators.predict:Predict",
  "sample": "peftjax.train.evaluators.sample:Sample",
  "transcribe": "peftjax.train.evaluators.transcribe:Transcribe",
}


def make(run: Run) -> tuple[Evaluator, ...]:
  """The evaluators of a run: its task's, `generate` where `task.generate` asks for it, and `train.evaluators`.

  Raises:
    UserError: no such evaluator, or a setting does not suit it.
  """
  return tuple(one(run) for one in classes(run.config, run.task))


def classes(config: ConfigDict, task: Task) -> tuple[type[Evaluator], ...]:
  """The classes of a config's evaluators, whose settings are held against what they take.

  Raises:
    UserError: no such evaluator, or a setting that it does not have or that is of another type.
  """
  asked = ["generate"] if config.task.generate else []
  found = []
  for name in dict.fromkeys((*task.evaluators, *asked, *config.train.evaluators)):
    one = resolve("train.evaluators", name, EVALUATORS)
    if not (isinstance(one, type) and issubclass(one, Evaluator)):
      raise UserError(f"train.evaluators={name!r}: expected a class derived from peftjax.train.evaluators.Evaluator")
    if not isinstance(getattr(one, "name", None), str) or one.run is Evaluator.run:
      raise UserError(f"train.evaluators={name!r}: expected a class with a name and a function `run`")
    one.options_of(config)
    found.append(one)
  return tuple(found)


def check(evaluators: Iterable[Evaluator], loaders: Mapping[str, EvalLoader], splits: Iterable[str]) -> None:
  """Raises `UserError` for what would fail in an evaluation of the splits."""
  for split in splits:
    for one in evaluators:
      if one.takes(loaders[split]):
        one.check(loaders[split])
