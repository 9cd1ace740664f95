"""Many runs of one method as one program: one compiled step trains all of them over one base.

    trainable leaves, optimizer, batches   one a run, stacked along a new first axis       jax.vmap
    frozen leaves                          held once; those in which the runs differ (VeRA's drawn projections) stacked

The runs may differ in seed, data and its order, peak learning rates, and in what their method names in `free` (LoRA's
rank and alpha: narrower leaves are filled up with zeros, which get no gradient and stay zero). Each run keeps its own
folder with the files of `peftjax.train.loop.train`, checkpoints included, so that it can be evaluated, exported or
gone on with alone.

Batches of one step are padded to the longest among the runs. Padding is masked, so the results are those of separate
runs up to rounding; only dropout draws other numbers where a run's own batch would have been shorter.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from peftjax import masks
from peftjax.data.packages import cache_folder
from peftjax.data.tokenizing import IGNORED
from peftjax.errors import UserError
from peftjax.files import write_text
from peftjax.masks import Tree
from peftjax.methods.inject import leaf_paths
from peftjax.model import Model
from peftjax.parallel import mesh as mesh_lib
from peftjax.train import folder as folder_lib
from peftjax.train import run as run_lib
from peftjax.train.checkpoint import Checkpoints
from peftjax.train.checks import check_moved, check_unchanged
from peftjax.train.compiling import CompiledStep, Cost, Costs, use_cache
from peftjax.train.evaluate import evaluate, make_predict, save_rows
from peftjax.train.fingerprint import fingerprints
from peftjax.train.logs import Display, RunLog
from peftjax.train.run import Run
from peftjax.train.signals import PREEMPTED, EndRequests, Preempted
from peftjax.train.state import TrainState, init_state
from peftjax.train.step import Metrics, TrainStep
from peftjax.train.summary import summarize
from peftjax.train.watch import Diverged, Watch

Summary = dict[str, Any]
Resolve = Callable[[ConfigDict], Run]

DIVERGED = "diverged.txt"  # in the folder of a run whose loss was not finite: why it takes no more part


class DoNotFit(UserError):
  """Runs that one program cannot train."""


def train_together(
  configs: Sequence[ConfigDict], folders: Sequence[str | Path], resolve: Resolve = run_lib.resolve
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
    UserError: as `loop.train`; `DoNotFit` if the runs do not fit in one program.
    Preempted: after SIGTERM or SIGINT; all is saved.
  """
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
      program = Program.of(resolve(configs[index]) for index in open_)
      found = _train(program, [places[index] for index in open_], held, writes)
      outcomes |= dict(zip(open_, found))
  return [outcomes[index] for index in range(len(configs))]


