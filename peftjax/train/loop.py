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

from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from peftjax import data as data_lib
from peftjax.data.packages import cache_folder
from peftjax.parallel.hosts import ending_together
from peftjax.parallel.mesh import make_mesh, process_share, put_batch
from peftjax.parallel.sharding import layout_of
from peftjax.train import assemble, encodings, evaluators, fitting
from peftjax.train.checks import check_moved, check_unchanged
from peftjax.train.compiling import CompiledStep, use_cache
from peftjax.train.fingerprint import fingerprints
from peftjax.train.run import Program, Run, check_batches, check_sizes, count_steps, optimizer_of
from peftjax.train.session import Session, Summary, end_early
from peftjax.train.signals import EndRequests
from peftjax.train.watch import due

MakeRun = Callable[[ConfigDict], Run]


def make_run(config: ConfigDict) -> Run:
  """What a config trains, ready for the first update: data, model and optimizer, laid on the mesh.

  Raises:
    UserError: whatever in the config, the data or the model does not fit, in one line.
  """
  mesh = make_mesh(config.mesh)
  check_sizes(config, mesh)
  assemble.check_path(config.model.path)
  if config.input.get("num_class_images", 0):
    from peftjax.train import class_pictures  # slow to import

    class_pictures.make(config)
  dataset = data_lib.open_as(config.data.name, config.data)
  setting = assemble.setting(config, dataset, trains=True)
  assert setting.task is not None
  check_batches(config, setting.inputs())

  data = data_lib.make_loaders(config, dataset, setting.inputs, *process_share(mesh))
  fitting.check_first(data)
  model = setting.model(mesh=mesh)
  optimizer = optimizer_of(config, model, total := count_steps(config, data.train.steps_per_epoch))

  data.inputs.check(model)
  run = Run.of(Program(config, setting.task, model, mesh, layout_of(model, mesh), optimizer, total), data)
  return encodings.filled(run)


def train(config: ConfigDict, workdir: str | Path, make_run: MakeRun = make_run) -> Summary:
  """Trains, or goes on with, the run of `config` in the folder `workdir`, and returns its summary.

  What it starts from, the first that there is: a finished run (nothing is done), the newest undamaged checkpoint, the
  base model.

  Args:
    config: see `peftjax.config.default`.
    workdir: D; holds one run.
    make_run: what makes a `Run` of the config.

  Raises:
    UserError: a mistake in config, data or model; a folder with another run; `watch.Diverged`.
    Preempted: after SIGTERM or SIGINT, with exit code 143; all is saved.
  """
  with Session(config, workdir) as session:
    if session.finished is not None:
      session.say_finished()
      return session.finished

    # Data, model, optimizer
    use_cache(str(cache_folder("compiled")))
    run = make_run(config)
    session.open(run, evaluators.make(run))
    frozen_prints = fingerprints(run.frozen)

    with ending_together(), EndRequests() as requests:
      # State: the newest checkpoint's, or else the start
      state = session.restored(run.start())
      start, total, watch = session.begin(int(state.step)), run.total_steps, session.watch

      # Loop
      step = CompiledStep(run.step(), run.mesh, state, run.frozen, session.costs.add)
      session.evaluate_before(state, run.frozen)
      for count in range(start + 1, total + 1):
        if session.best.is_over:
          break
        batch = session.next_batch()
        first = jax.tree.map(jax.numpy.copy, state.trainable) if count == 1 else None
        state, metrics = step(state, run.frozen, put_batch(run.mesh, batch))
        watch.dispatched(count, metrics, batch, clean=not step.just_compiled)
        if first is not None:
          check_moved(first, state.trainable, metrics, run.program.optimizer.transform)

        last, ending = count == total, requests.any(session.checkpoints, count)
        if last or ending or due(count, config.train.save_every):
          watch.fetch()
          session.save(state)
          watch.restart_clock()
        if ending and not last:
          end_early([session], count, session.log)
        if not last and due(count, config.train.eval_every):
          watch.fetch()
          if session.evaluate(state, run.frozen) or session.best.is_over:
            session.save(state)
          watch.restart_clock()

      # The last state is on disk before anything is made of it
      session.wait()
      session.score(state, run.frozen)

      # Finish: the promises, then the summary
      check_unchanged(frozen_prints, fingerprints(run.frozen))
      return session.finish(state)
