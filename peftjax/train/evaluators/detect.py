"""The evaluator `detect`: mean average precision of the boxes that were found, and these drawn on pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from peftjax.train.evaluate import save_rows
from peftjax.train.evaluators.base import Moment
from peftjax.train.evaluators.predict import Predict


class Detect(Predict):
  """The task's metrics; ``predictions-SPLIT.npz`` holds what was found in every image and what there is, and
  ``detections-SPLIT.png`` shows some.

  Settings:
    shown: how many images are drawn.
    score: what a prediction must be sure of to be drawn.
  """

  name: ClassVar[str] = "detect"
  settings = {"shown": 12, "score": 0.5}

  def save(self, folder: Path, split: str, moment: Moment, rows: Any) -> None:
    if moment == "eval" or (moment == "after" and self.of.config.train.predictions):
      save_rows(folder, split, rows)
      from peftjax.train.evaluators import detections  # only runs on pictures draw any

      source, names = self.of.loaders.evals[split].source, self.of.task.label_names
      options = self.options
      detections.save(folder, split, source, rows, names, int(options.shown), float(options.score))