# The program ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Program:
  """Runs that share one program.

  Attributes:
    runs: each with its own data and settings, its frozen leaves as shapes.
    model: the widest run's, whose forward pass is the program's.
    shared: frozen leaves that all runs have in common, by dotted name.
    own: frozen leaves in which they differ, stacked.
  """

  runs: tuple[Run, ...]
  model: Model
  shared: dict[str, Any]
  own: dict[str, Any]

  @staticmethod
  def of(resolved: Iterable[Run]) -> Program:
    """The program of runs that are made one after the other; of all their bases it keeps one.

    Raises:
      DoNotFit: a run does not fit; the first difference is named.
    """
    runs: list[Run] = []
    frozen: list[dict[str, Any]] = []  # of each run: all leaves of the first, then what the method added
    for run in resolved:
      flat = masks.flatten(run.frozen)
      if runs:
        _check_alike(runs[0], run, len(runs))
        added = leaf_paths(run.model.bound, run.model.params)
        flat = {name: leaf for name, leaf in flat.items() if name in added}
      frozen.append(flat)
      shapes = jax.eval_shape(lambda tree: tree, (run.frozen, run.model.params))
      runs.append(dataclasses.replace(run, frozen=shapes[0], model=run.model.with_params(shapes[1])))
    if any(run.model.methods != runs[0].model.methods for run in runs):
      _check_widths(runs)
      frozen = [{**flat, **_free_leaves(run.model)} for run, flat in zip(runs, frozen)]
    model = max(runs, key=lambda run: masks.count(run.trainable).parameters).model
    shared, own = dict(frozen[0]), {}
    for name in set.intersection(*(set(flat) for flat in frozen)):
      values = [flat[name] for flat in frozen]
      if any(not np.array_equal(values[0], value) for value in values[1:]):
        del shared[name]
        own[name] = _stack(values)
    return Program(tuple(runs), model, shared, own)

  def start(self) -> TrainState:
    """All runs' states before the first update, stacked; narrower leaves are filled up with zeros."""
    states = [init_state(run.trainable, run.optimizer, run.config.seed) for run in self.runs]
    return jax.tree.map(lambda *leaves: _stack(leaves), *states)

  @property
  def frozen(self) -> Tree:
    """Shared and own frozen leaves as the step takes them."""
    return masks.unflatten({**self.shared, **self.own})

  def frozen_of(self, index: int) -> Tree:
    """One run's frozen leaves."""
    return masks.unflatten({**self.shared, **{name: leaf[index] for name, leaf in self.own.items()}})

  def step(self) -> TrainStep:
    """One update of every run, not yet compiled; states and batches have the runs as their first axis."""
    axes = masks.unflatten({**dict.fromkeys(self.shared), **dict.fromkeys(self.own, 0)})
    one = dataclasses.replace(self.runs[0], model=self.model).step()
    return jax.vmap(one, in_axes=(0, axes, 0))

  @functools.cached_property
  def _shapes(self) -> list[TrainState]:
    return [jax.eval_shape(run.start) for run in self.runs]

  def narrowed(self, state: TrainState, index: int) -> TrainState:
    """One run's state in the shapes that it has when trained alone."""
    corner = lambda leaf, like: leaf[tuple(slice(size) for size in like.shape)]  # noqa: E731
    return jax.tree.map(corner, _one(state, index), self._shapes[index])

  def cost_of_one(self, cost: Cost) -> Cost:
    """A run's part of the program's cost; arguments as it would have them alone."""
    count, common = len(self.runs), sum(leaf.nbytes for leaf in self.shared.values())
    return dataclasses.replace(
      cost,
      compile_seconds=round(cost.compile_seconds / count, 3),
      flops=cost.flops // count,
      xla_flops=cost.xla_flops / count,
      temp_bytes=cost.temp_bytes // count,
      argument_bytes=(cost.argument_bytes - common) // count + common,
    )


def _stack(leaves: Sequence[Any]) -> jax.Array:
  """Stacked along a new first axis; smaller ones are filled up with zeros at their ends."""
  shape = tuple(max(sizes) for sizes in zip(*(leaf.shape for leaf in leaves)))
  fill = lambda leaf: [(0, size - own) for own, size in zip(leaf.shape, shape)]  # noqa: E731
  return jnp.stack([leaf if leaf.shape == shape else jnp.pad(leaf, fill(leaf)) for leaf in leaves])


@jax.jit
def _one(tree: Any, index: Any) -> Any:
  return jax.tree.map(lambda leaf: leaf[index], tree)


def _free_leaves(model: Model) -> dict[str, jax.Array]:
  """Frozen leaves at the methods' sites that carry the settings in which runs of one program may differ."""
  return {
    ".".join((*site.leaf_path, name)): jnp.broadcast_to(leaf, (*site.stack, *leaf.shape))
    for one in model.bound
    for site in one.sites
    for name, leaf in one.method.free_leaves(site.one(0)).items()
  }


