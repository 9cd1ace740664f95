"""The evaluator `predict`: the task's own metrics, from one forward pass over every example."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peftjax.data.loader import EvalLoader
from peftjax.data.sources.media import MEDIA
from peftjax.train.evaluate import evaluate, make_predict, save_rows
from peftjax.train.evaluators.base import Evaluated, Evaluator, Leaves, Moment

if TYPE_CHECKING:
  from peftjax.train.run import Run


_HELD = {one.field for one in MEDIA}


class Predict(Evaluator):
  """``predictions-SPLIT.npz`` holds every example's result after the last step.

  Of classes of pictures and sounds, ``examples-SPLIT.png`` shows some, and ``confusion-SPLIT.png`` what was taken for
  what.
  """

  name = "predict"
  moments = ("before", "during", "after", "eval")

  def __init__(self, of: Run):
    super().__init__(of)
    self.specs = of.task.specs
    self._predict = make_predict(of.forward, of.task, of.mesh)

  def run(self, leaves: Leaves, loader: EvalLoader) -> Evaluated:
    return Evaluated(*evaluate(self._predict, leaves.trainable, leaves.frozen, loader, self.of.task, self.of.mesh))

  def save(self, folder: Path, split: str, moment: Moment, rows: Any) -> None:
    if moment == "eval" or (moment == "after" and self.of.config.train.predictions):
      save_rows(folder, split, rows)
      loader, names = self.of.loaders.evals[split], self.of.task.label_names
      if names and _HELD & set(loader.dataset.fields) and np.ndim(rows["prediction"]) == 1:
        from peftjax.train.evaluators import pictures  # only runs on pictures and sounds draw any

        pictures.save(folder, split, loader.source, rows, names)
