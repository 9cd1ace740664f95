"""Many runs of one method as one program: one compiled step trains all of them over one base (`stacked.py`).

Each run keeps its own folder with the files of `peftjax.train.loop.train`, checkpoints included, so that it can be
evaluated, exported or gone on with alone.

Batches of one step are padded to the longest among the runs. Padding is masked, so the results are those of separate
runs up to rounding; only dropout draws other numbers where a run's own batch would have been shorter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.packages import cache_folder
from peftjax.errors import UserError
from peftjax.files import write_text
from peftjax.models.pretrained import reading_once
from peftjax.parallel.hosts import ending_together
from peftjax.parallel.mesh import put_batch
from peftjax.quantities import prefixed
from peftjax.train import evaluators
from peftjax.train.checks import check_moved, check_unchanged
from peftjax.train.compiling import CompiledStep, Cost, use_cache
from peftjax.train.display import Display
from peftjax.train.fingerprint import fingerprints
from peftjax.train.loop import MakeRun, make_run
from peftjax.train.session import Session, Summary, end_early
from peftjax.train.signals import EndRequests
from peftjax.train.stacked import DoNotFit, Stacked, member
from peftjax.train.state import TrainState
from peftjax.train.step import Metrics
from peftjax.train.watch import Diverged, due

DIVERGED = "diverged.txt"  # in the folder of a run whose loss was not finite: why it takes no more part


def train_together(
  configs: Sequence[ConfigDict], folders: Sequence[str | Path], make_run: MakeRun = make_run
) -> list[Summary | Diverged]:
  """Trains, or goes on with, the run of each config in its folder.

  Args:
    configs: alike but for seed, data, learning rates and what the method leaves free.
    folders: one for each.
    make_run: what makes a `Run` of a config.

  Returns:
    Each run's summary, with "together", the number of runs that its program held; a `Diverged` for a run whose loss was
    not finite under `train.nonfinite=stop`: the others go on without it.

  Raises:
    UserError: as `loop.train`; `stacked.DoNotFit` if the runs do not fit in one program.
    Preempted: after SIGTERM or SIGINT; all is saved.
  """
  if len(folders) != len(configs) or len({Path(folder).resolve() for folder in folders}) != len(folders):
    raise UserError(f"{len(configs)} runs need as many different folders, got {len(folders)}")
  sessions = [_Session(config, folder) for config, folder in zip(configs, folders)]
  outcomes: dict[_Session, Summary | Diverged] = {}
  with contextlib.ExitStack() as held:
    for one in sessions:
      held.enter_context(one)
    if open_ := [one for one in sessions if one.finished is None]:
      use_cache(str(cache_folder("compiled")))
      with reading_once():
        program = Stacked.of(make_run(one.config) for one in open_)
      outcomes = dict(zip(open_, _train(program, open_)))
  return [one.finished or outcomes[one] for one in sessions]


class _Session(Session):
  """The session of one of several runs: it may end by diverging while the others go on."""

  diverged: Diverged | None = None

  def begin(self, start: int, together: int = 1) -> int:
    if (ended := self.folder / DIVERGED).is_file():
      self.diverged = Diverged(ended.read_text(encoding="utf-8").strip())
    return super().begin(start, together)

  def watched(self, step: int, metrics: Metrics, batch: Mapping[str, np.ndarray]) -> None:
    """Logs a step, unless the run has ended."""
    if self.diverged is not None:
      return
    try:
      self.watch.dispatched(step, metrics, batch)
      self.watch.fetch()
    except Diverged as error:
      self.diverged = error
      write_text(self.folder / DIVERGED, f"{error}\n")


class _Late:
  """Fetches the metrics of all runs one step late, in one transfer."""

  def __init__(self, sessions: Sequence[_Session], display: Display):
    self._sessions, self._display = sessions, display
    self._held: tuple[int, Any, Sequence[Any]] | None = None

  def dispatched(self, step: int, metrics: Any, batches: Sequence[Any], clean: bool) -> None:
    """As `Watch.dispatched`, for all runs."""
    if not clean:
      self.restart_clock()
    self.fetch()
    self._held = step, metrics, batches

  def fetch(self) -> None:
    """Waits for the step whose metrics are held, and logs them."""
    if self._held is None:
      return
    (step, metrics, batches), self._held = self._held, None
    host = jax.device_get(metrics)
    for index, one in enumerate(self._sessions):
      one.watched(step, _at(host, index), batches[index])
    loss = float(np.nanmean(host["loss"]))
    self._display.update(step, loss, None)
    self._display.row(step, f"mean loss {loss:.4f}")

  def restart_clock(self) -> None:
    """Leaves the time until the next step out of the step times."""
    for one in self._sessions:
      one.watch.restart_clock()


def _train(program: Stacked, sessions: Sequence[_Session]) -> list[Summary | Diverged]:
  first, count = program.runs[0], len(program.runs)
  config, total = first.config.train, first.total_steps
  if config.patience:
    raise DoNotFit(
      f"train.patience={config.patience}: runs of one program end together; train them one by one, or use 0"
    )
  scorers = evaluators.make(program.widest)
  for one, run in zip(sessions, program.runs):
    one.open(run, scorers)
  frozen_prints = fingerprints(program.frozen)

  with contextlib.ExitStack() as held:
    held.enter_context(ending_together())
    requests = held.enter_context(EndRequests())

    # State: the newest step that all have a checkpoint of, or else the start
    state, start = _restored(program, sessions)
    display = held.enter_context(contextlib.closing(Display(start, total, shown=jax.process_index() == 0)))
    for one in sessions:
      one.begin(start, together=count)
    display.say(f"{count} runs in one program, from step {start} of {total}")
    for note in dict.fromkeys(note for run in program.runs for note in run.notes):
      display.say(note)

    # Loop
    def compiled(cost: Cost) -> None:
      display.say(f"compiled the step for {cost.shape} in {cost.compile_seconds:.1f} s: {prefixed(cost.flops, 'FLOP')}")
      for one in sessions:
        one.costs.add(program.cost_of_one(cost))

    step = CompiledStep(program.step(), first.mesh, state, program.frozen, compiled, together=True)
    for index, one in _going(sessions):
      one.evaluate_before(member(state, index), program.frozen_of(index))
    watch = _Late(sessions, display)
    for number in range(start + 1, total + 1):
      batches = [one.next_batch() for one in sessions]
      before = jax.tree.map(jnp.copy, state.trainable) if number == 1 else None
      stacked = _stacked(batches, first.loaders.inputs.fills)
      state, metrics = step(state, program.frozen, put_batch(first.mesh, stacked, together=True))
      watch.dispatched(number, metrics, batches, clean=not step.just_compiled)
      if before is not None:
        for index in range(count):
          moved = member(before, index), member(state.trainable, index)
          check_moved(*moved, _at(metrics, index), program.widest.program.optimizer.transform)

      last, ending = number == total, requests.any(sessions[0].checkpoints, number)
      if last or ending or due(number, config.save_every):
        watch.fetch()
        for index, one in enumerate(sessions):
          one.save(program.narrowed(state, index))
        watch.restart_clock()
      if ending and not last:
        end_early(sessions, number, display)
      if not last and due(number, config.eval_every):
        watch.fetch()
        found = [one.evaluate(member(state, index), program.frozen_of(index)) for index, one in _going(sessions)]
        if any(found):  # all are saved, so that they go on from one step
          for index, one in enumerate(sessions):
            one.save(program.narrowed(state, index))
        watch.restart_clock()

    # The last states are on disk before anything is made of them
    for one in sessions:
      one.wait()
    for index, one in _going(sessions):
      one.score(member(state, index), program.frozen_of(index), program.narrowed(state, index).trainable)

    # Finish: the promises, then the summaries
    check_unchanged(frozen_prints, fingerprints(program.frozen))
    return [
      one.diverged or one.finish(program.narrowed(state, index), together=count) for index, one in enumerate(sessions)
    ]


def _going(sessions: Sequence[_Session]) -> list[tuple[int, _Session]]:
  """Those that have not ended, with their numbers."""
  return [(index, one) for index, one in enumerate(sessions) if one.diverged is None]


def _restored(program: Stacked, sessions: Sequence[_Session]) -> tuple[TrainState, int]:
  """The newest step that all runs have a checkpoint of, or the start."""
  kept = [one.checkpoints for one in sessions]
  newest = max(set.intersection(*(set(one.steps()) for one in kept)), default=0)
  for one in kept:
    one.drop_after(newest)
  if not newest:
    return program.start(), 0
  states = [one.restored(run.start()) for one, run in zip(sessions, program.runs)]
  if len({int(state.step) for state in states}) > 1:  # one's newest was damaged
    return _restored(program, sessions)
  return program.stack(states), int(states[0].step)


def _at(tree: Any, index: int) -> Any:
  return jax.tree.map(lambda leaf: leaf[index], tree)


def _stacked(batches: Sequence[Mapping[str, np.ndarray]], fills: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The runs' batches as one, [runs, B, ...]; shorter ones are filled up, by `Input.fills`."""
  stacked = {}
  for name in batches[0]:
    arrays = [batch[name] for batch in batches]
    shape = tuple(np.max([array.shape for array in arrays], axis=0))
    fill = fills.get(name, 0)
    widths = [[(0, size - own) for own, size in zip(array.shape, shape)] for array in arrays]
    stacked[name] = np.stack([np.pad(one, width, constant_values=fill) for one, width in zip(arrays, widths)])
  return stacked