def _check_widths(runs: Sequence[Run]) -> None:
  """Leaves filled up with zeros train as narrower ones only where each element is updated by itself."""
  name = runs[0].config.optim.name
  if name not in ("adamw", "sgd", "lion"):
    raise UserError(
      f"runs of different methods' settings do not fit in one program with optim.name={name!r}; use adamw"
    )


def _check_alike(first: Run, run: Run, index: int) -> None:
  def differ(what: str, one: Any, other: Any) -> DoNotFit:
    return DoNotFit(f"runs 0 and {index} do not fit in one program: {what} is {one} and {other}")

  if first.base != run.base:
    raise differ("the base", first.base.path, run.base.path)
  if first.total_steps != run.total_steps:
    raise differ("the number of updates", first.total_steps, run.total_steps)
  for one, other in zip(first.model.methods, run.model.methods):
    if type(one) is not type(other):
      raise differ("the method", one.name, other.name)
    for field in dataclasses.fields(one):
      pair = getattr(one, field.name), getattr(other, field.name)
      if pair[0] != pair[1] and field.name not in one.free:
        raise differ(f"method.{field.name}", *pair)
  names = masks.flatten(first.trainable), masks.flatten(run.trainable)
  for name in sorted(set(names[0]) ^ set(names[1])):
    raise differ(f"the leaf {name}", *("trained" if name in flat else "not trained" for flat in names))
  free = leaf_paths(first.model.bound, first.model.params)
  for name, leaf in names[0].items():
    if leaf.shape != names[1][name].shape and name not in free:
      raise differ(f"the shape of {name}", leaf.shape, names[1][name].shape)
  for section in ("train", "optim", "task"):
    ours, theirs = (_comparable(one.config[section]) for one in (first, run))
    for key, value in ours.items():
      if value != theirs.get(key):
        raise differ(f"{section}.{key}", value, theirs.get(key))


def _comparable(section: ConfigDict) -> dict[str, Any]:
  """Fields that must agree: all but learning rates, which the states hold."""
  fields = copy.deepcopy(section.to_dict())
  for one in (fields, *fields.get("groups", {}).values()):
    one.pop("learning_rate", None)
  return fields


# The loop ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Member:
  """A run under way in the program."""

  run: Run
  folder: Path
  checkpoints: Checkpoints
  log: RunLog
  watch: Watch
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
    for index, member in enumerate(self._members):
      member.watched(step, _at(host, index), batches[index])
    loss = float(np.nanmean(host["loss"]))
    self._display.update(step, loss, None)
    self._display.row(step, f"mean loss {loss:.4f}")

  def restart_clock(self) -> None:
    """Leaves the time until the next step out of the step times."""
    for member in self._members:
      member.watch.restart_clock()


