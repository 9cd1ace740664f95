"""Evaluating a run's splits: before its first step, during training, and after the last step with all that is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from peftjax.errors import UserError
from peftjax.masks import Tree
from peftjax.train import scored
from peftjax.train.evaluators import Evaluated, Evaluator, Leaves, Moment
from peftjax.train.logs import RunLog
from peftjax.train.run import Run

Scores = dict[str, dict[str, float]]  # split -> metric -> value


def score_split(
  run: Run, evaluators: Sequence[Evaluator], split: str, leaves: Leaves, folder: Path | None, moment: Moment
) -> dict[str, float]:
  """A split's metrics by all evaluators that run at a moment.

  Args:
    run: whose data this is.
    evaluators: see `peftjax.train.evaluators.make`.
    split: its name.
    leaves: of the model.
    folder: where files go; None writes none.
    moment: one of a run's.

  Raises:
    UserError: an evaluator gives another thing than its `specs` say.
  """
  loader = run.loaders.evals[split]
  metrics: dict[str, float] = {}
  for one in evaluators:
    if moment in one.moments and one.takes(loader):
      found = one.run(leaves, loader)
      if not isinstance(found, Evaluated) or not isinstance(found.metrics, Mapping):
        raise UserError(f"the evaluator {one.name!r} gave {found!r:.80}; expected Evaluated(a dict of metrics, rows)")
      metrics |= scored.numbers(f"the evaluator {one.name!r}", found.metrics, one.specs)
      if folder is not None:
        one.save(folder, split, moment, found.rows)
  return metrics


@dataclasses.dataclass(frozen=True)
class SplitScores:
  """The evaluations of a run under way.

  Attributes:
    run, evaluators: see `score_split`.
    folder: the run's; None in a process that writes no files.
    log: takes the metrics.
  """

  run: Run
  evaluators: Sequence[Evaluator]
  folder: Path | None
  log: RunLog

  def before(self, trainable: Tree, frozen: Tree) -> None:
    """Scores the evaluation splits before the first update."""
    self._score(self.run.eval_splits, Leaves(trainable, frozen), "before")

  def during(self, step: int, trainable: Tree, frozen: Tree) -> Scores:
    """Scores the evaluation splits after a step."""
    return self._score(self.run.eval_splits, Leaves(trainable, frozen, step), "during")

  def after(self, step: int, trainable: Tree, frozen: Tree, again: bool = False) -> Scores:
    """Scores the final splits of the run's result, with every example's result and what the model writes.

    Args:
      step: that the result is of.
      again: the step has been scored during the run.
    """
    return self._score(self.run.final_splits, Leaves(trainable, frozen, step), "after", again)

  def _score(self, splits: Sequence[str], leaves: Leaves, moment: Moment, again: bool = False) -> Scores:
    found = {}
    for split in splits:
      found[split] = score_split(self.run, self.evaluators, split, leaves, self.folder, moment)
      self.log.evaluation_row(leaves.step, split, found[split], again)
    return found
