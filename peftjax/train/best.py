"""The best evaluation of a run so far, and when there is no use in going on.

    train.best=validation            the split's main metric decides; validation/loss, of the split this metric
    train.patience=3                 ends the run after three evaluations of which none was better
    train.min_delta=0.001            "better" is better by more than this
    train.result=best                the best checkpoint is the run's result: it is scored, predicts, is exported

The best checkpoint stays whatever `train.keep` says. What is known of the evaluations is saved with every checkpoint,
as it was before that step's own evaluation, which a run that goes on does again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from ml_collections import ConfigDict

from peftjax.errors import UserError, nearest
from peftjax.files import read_json, write_text
from peftjax.tasks import Metric

FILE = "best.json"

Which = Literal["last", "best"]
WHICH: tuple[str, ...] = get_args(Which)


class Found(NamedTuple):
  """The evaluations so far: the step of the best one (0: none yet), its value, how many have followed it."""

  step: int = 0
  value: float = math.nan
  since: int = 0


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What is best.

  Attributes:
    split: which evaluations decide.
    metric: of it.
    least: by how much a value must be better than the best one.
    patience: evaluations that may follow the best one; 0: any number.
  """

  split: str
  metric: Metric
  least: float = 0.0
  patience: int = 0

  def after(self, found: Found, step: int, value: float) -> Found:
    """What is known after one more evaluation; one that is not finite is never the best."""
    gain = self.metric.direction * (value - found.value)
    if math.isfinite(value) and (found.step == 0 or gain > self.least):
      return Found(step, float(value))
    return found._replace(since=found.since + 1)

  def is_over(self, found: Found) -> bool:
    """Whether so many evaluations were no better that the run is to end."""
    return 0 < self.patience <= found.since

  def __str__(self) -> str:
    return f"{self.split}/{self.metric.name}"


def check(config: ConfigDict) -> None:
  """Raises `UserError` for settings of `config.train` that need others."""
  train = config.train
  for field, asks in (("patience", train.patience > 0), ("min_delta", train.min_delta > 0),
                      ("result", train.result == "best")):  # fmt: skip
    if asks and not train.best:
      raise UserError(f"train.{field}={train[field]}: say what is best, such as train.best=validation")
  if train.best and not train.eval_every:
    raise UserError(f"train.best={train.best}: no evaluation would decide; set train.eval_every")


def wanted(config: ConfigDict, specs: Mapping[str, Metric], main: str, splits: tuple[str, ...]) -> Wanted | None:
  """What a run takes for its best; None if nothing.

  Args:
    specs: the metrics of the run's evaluations by name; main: the one that stands for the task.
    splits: that are evaluated during training.

  Raises:
    UserError: another split, or no such metric.
  """
  if not config.train.best:
    return None
  split, _, name = config.train.best.partition("/")
  if split not in splits:
    raise UserError(f"train.best={config.train.best}: no split {split!r} is evaluated in training; "
                    f"{nearest(split, splits)}")  # fmt: skip
  if (name or main) not in specs:
    raise UserError(f"train.best={config.train.best}: no metric {name!r}; {nearest(name, specs)}")
  return Wanted(split, specs[name or main], config.train.min_delta, config.train.patience)


class BestSoFar:
  """Follows the evaluations of one run.

  Args:
    wanted: what is best; None: nothing is followed.
    folder: the run's; None in a process that writes nothing.
  """

  def __init__(self, wanted: Wanted | None, folder: Path | None):
    self._wanted, self._folder = wanted, folder
    self._now, self._before, self._at = Found(), Found(), 0

  @property
  def wanted(self) -> Wanted | None:
    """What is best; None if nothing is followed."""
    return self._wanted

  @property
  def step(self) -> int:
    """Of the best evaluation; 0: none yet."""
    return self._now.step

  @property
  def is_over(self) -> bool:
    """Whether the run is to end early."""
    return self._wanted is not None and self._wanted.is_over(self._now)

  def evaluated(self, step: int, metrics: Mapping[str, Mapping[str, float]]) -> bool:
    """Takes the evaluations of a step, {split: {name: value}}; returns whether it is the best so far."""
    if self._wanted is None or step == 0 or self._wanted.split not in metrics:
      return False
    self._before, self._at = self._now, step
    self._now = self._wanted.after(self._now, step, metrics[self._wanted.split][self._wanted.metric.name])
    return self._now.step == step

  def knows(self, step: int) -> bool:
    """Whether the last evaluation was of this step."""
    return self._at == step

  def note(self) -> None:
    """Writes ``best.json``, once the best step's checkpoint is being saved."""
    if self._wanted is not None and self._folder is not None:
      if self._now.step:
        write_text(self._folder / FILE, json.dumps(self.shown()) + "\n")
      else:
        (self._folder / FILE).unlink(missing_ok=True)

  def shown(self) -> dict[str, Any] | None:
    """{"step", "split", "metric", "value"} of the best evaluation; None without one."""
    if self._wanted is None or not self._now.step:
      return None
    where = {"split": self._wanted.split, "metric": self._wanted.metric.name}
    return {"step": self._now.step, **where, "value": self._now.value}

  def saved(self, step: int) -> dict[str, Any]:
    """What a checkpoint of a step keeps of it, beside the position in the data."""
    if self._wanted is None:
      return {}
    known = self._before if self._at == step else self._now
    return {"best": {"step": known.step, "value": known.value if known.step else None, "since": known.since}}

  def restore(self, position: Mapping[str, Any]) -> None:
    """Goes on from what a checkpoint has kept.

    Raises:
      UserError: it has kept nothing, or nothing that can be.
    """
    if self._wanted is None:
      return
    saved: Any = position.get("best")
    try:
      found = Found(int(saved["step"]), math.nan if saved["value"] is None else float(saved["value"]),
                    int(saved["since"]))  # fmt: skip
    except (TypeError, KeyError, ValueError):
      raise UserError(
        "the checkpoint does not say which evaluation was the best: expected a step and a value"
      ) from None
    self._now = self._before = found


def best_step(folder: Path) -> int:
  """The step of a run's best checkpoint.

  Raises:
    UserError: the run has none.
  """
  path = folder / FILE
  if not path.is_file():
    raise UserError(f"{folder} has no best checkpoint: train with train.best=validation, or another split, to have one")
  step = read_json(path).get("step")
  if not isinstance(step, int) or isinstance(step, bool) or step < 1:
    raise UserError(f'{path}: expected a whole number as "step", got {step!r}')
  return step
