"""Evaluators: how a model is scored on a split, one file a kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from peftjax.registry import resolve
from peftjax.train.evaluators.base import Evaluated, Evaluator, Leaves, Moment

if TYPE_CHECKING:
  from peftjax.data.loader import EvalLoader
  from peftjax.train.run import Run

__all__ = ["EVALUATORS", "Evaluated", "Evaluator", "Leaves", "Moment", "check", "make"]

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
  asked = ["generate"] if run.config.task.generate else []
  names = dict.fromkeys((*run.task.evaluators, *asked, *run.config.train.evaluators))
  return tuple(resolve("train.evaluators", name, EVALUATORS)(run) for name in names)


def check(evaluators: Iterable[Evaluator], loaders: Mapping[str, EvalLoader], splits: Iterable[str]) -> None:
  """Raises `UserError` for what would fail in an evaluation of the splits."""
  for split in splits:
    for one in evaluators:
      if one.takes(loaders[split]):
        one.check(loaders[split])
