"""Evaluators: how a model is scored on a split, one file a kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, get_args

from ml_collections import ConfigDict

from peftjax.errors import UserError, nearest
from peftjax.registry import resolve
from peftjax.tasks import Task
from peftjax.train import scored
from peftjax.train.evaluators.base import Evaluated, Evaluator, Leaves, Moment

if TYPE_CHECKING:
  from peftjax.data.loader import EvalLoader
  from peftjax.train.run import Run

__all__ = ["EVALUATORS", "Evaluated", "Evaluator", "Leaves", "Moment", "check", "classes", "make"]

MOMENTS: tuple[str, ...] = get_args(Moment)

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
    UserError: no such evaluator, a setting does not suit it, or two give a metric of one name.
  """
  made = tuple(one(run) for one in classes(run.config, run.task))
  scored.check_names({_called(one, run): one.specs for one in made})
  return made


def _called(one: Evaluator, run: Run) -> str:
  return f"task {run.task.name}" if one.specs is run.task.specs else f"the evaluator {one.name!r}"


def classes(config: ConfigDict, task: Task) -> tuple[type[Evaluator], ...]:
  """The classes of a config's evaluators, whose settings are held against what they take.

  Raises:
    UserError: no such evaluator, one without what the protocol asks for, a section of `config.evaluators` that is
      none's, or a setting that it does not have or that is of another type.
  """
  asked = ["generate"] if config.task.generate else []
  found, named = [], dict[str, str]()
  for name in dict.fromkeys((*task.evaluators, *asked, *config.train.evaluators)):
    one = resolve("train.evaluators", name, EVALUATORS)
    if not (isinstance(one, type) and issubclass(one, Evaluator)):
      raise UserError(f"train.evaluators={name!r}: expected a class derived from peftjax.train.evaluators.Evaluator")
    if not isinstance(getattr(one, "name", None), str) or one.run is Evaluator.run:
      raise UserError(f"train.evaluators={name!r}: expected a class with a name and a function `run`")
    _check_moments(name, one.moments)
    if one.name in named:
      raise UserError(f"train.evaluators: {named[one.name]!r} and {name!r} are both called {one.name!r}")
    named[one.name] = name
    one.options_of(config)
    found.append(one)
  for section in config.evaluators:
    if section not in (*named, *EVALUATORS):  # one of the package may be switched off where its settings stand
      raise UserError(f"evaluators.{section}: no such evaluator in this run; {nearest(section, named)}")
  return tuple(found)


def _check_moments(name: str, moments: object) -> None:
  known = ", ".join(map(repr, MOMENTS))
  if not isinstance(moments, tuple | list) or not moments:
    raise UserError(f"train.evaluators={name!r} has moments={moments!r:.80}; expected a tuple of some of {known}")
  for one in moments:
    if one not in MOMENTS:
      near = nearest(str(one), MOMENTS)
      raise UserError(f"train.evaluators={name!r} has moments={moments!r:.80}: no {one!r}; {near}")


def check(evaluators: Iterable[Evaluator], loaders: Mapping[str, EvalLoader], splits: Iterable[str]) -> None:
  """Raises `UserError` for what would fail in an evaluation of the splits."""
  for split in splits:
    for one in evaluators:
      if one.takes(loaders[split]):
        one.check(loaders[split])
