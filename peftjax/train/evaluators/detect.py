"""The evaluator `detect`: mean average precision of the boxes that were found, and these drawn on pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from peftjax.errors import UserError
from peftjax.train.evaluate import save_rows
from peftjax.train.evaluators.base import Moment
from peftjax.train.evaluators.predict import Predict

if TYPE_CHECKING:
  from peftjax.train.run import Run


class Detect(Predict):
  """The task's metrics; ``predictions-SPLIT.npz`` holds what was found in every image and what there is, and
  ``detections-SPLIT.png`` shows some.

  Settings:
    shown: how many images are drawn.
    score: what a prediction must be sure of to be drawn.
  """

  name: ClassVar[str] = "detect"
  settings = {"shown": 12, "score": 0.5}

  def __init__(self, of: Run):
    super().__init__(of)
    shown, score = self.options.shown, self.options.score
    if type(shown) is not int or shown < 0:
      raise UserError(f"evaluators.detect.shown={shown!r}: expected a whole number, none below 0")
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
      raise UserError(f"evaluators.detect.score={score!r}: expected a number from 0 to 1")

  def save(self, folder: Path, split: str, moment: Moment, rows: Any) -> None:
    if moment == "eval" or (moment == "after" and self.of.config.train.predictions):
      save_rows(folder, split, rows)
      from peftjax.train.evaluators import detections  # only runs on pictures draw any

      source, names = self.of.loaders.evals[split].source, self.of.task.label_names
      options = self.options
      detections.save(folder, split, source, rows, names, int(options.shown), float(options.score))
