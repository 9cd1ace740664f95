"""Evaluating a run's splits: before its first step, during training, and after the last step with all that is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from peftjax.masks import Tree
from peftjax.train import generations
from peftjax.train.evaluate import Predict, evaluate, save_rows
from peftjax.train.logs import RunLog
from peftjax.train.run import Run


def score_split(
  run: Run,
  predict: Predict,
  split: str,
  trainable: Tree,
  frozen: Tree,
  folder: Path | None,
  texts: str | None = None,
  rows: bool = False,
) -> dict[str, float]:
  """A split's metrics, with those of what the model writes where the run is to generate.

  Args:
    run: whose data and task these are.
    predict: see `evaluate.make_predict`.
    split: its name.
    trainable, frozen: leaves.
    folder: where files go; None writes none.
    texts: the name of ``generations-NAME.jsonl``; None generates nothing.
    rows: whether to keep every example's result.
  """
  metrics, kept = evaluate(predict, trainable, frozen, run.loaders.evals[split], run.task, run.mesh)
  if texts is not None and generations.writes_for(run, split):
    written, lines = generations.generated(run, trainable, frozen, split)
    metrics |= written
    if folder is not None:
      generations.save_texts(folder, texts, lines)
  if rows and folder is not None:
    save_rows(folder, split, kept)
  return metrics


@dataclasses.dataclass(frozen=True)
class SplitScores:
  """The evaluations of a run under way.

  Attributes:
    run, predict: see `score_split`.
    folder: the run's; None in a process that writes no files.
    log: takes the metrics.
  """

  run: Run
  predict: Predict
  folder: Path | None
  log: RunLog

  def before(self, trainable: Tree, frozen: Tree) -> None:
    """Before the first step; what the model writes goes to ``generations-SPLIT-before.jsonl``."""
    for split in self.run.eval_splits:
      metrics = score_split(self.run, self.predict, split, trainable, frozen, self.folder, texts=f"{split}-before")
      self.log.evaluation_row(0, split, metrics)

  def after(self, step: int, trainable: Tree, frozen: Tree) -> None:
    """After a step; after the last one the final splits, with every example's result and what the model writes."""
    run, last = self.run, step == self.run.total_steps
    for split in run.final_splits if last else run.eval_splits:
      metrics = score_split(
        run,
        self.predict,
        split,
        trainable,
        frozen,
        self.folder,
        texts=split if last else None,
        rows=last and run.config.train.predictions,
      )
      self.log.evaluation_row(step, split, metrics)
