"""An evaluator: the share of spectra that are taken for the kind at the other end."""

from __future__ import annotations

import json

import numpy as np

from peftjax.tasks import Metric
from peftjax.train.evaluate import evaluate, make_predict
from peftjax.train.evaluators import Evaluated, Evaluator


class Far(Evaluator):
  """``far-SPLIT.json`` lists the examples that are off by more than `evaluators.far.steps`."""

  name = "far"
  settings = {"steps": 1}
  specs = (Metric("far", "corpus", share=True, higher_is_better=False),)

  def __init__(self, of):
    super().__init__(of)
    self.predict = make_predict(of.forward, of.task, of.mesh)

  def run(self, leaves, loader):
    _, rows = evaluate(self.predict, leaves.trainable, leaves.frozen, loader, self.of.task, self.of.mesh)
    far = np.abs(rows["prediction"] - rows["label"]) > self.options.steps
    return Evaluated({"far": float(far.mean())}, rows["index"][far].tolist())

  def save(self, folder, split, moment, rows):
    (folder / f"far-{split}.json").write_text(json.dumps(rows) + "\n")
