"""What a study asks of training: whether a trial's config can be built, its run, and its bare step for the clock."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from peftjax import config as config_lib
from peftjax import outputs
from peftjax.compare.search import each
from peftjax.compare.timing import Step
from peftjax.compare.untrained import buildable, is_frozen, score
from peftjax.errors import UserError
from peftjax.parallel.mesh import put_batch
from peftjax.train import finished, inspection, loop, together
from peftjax.train import run as run_lib
from peftjax.train.assemble import setting
from peftjax.train.compiling import CompiledStep
from peftjax.train.flops import flops_of
from peftjax.train.signals import PREEMPTED, EndRequests, Preempted
from peftjax.train.stacked import DoNotFit


def check(config: ConfigDict) -> None:
  """Builds a trial's model as shapes alone, without weights, by the header of its data.

  Raises:
    UserError: the method, its targets or the model do not fit.
  """
  config_lib.check(config)
  if is_frozen(config):
    config = buildable(config)
  inspection.report(setting(config, trains=True).model(abstract=True))


def train(config: ConfigDict, folder: Path) -> dict[str, Any]:
  """Trains or resumes a trial, and saves its adapter beside it in ``adapter/`` where the method has a file format."""
  if is_frozen(config):
    return score(config, folder)
  summary = loop.train(config, folder)
  _save_adapter(folder)
  return summary


def train_many(configs: Sequence[ConfigDict], folders: Sequence[Path]) -> list[Mapping[str, Any] | Exception]:
  """Trains or resumes trials, in one program where they fit in one; a trial's error is its outcome.

  Raises:
    Preempted: after SIGTERM or SIGINT, also where it came too late for a trial to end early; all is saved.
  """
  with EndRequests() as requests:
    outcomes = _train_many(configs, folders)
  if requests.asked:
    raise Preempted(PREEMPTED)
  return outcomes


def _train_many(configs: Sequence[ConfigDict], folders: Sequence[Path]) -> list[Mapping[str, Any] | Exception]:
  if len(configs) > 1 and not any(map(is_frozen, configs)):
    try:
      outcomes: list[Any] = list(together.train_together(configs, folders))
      for folder, outcome in zip(folders, outcomes):
        if not isinstance(outcome, Exception):
          _save_adapter(folder)
      return outcomes
    except DoNotFit as error:
      logging.getLogger(__name__).warning("%s: trained one after the other", error)
  return list(each(train)(configs, folders))


def _save_adapter(folder: Path) -> None:
  try:
    finished.export(folder, "peft", folder / "adapter", overwrite=True)
  except UserError:  # full fine-tuning, or a method that Hugging Face PEFT does not have
    outputs.remove(folder / "adapter")


def step_flops(config: ConfigDict) -> float:
  """FLOPs of the matrix products in one update of a trial, on a batch of the greatest length; traced, not compiled."""
  config = copy.deepcopy(config)
  config.data.buckets = ()
  run = run_lib.resolve(config)
  traced = jax.jit(run.step()).trace(run.start(), run.frozen, next(run.loaders.train))
  return float(flops_of(traced.jaxpr))


def training_step(config: ConfigDict) -> Step:
  """A trial's own step, as its training compiled it, on its first batch over and over."""
  run = run_lib.resolve(config)
  batch = put_batch(run.mesh, next(run.loaders.train))
  state = run.start()
  compiled = CompiledStep(run.step(), run.mesh, state, run.frozen, lambda _: None)
  held = [state]

  def step() -> None:
    held[0], metrics = compiled(held[0], run.frozen, batch)
    jax.block_until_ready((held[0], metrics))

  return step
