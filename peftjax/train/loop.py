"""Training, from a config to a summary. Reads from top to bottom; what it calls stands in the files beside it.

D/config.json        the config, and what its open fields became
D/metrics.jsonl      loss, gradient norm, learning rates, evaluations: the same bytes however often it was killed
D/timing.jsonl       step times
D/tensorboard/       both, as event files
D/checkpoints/       trainable leaves, optimizer, step, data position
D/predictions-*.npz  every example's result after the last step
D/generations-*.jsonl  what a language model wrote (task.generate)
D/summary.json       written last: the run is finished
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from peftjax import config as config_lib
from peftjax.data.packages import cache_folder
from peftjax.parallel.hosts import ending_together
from peftjax.parallel.mesh import put_batch
from peftjax.train import evaluators as evaluators_lib
from peftjax.train import folder as folder_lib
from peftjax.train import run as run_lib
from peftjax.train.checkpoint import Checkpoints
from peftjax.train.checks import check_moved, check_unchanged
from peftjax.train.compiling import CompiledStep, Costs, use_cache
from peftjax.train.faults import told
from peftjax.train.fingerprint import fingerprints
from peftjax.train.logs import RunLog
from peftjax.train.signals import PREEMPTED, EndRequests, Preempted
from peftjax.train.splits import SplitScores
from peftjax.train.summary import finish
from peftjax.train.watch import Watch, due

Resolve = Callable[[ConfigDict], run_lib.Run]


def train(config: ConfigDict, workdir: str | Path, resolve: Resolve = run_lib.resolve) -> dict[str, Any]:
  """Trains, or goes on with, the run of `config` in the folder `workdir`, and returns its summary.

  What it starts from, the first that there is: a finished run (nothing is done), the newest undamaged checkpoint, the
  base model.

  Args:
    config: see `peftjax.config.default`.
    workdir: D; holds one run.
    resolve: what makes a `Run` of the config.

  Raises:
    UserError: a mistake in config, data or model; a folder with another run; `watch.Diverged`.
    Preempted: after SIGTERM or SIGINT, with exit code 143; all is saved.
  """
  config_lib.check(config)
  folder = Path(workdir)
  writes = jax.process_index() == 0
  with folder_lib.only_run(folder, writes):
    # A finished run
    folder_lib.check_same_run(folder, config)
    if (summary := folder_lib.finished_summary(folder)) is not None:
      if writes:
        print(folder_lib.already_finished(folder, summary), file=sys.stderr)
      return summary

    # Data, task, model, method, optimizer
    use_cache(str(cache_folder("compiled")))
    run = resolve(config)
    evaluators = evaluators_lib.make(run)
    evaluators_lib.check(evaluators, run.loaders.evals, run.evaluated)
    frozen_prints = fingerprints(run.frozen)

    # State: the newest checkpoint's, or else the start
    state = run.start()
    with Checkpoints(folder / "checkpoints", config.train.keep) as checkpoints, ending_together():
      if (found := checkpoints.restore(state, run.base)) is not None:
        state, position = found
        run.loaders.train.set_state(position)
      start, total = int(state.step), run.total_steps

      # Files
      if writes:
        folder_lib.write_config(folder, config, run_lib.describe(run))
      with RunLog(folder, start, run, silent=not writes) as log, EndRequests() as requests:
        log.say(f"{'going on after' if start else 'starting at'} step {start} of {total} in {folder}")
        for note in run.notes:
          log.say(note)

        # Loop
        costs = Costs(folder, log.say, writes)
        step = CompiledStep(run.step(), run.mesh, state, run.frozen, costs.add)
        scores = SplitScores(run, evaluators, folder if writes else None, log)
        if start == 0 and config.train.eval_first:
          scores.before(state.trainable, run.frozen)
        if 0 < start < total and due(start, config.train.eval_every):  # saved, then ended before it was evaluated
          scores.after(start, state.trainable, run.frozen)
        watch = Watch(config, log, run.loaders.train.examples)
        for count in range(start + 1, total + 1):
          with told("reading the data", checkpoints.whole):
            batch = next(run.loaders.train)
          first = jax.tree.map(jax.numpy.copy, state.trainable) if count == 1 else None
          state, metrics = step(state, run.frozen, put_batch(run.mesh, batch))
          watch.dispatched(count, metrics, batch, clean=not step.just_compiled)
          if first is not None:
            check_moved(first, state.trainable, metrics)

          last, ending = count == total, requests.any(checkpoints, count)
          if last or ending or due(count, config.train.save_every):
            watch.fetch()
            with told("saving", checkpoints.whole):
              checkpoints.save(state, run.loaders.train.get_state(), run.base)
            watch.restart_clock()
          if ending and not last:
            with told("saving", checkpoints.whole):
              checkpoints.wait()
            log.say(f"saved after step {count}; the same command goes on")
            raise Preempted(PREEMPTED)
          if not last and due(count, config.train.eval_every):
            watch.fetch()
            scores.after(count, state.trainable, run.frozen)
            watch.restart_clock()

        # The last state is on disk before anything is made of it
        with told("saving", checkpoints.whole):
          checkpoints.wait()
        scores.after(total, state.trainable, run.frozen)

      # Finish: the promises, then the summary
      check_unchanged(frozen_prints, fingerprints(run.frozen))
      return finish(run, state, folder, costs.by_shape, writes)
