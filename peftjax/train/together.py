"""Many runs of one method as one program: one compiled step trains all of them over one base (`stacked.py`).

Each run keeps its own folder with the files of `peftjax.train.loop.train`, checkpoints included, so that it can be
evaluated, exported or gone on with alone.

Batches of one step are padded to the longest among the runs. Padding is masked, so the results are those of separate
runs up to rounding; only dropout draws other numbers where a run's own batch would have been shorter.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from peftjax import config as config_lib
from peftjax.data.packages import cache_folder
from peftjax.errors import UserError
from peftjax.files import write_text
from peftjax.models.pretrained import reading_once
from peftjax.parallel.hosts import ending_together
from peftjax.parallel.mesh import put_batch
from peftjax.train import evaluators as evaluators_lib
from peftjax.train import folder as folder_lib
from peftjax.train import run as run_lib
from peftjax.train.checkpoint import Checkpoints
from peftjax.train.checks import check_moved, check_unchanged
from peftjax.train.compiling import CompiledStep, Cost, Costs, use_cache
from peftjax.train.display import Display
from peftjax.train.faults import told
from peftjax.train.fingerprint import fingerprints
from peftjax.train.logs import RunLog
from peftjax.train.run import Run
from peftjax.train.signals import PREEMPTED, EndRequests, Preempted
from peftjax.train.splits import SplitScores
from peftjax.train.stacked import Stacked, member
from peftjax.train.state import TrainState
from peftjax.train.step import Metrics
from peftjax.train.summary import finish
from peftjax.train.watch import Diverged, Watch, due

Summary = dict[str, Any]

DIVERGED = "diverged.txt"  # in the folder of a run whose loss was not finite: why it takes no more part


def train_together(
  configs: Sequence[ConfigDict], folders: Sequence[str | Path], resolve: Callable[[ConfigDict], Run] = run_lib.resolve
) -> list[Summary | Diverged]:
  """Trains, or goes on with, the run of each config in its folder.

  Args:
    configs: alike but for seed, data, learning rates and what the method leaves free.
    folders: one for each.
    resolve: what makes a `Run` of a config.

  Returns:
    Each run's summary, with "together", the number of runs that its program held; a `Diverged` for a run whose loss was
    not finite under `train.nonfinite=stop`: the others go on without it.

  Raises:
    UserError: as `loop.train`; `stacked.DoNotFit` if the runs do not fit in one program.
    Preempted: after SIGTERM or SIGINT; all is saved.
  """
  for config in configs:
    config_lib.check(config)
  places = [Path(folder) for folder in folders]
  if len(places) != len(configs) or len({place.resolve() for place in places}) != len(places):
    raise UserError(f"{len(configs)} runs need as many different folders, got {len(places)}")
  writes = jax.process_index() == 0
  outcomes: dict[int, Summary | Diverged] = {}
  with contextlib.ExitStack() as held:
    for index, (config, place) in enumerate(zip(configs, places)):
      held.enter_context(folder_lib.only_run(place, writes))
      folder_lib.check_same_run(place, config)
      if (summary := folder_lib.finished_summary(place)) is not None:
        outcomes[index] = summary
    open_ = [index for index in range(len(configs)) if index not in outcomes]
    if open_:
      use_cache(str(cache_folder("compiled")))
      with reading_once():
        program = Stacked.of(resolve(configs[index]) for index in open_)
      found = _train(program, [places[index] for index in open_], held, writes)
      outcomes |= dict(zip(open_, found))
  return [outcomes[index] for index in range(len(configs))]


@dataclasses.dataclass
class _Member:
  """A run under way in the program."""

  run: Run
  folder: Path
  checkpoints: Checkpoints
  watch: Watch
  scores: SplitScores
  diverged: Diverged | None = None

  def watched(self, step: int, metrics: Metrics, batch: Mapping[str, np.ndarray]) -> None:
    """Logs a step, unless the run ended by diverging."""
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

  def __init__(self, members: Sequence[_Member], display: Display, total: int):
    self._members, self._display, self._total = members, display, total
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
    for index, one in enumerate(self._members):
      one.watched(step, _at(host, index), batches[index])
    loss = float(np.nanmean(host["loss"]))
    self._display.update(step, loss, None)
    self._display.row(step, f"mean loss {loss:.4f}")

  def restart_clock(self) -> None:
    """Leaves the time until the next step out of the step times."""
    for one in self._members:
      one.watch.restart_clock()


def _train(
  program: Stacked, folders: Sequence[Path], held: contextlib.ExitStack, writes: bool
) -> list[Summary | Diverged]:
  first, count = program.runs[0], len(program.runs)
  config, total, mesh = first.config.train, first.total_steps, first.mesh
  evaluators = evaluators_lib.make(program.widest)
  for run in program.runs:
    evaluators_lib.check(evaluators, run.loaders.evals, run.evaluated)
  frozen_prints = fingerprints(program.frozen)

  # State: the newest step that all have a checkpoint of, or else the start
  checkpoints = [
    held.enter_context(Checkpoints(folder / "checkpoints", run.config.train.keep))
    for run, folder in zip(program.runs, folders)
  ]
  held.enter_context(ending_together())
  state, start = _restored(program, checkpoints)
  saved = checkpoints[0].whole

  # Files
  display = held.enter_context(contextlib.closing(Display(start, total, shown=writes)))
  members = []
  for run, folder, kept in zip(program.runs, folders, checkpoints):
    if writes:
      folder_lib.write_config(folder, run.config, run_lib.describe(run))
    log = held.enter_context(RunLog(folder, start, run, silent=not writes, shown=False))
    watch = Watch(run.config, log, run.loaders.train.examples, together=count)
    ended = folder / DIVERGED
    diverged = Diverged(ended.read_text(encoding="utf-8").strip()) if ended.is_file() else None
    members.append(
      _Member(run, folder, kept, watch, SplitScores(run, evaluators, folder if writes else None, log), diverged)
    )
  requests = held.enter_context(EndRequests())
  display.say(f"{count} runs in one program, from step {start} of {total}")
  for note in dict.fromkeys(note for run in program.runs for note in run.notes):
    display.say(note)

  # Loop
  costs = [Costs(one.folder, lambda _: None, writes) for one in members]

  def compiled(cost: Cost) -> None:
    display.say(f"compiled the step for {cost.shape} in {cost.compile_seconds:.1f} s: {cost.flops / 1e9:.1f} GFLOP")
    for one in costs:
      one.add(program.cost_of_one(cost))

  step = CompiledStep(program.step(), mesh, state, program.frozen, compiled, together=True)
  if start == 0 and config.eval_first:
    for index, one in enumerate(members):
      one.scores.before(member(state.trainable, index), program.frozen_of(index))
  if 0 < start < total and due(start, config.eval_every):  # saved, then ended before they were evaluated
    _evaluate(program, members, start, state)
  late = _Late(members, display, total)
  for number in range(start + 1, total + 1):
    with told("reading the data", saved):
      batches = [next(one.run.loaders.train) for one in members]
    before = jax.tree.map(jnp.copy, state.trainable) if number == 1 else None
    stacked = _stacked(batches, first.loaders.inputs.fills)
    state, metrics = step(state, program.frozen, put_batch(mesh, stacked, together=True))
    late.dispatched(number, metrics, batches, clean=not step.just_compiled)
    if before is not None:
      for index in range(count):
        check_moved(member(before, index), member(state.trainable, index), _at(metrics, index))

    last, ending = number == total, requests.any(checkpoints[0], number)
    if last or ending or due(number, config.save_every):
      late.fetch()
      with told("saving", saved):
        for index, one in enumerate(members):
          one.checkpoints.save(program.narrowed(state, index), one.run.loaders.train.get_state(), one.run.base)
      late.restart_clock()
    if ending and not last:
      with told("saving", saved):
        for one in members:
          one.checkpoints.wait()
      display.say(f"saved after step {number}; the same command goes on")
      raise Preempted(PREEMPTED)
    if not last and due(number, config.eval_every):
      late.fetch()
      _evaluate(program, members, number, state)
      late.restart_clock()

  # The last states are on disk before anything is made of them
  with told("saving", saved):
    for one in members:
      one.checkpoints.wait()
  _evaluate(program, members, total, state)

  # Finish: the promises, then the summaries
  check_unchanged(frozen_prints, fingerprints(program.frozen))
  return [
    one.diverged or finish(one.run, program.narrowed(state, index), one.folder, cost.by_shape, writes, together=count)
    for index, (one, cost) in enumerate(zip(members, costs))
  ]


def _evaluate(program: Stacked, members: Sequence[_Member], step: int, state: TrainState) -> None:
  for index, one in enumerate(members):
    if one.diverged is None:
      one.scores.after(step, member(state.trainable, index), program.frozen_of(index))


def _restored(program: Stacked, checkpoints: Sequence[Checkpoints]) -> tuple[TrainState, int]:
  """The newest step that all runs have a checkpoint of, or the start."""
  newest = max(set.intersection(*(set(kept.steps()) for kept in checkpoints)), default=0)
  for kept in checkpoints:
    kept.drop_after(newest)
  if not newest:
    return program.start(), 0
  states = []
  for run, kept in zip(program.runs, checkpoints):
    found = kept.restore(run.start(), run.base)
    assert found is not None
    states.append(found[0])
    run.loaders.train.set_state(found[1])
  if len({int(state.step) for state in states}) > 1:  # one's newest was damaged
    return _restored(program, checkpoints)
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
