"""A run under way in its folder: the lease on it, checkpoints, log, evaluations, and how it ends.

Both trainers hold sessions: `loop` one, `together` one for each run of its program.

    with Session(config, folder) as session:     # the folder is this run's alone
      session.finished                           # its summary, where there is nothing left to do
      session.open(run, evaluators)              # the folder's checkpoints
      session.begin(step)                        # its files; rows after the step are dropped
      session.next_batch(), session.save(state), session.evaluate(state, run.frozen) ...
      session.score(state, run.frozen)           # the run's result on the final splits
      session.finish(state)                      # summary.json
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from ml_collections import ConfigDict

from peftjax import config as config_lib
from peftjax.files import write_text
from peftjax.masks import Tree
from peftjax.named_code import check_code, check_finished, code_of, digests, name_of, names_of
from peftjax.train import best as best_lib
from peftjax.train import evaluators as evaluators_lib
from peftjax.train import folder as folder_lib
from peftjax.train import writers
from peftjax.train.best import BestSoFar
from peftjax.train.checkpoint import Checkpoints
from peftjax.train.compiling import Costs
from peftjax.train.evaluators import Evaluator
from peftjax.train.faults import faults_as_one_line
from peftjax.train.hint import already_finished, hint_of
from peftjax.train.logs import RunLog
from peftjax.train.promised import no_main
from peftjax.train.rows import read_rows
from peftjax.train.run import Run, describe
from peftjax.train.signals import PREEMPTED, Preempted
from peftjax.train.splits import SplitScores
from peftjax.train.state import TrainState
from peftjax.train.summary import summarize
from peftjax.train.watch import Watch, due

Summary = dict[str, Any]


class Session:
  """One run in its folder, from the lease to the summary. Use as a context manager.

  Args:
    config: of the run.
    folder: its own; made if it is not there.

  Attributes:
    finished: the run's summary, if it has ended already.
    run: from `open` on.
    checkpoints: from `open` on.
    best: from `open` on: the best evaluation so far.
    log, costs, watch: from `begin` on.

  Raises:
    UserError: a mistake in the config; the folder cannot be written, or holds another run, or one that another process
      trains, or is finished with other code of the user's own.
  """

  run: Run
  checkpoints: Checkpoints
  log: RunLog
  costs: Costs
  watch: Watch
  best: BestSoFar
  _scores: SplitScores

  def __init__(self, config: ConfigDict, folder: str | Path):
    config_lib.check(config)
    best_lib.check(config)
    writers.check(config)
    self.config, self.folder = config, Path(folder)
    self.finished: Summary | None = None
    self._writes = jax.process_index() == 0
    self._held = contextlib.ExitStack()

  def __enter__(self) -> Session:
    with contextlib.ExitStack() as held:
      held.enter_context(folder_lib.only_run(self.folder, self._writes))
      folder_lib.check_same_run(self.folder, self.config)
      self.finished = folder_lib.finished_summary(self.folder)
      check_finished((self.finished or {}).get("code", {}), self.config, self.folder)
      self._held = held.pop_all()
    return self

  def __exit__(self, *error: Any) -> None:
    self._held.__exit__(*error)

  def say_finished(self) -> None:
    """Says that there is nothing to do, and how the run could go on."""
    if self.finished is not None and self._writes:
      print(already_finished(self.folder, self.finished, self.config), file=sys.stderr)

  def open(self, run: Run, evaluators: Sequence[Evaluator]) -> None:
    """Opens the checkpoints of the run that the config became.

    Raises:
      UserError: an evaluation that is due after the last update would fail.
    """
    evaluators_lib.check(evaluators, run.loaders.evals, run.evaluated)
    specs = {spec.name: spec for one in evaluators if "during" in one.moments for spec in one.specs}
    named = [spec.name for one in evaluators for spec in one.specs]
    if run.task.main_metric not in named:
      raise no_main(run.task, named)
    wanted = best_lib.wanted(run.config, specs, run.task.main_metric, run.eval_splits)
    self.best = BestSoFar(wanted, self.folder if self._writes else None)
    self.run, self._evaluators = run, evaluators
    deciding = [type(one) for one in evaluators for spec in one.specs if wanted and spec.name == wanted.metric.name]
    # as it was read; its files may change while the run goes on
    names = [name for one in deciding if (name := name_of(one))]
    self._code_of_scores = code_of(self.config) | digests(names)
    self._code = {name: self._code_of_scores[name] for name in (*names_of(self.config, scores=False), *names)}
    self.checkpoints = self._held.enter_context(Checkpoints(self.folder / "checkpoints", run.config.train.keep))

  def restored(self, state: TrainState) -> TrainState:
    """The state of the newest undamaged checkpoint, with the data at its position; `state` if there is none.

    Raises:
      UserError: it was trained on other data, or with other code of the user's own.
    """
    if (found := self.checkpoints.restore(state, self.run.base)) is None:
      return state
    self.run.loaders.train.set_state(found[1])
    check_code(found[1].get("code", {}), self._code, self.folder, self.config.data.code_changed)
    self.best.restore(found[1])
    self.checkpoints.keep_best(self.best.step)
    return found[0]

  def begin(self, start: int, together: int = 1) -> int:
    """Writes config.json, opens the files that grow, and says where the run is; returns `start`.

    Args:
      start: the step that the run goes on after; what an earlier attempt wrote of later ones is dropped.
      together: runs that each step trains at once; of several, none shows its own progress.
    """
    resolved = describe(self.run)
    if self._writes:
      folder_lib.write_config(self.folder, self.config, resolved)
    told = {**self.config.to_dict(), "resolved": resolved}
    alone, folder = together == 1, self.folder if self._writes else None
    log = RunLog(self.folder, start, self.run, told, silent=not self._writes, shown=alone)
    self.log = self._held.enter_context(log)
    self.costs = Costs(self.folder, self.log.say, self._writes)
    self.watch = Watch(self.config, self.log, together)
    self._scores = SplitScores(self.run, self._evaluators, folder, self.log)
    where = "going on after" if start else "starting at"
    self.log.say(f"{where} step {start} of {self.run.total_steps} in {self.folder}")
    for note in self.run.notes:
      self.log.say(note)
    return start

  def evaluate_before(self, state: TrainState, frozen: Tree) -> None:
    """What is due before the first update; or of a step that was saved, and the run then ended before it was scored."""
    start = int(state.step)
    if start == 0 and self.config.train.eval_first:
      self._scores.before(state.evaluated, frozen)
    if 0 < start < self.run.total_steps and due(start, self.config.train.eval_every) and self.evaluate(state, frozen):
      self.best.note()

  def next_batch(self) -> Mapping[str, np.ndarray]:
    """The next training batch; a fault of the machine is one line."""
    with faults_as_one_line("reading the data", self._saved):
      return next(self.run.loaders.train)

  def _saved(self) -> list[int]:
    """The steps that have a whole checkpoint once the save under way has ended, well or not."""
    with contextlib.suppress(Exception):
      self.checkpoints.wait()
    return self.checkpoints.whole()

  def save(self, state: TrainState) -> None:
    """Starts saving the state with the data's position, unless its step has a checkpoint; it may be donated once this
    returns."""
    step = int(state.step)
    with faults_as_one_line("saving", self.checkpoints.whole):
      if step not in self.checkpoints.steps():
        position = {**self.run.loaders.train.get_state(), **self.best.saved(step)}
        position |= {"code": {**position.get("code", {}), **self._code}} if self._code else {}
        self.checkpoints.save(state, position, self.run.base)
    if self.best.step == step:
      self.best.note()

  def wait(self) -> None:
    """Until what was saved is on disk."""
    with faults_as_one_line("saving", self.checkpoints.whole):
      self.checkpoints.wait()

  def evaluate(self, state: TrainState, frozen: Tree) -> bool:
    """Scores the splits that are due after a step; returns whether it is the best so far, and is now to be saved."""
    step = int(state.step)
    is_best = self.best.evaluated(step, self._scores.during(step, state.evaluated, frozen))
    if is_best:
      self.checkpoints.keep_best(step)
    return is_best

  def score(self, state: TrainState, frozen: Tree, like: Tree | None = None) -> None:
    """Scores the final splits of the run's result: the last state, or by `train.result` the best one.

    Args:
      like: what trains, in the shapes that checkpoints have, where the state has others.
    """
    step, wanted = int(state.step), self.best.wanted
    if wanted is None:
      self._scores.after(step, state.evaluated, frozen)
      return
    if not self.best.knows(step):
      self.evaluate(state, frozen)
    self.best.note()
    leaves = state.evaluated
    if self.config.train.result == "best" and self.best.step not in (0, step):
      step, leaves = self.checkpoints.restore_trainable(
        state.trainable if like is None else like, self.run.base, self.best.step, state.average is not None
      )
    self.log.say(f"the run's result is the checkpoint of step {step}; best of {wanted}: {self.best.step or 'none'}")
    self._scores.after(step, leaves, frozen, again=True)

  def finish(self, state: TrainState, **more: Any) -> Summary:
    """Writes ``summary.json``, with which the run counts as finished, and returns it.

    Args:
      state: after the last update.
      more: entries beside those of `summarize` and the "code" of the user's own, if any: ``module:Name`` -> digest.
    """
    summary = summarize(self.run, state, self.folder, self.costs.by_shape, self.best) | more
    summary |= {"code": self._code_of_scores} if self._code_of_scores else {}
    if self._writes:
      if hint := hint_of(read_rows(self.folder / "metrics.jsonl"), summary["learning_rates"]):
        self.log.say(hint)
      write_text(self.folder / folder_lib.SUMMARY, json.dumps(summary, indent=2) + "\n")
    try:
      self.checkpoints.drop_rest()  # only now: until there is a summary, the run may be done again from its last save
    except OSError as error:
      self.log.say(f"a checkpoint that is no longer the best stays in {self.folder}: {error.strerror or error}")
    return summary


def end_early(sessions: Sequence[Session], step: int, log: Any) -> NoReturn:
  """Ends runs that were asked to end and are being saved.

  Args:
    log: says so.

  Raises:
    Preempted: always.
  """
  for one in sessions:
    one.wait()
  log.say(f"saved after step {step}; the same command goes on")
  raise Preempted(PREEMPTED)
