"""The trainer of real studies: runs of `peftjax.train`, and the row `frozen`, which is evaluated and not trained."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from peftjax import config as config_lib
from peftjax import outputs
from peftjax.compare.dimensions.base import Dimension, Trained
from peftjax.compare.trainer import Measured, RunOutcome
from peftjax.compare.trials import FROZEN, buildable, is_frozen
from peftjax.data.extra_sets import RETAINED, shifted_names
from peftjax.errors import UserError
from peftjax.files import read_json
from peftjax.own_code import as_user_error
from peftjax.parallel.mesh import put_batch
from peftjax.train import finished, inspection, loop, together, untrained
from peftjax.train.assemble import setting
from peftjax.train.compiling import CompiledStep
from peftjax.train.flops import flops_of
from peftjax.train.loop import make_run
from peftjax.train.run import check_splits
from peftjax.train.signals import PREEMPTED, EndRequests, Preempted
from peftjax.train.stacked import DoNotFit
from peftjax.train.timing import Step


class JaxTrainer:
  """The `Trainer` that trains: runs of `peftjax.train`, and the row `frozen`, which is only evaluated."""

  def check(self, config: ConfigDict) -> None:
    """Builds a trial's model as shapes alone, by the header of its data.

    Raises:
      UserError: the method, its targets or the model do not fit; the data have no split of a name.
    """
    config_lib.check(config)
    found = setting(buildable(config), trains=True)
    if found.header.splits:  # of data that are prepared
      retained = (RETAINED,) if config.data.get("retained", "") else ()
      known = (*found.header.splits, *shifted_names(config.data), *retained)
      check_splits(config, known, "compare.split, compare.search.split or train.final_splits")
    inspection.report(found.model(abstract=True))

  def train(self, configs: Sequence[ConfigDict], folders: Sequence[Path]) -> list[RunOutcome]:
    """Trains or resumes trials, in one program where they fit in one; a trial's error is its outcome.

    Each trial's adapter is saved beside it in ``adapter/`` where the method has a file format.

    Raises:
      Preempted: after SIGTERM or SIGINT, also where it came too late for a trial to end early; all is saved.
    """
    with EndRequests() as requests:
      outcomes = _train(configs, folders)
      for config, folder, outcome in zip(configs, folders, outcomes):
        if not isinstance(outcome, Exception) and not is_frozen(config):
          _save_adapter(folder)
    if requests.asked:
      raise Preempted(PREEMPTED)
    return outcomes

  def step(self, config: ConfigDict) -> Step:
    """A trial's own step, as its training compiled it, on its first batch over and over."""
    run = make_run(config)
    batch = put_batch(run.mesh, next(run.loaders.train))
    state = run.start()
    compiled = CompiledStep(run.step(), run.mesh, state, run.frozen, lambda _: None)
    held = [state]

    def step() -> None:
      held[0], metrics = compiled(held[0], run.frozen, batch)
      jax.block_until_ready((held[0], metrics))

    return step

  def step_flops(self, config: ConfigDict) -> float:
    """FLOPs of the matrix products in one update, on a batch of the greatest length; traced, not compiled."""
    run = make_run(config)
    batch = run.loaders.inputs.training().batch_spec(config.train.batch_size)
    traced = jax.jit(run.step()).trace(run.start(), run.frozen, batch)
    return float(flops_of(traced.jaxpr))

  def measure(
    self, dimensions: Sequence[Dimension], config: ConfigDict, folder: Path, study: Mapping[str, Any]
  ) -> Iterator[Measured]:
    """What each dimension measures of a trained trial, which is loaded once for all of them."""
    trained = Trained(config, folder, read_json(folder / "summary.json"), study)
    for one in dimensions:
      try:
        yield one.measure(trained) if one.measure else None
      except Exception as error:
        yield error


def _train(configs: Sequence[ConfigDict], folders: Sequence[Path]) -> list[RunOutcome]:
  if len(configs) > 1 and not any(map(is_frozen, configs)):
    try:
      return list(together.train_together(configs, folders))
    except DoNotFit as error:
      logging.getLogger(__name__).warning("%s: trained one after the other", error)
  outcomes: list[RunOutcome] = []
  for config, folder in zip(configs, folders):
    try:
      if is_frozen(config):
        outcomes.append(untrained.score(buildable(config), folder, FROZEN))
      else:
        outcomes.append(loop.train(config, folder))
    except Exception as error:
      outcomes.append(as_user_error(error))
  return outcomes


def _save_adapter(folder: Path) -> None:
  try:
    finished.export(folder, "peft", folder / "adapter", overwrite=True)
  except UserError:  # full fine-tuning, or a method that Hugging Face PEFT does not have
    outputs.remove(folder / "adapter")