def _train(
  program: Program, folders: Sequence[Path], held: contextlib.ExitStack, writes: bool
) -> list[Summary | Diverged]:
  first, count = program.runs[0], len(program.runs)
  config, total, mesh = first.config.train, first.total_steps, first.mesh
  checkpoints = [
    held.enter_context(Checkpoints(folder / "checkpoints", run.config.train.keep))
    for run, folder in zip(program.runs, folders)
  ]
  state, start = _restored(program, checkpoints)
  display = held.enter_context(contextlib.closing(Display(start, total)))
  members = []
  for run, folder, kept in zip(program.runs, folders, checkpoints):
    if writes:
      folder_lib.write_config(folder, run.config, run_lib.describe(run))
    log = held.enter_context(RunLog(folder, start, run, silent=not writes, shown=False))
    watch = Watch(run.config, log, run.loaders.train.examples, together=count)
    ended = folder / DIVERGED
    diverged = Diverged(ended.read_text(encoding="utf-8").strip()) if ended.is_file() else None
    members.append(_Member(run, folder, kept, log, watch, diverged))
  requests = held.enter_context(EndRequests())
  display.say(f"{count} runs in one program, from step {start} of {total}")

  frozen = jax.device_put(program.frozen, mesh_lib.tree_shardings(mesh, program.frozen))
  prints = fingerprints(frozen)
  state = jax.device_put(state, mesh_lib.tree_shardings(mesh, state))
  costs = [Costs(member.folder, lambda _: None, writes) for member in members]

  def compiled(cost: Cost) -> None:
    display.say(f"compiled the step for {cost.shape} in {cost.compile_seconds:.1f} s: {cost.flops / 1e9:.1f} GFLOP")
    for one in costs:
      one.add(program.cost_of_one(cost))

  step = CompiledStep(program.step(), mesh, state, frozen, compiled, together=True)
  predict = make_predict(program.model.forward, first.task, mesh)
  late = _Late(members, display, total)

  for number in range(start + 1, total + 1):
    batches = [next(member.run.loaders.train) for member in members]
    before = jax.tree.map(jnp.copy, state.trainable) if number == 1 else None
    state, metrics = step(state, frozen, mesh_lib.put_batch(mesh, _stacked(batches), together=True))
    late.dispatched(number, metrics, batches, clean=not step.just_compiled)
    if before is not None:
      for index in range(count):
        check_moved(_one(before, index), _one(state.trainable, index), _at(metrics, index))

    last, ending = number == total, requests.any(checkpoints[0], number)
    if last or _due(number, config.eval_every):
      late.fetch()
      for index, member in enumerate(members):
        if member.diverged is None:
          _evaluate(member, predict, _one(state.trainable, index), program.frozen_of(index), number, last and writes)
      late.restart_clock()
    if last or ending or _due(number, config.save_every):
      late.fetch()
      for index, member in enumerate(members):
        member.checkpoints.save(program.narrowed(state, index), member.run.loaders.train.get_state(), member.run.base)
      late.restart_clock()
    if ending and not last:
      for member in members:
        member.checkpoints.wait()
      display.say(f"saved after step {number}; the same command goes on")
      raise Preempted(PREEMPTED)

  check_unchanged(prints, fingerprints(frozen))
  return [
    _finished(member, program.narrowed(state, index), one, count, writes)
    for index, (member, one) in enumerate(zip(members, costs))
  ]


def _restored(program: Program, checkpoints: Sequence[Checkpoints]) -> tuple[TrainState, int]:
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
  return jax.tree.map(lambda *leaves: _stack(leaves), *states), int(states[0].step)


def _at(tree: Any, index: int) -> Any:
  return jax.tree.map(lambda leaf: leaf[index], tree)


def _stacked(batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """The runs' batches as one, [runs, B, ...]; shorter ones are filled up with padding."""
  stacked = {}
  for name in batches[0]:
    arrays = [batch[name] for batch in batches]
    shape = tuple(np.max([array.shape for array in arrays], axis=0))
    fill = IGNORED if name == "labels" else 0
    widths = [[(0, size - own) for own, size in zip(array.shape, shape)] for array in arrays]
    stacked[name] = np.stack([np.pad(one, width, constant_values=fill) for one, width in zip(arrays, widths)])
  return stacked


def _evaluate(member: _Member, predict: Any, trainable: Tree, frozen: Tree, number: int, keep: bool) -> None:
  run = member.run
  last = number == run.total_steps
  for split in run.final_splits if last else run.eval_splits:
    scores, rows = evaluate(predict, trainable, frozen, run.loaders.evals[split], run.task, run.mesh)
    member.log.evaluation_row(number, split, scores)
    if keep and run.config.train.predictions:
      save_rows(member.folder, split, rows)


def _finished(member: _Member, state: TrainState, costs: Costs, count: int, writes: bool) -> Summary | Diverged:
  member.checkpoints.wait()
  if member.diverged is not None:
    return member.diverged
  summary = summarize(member.run, state, member.folder, costs.by_shape) | {"together": count}
  if writes:
    write_text(member.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
  return summary


def _due(count: int, every: int) -> bool:
  return every > 0 and count % every == 0
