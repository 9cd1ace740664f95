"""The protocol of an evaluator: what is scored on a split, when, and what is kept of every example."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from ml_collections import ConfigDict

from peftjax.config.checking import own_settings
from peftjax.data.loader import EvalLoader
from peftjax.masks import Tree
from peftjax.tasks import Metric

if TYPE_CHECKING:
  from peftjax.train.run import Run

# Before the first update, between updates, after the last one, and by `peftjax eval`
Moment = Literal["before", "during", "after", "eval"]


class Leaves(NamedTuple):
  """A model's parameters, divided: the trainable and the frozen tree, and the updates that they have had."""

  trainable: Tree
  frozen: Tree
  step: int = 0


class Evaluated(NamedTuple):
  """Metric name -> value, and what was found of every example, as the evaluator's `save` writes it."""

  metrics: dict[str, float]
  rows: Any


class Evaluator:
  """One way to score a model on a split. `run` says what; the rest has defaults.

  Attributes:
    name: in `config.train.evaluators` and as a section of `config.evaluators`.
    settings: fields of that section -> their defaults.
    moments: when it runs, some of "before" (the first update, by `train.eval_first`), "during", "after" and "eval".
    specs: of the metrics that it gives, none of a name that the task or another evaluator has.
    of: the run whose model and task these are; of many in one program, the widest.
    options: the settings with what the config says.
  """

  name: ClassVar[str]
  settings: ClassVar[Mapping[str, Any]] = {}
  moments: ClassVar[tuple[Moment, ...]] = ("before", "after", "eval")
  specs: tuple[Metric, ...] = ()

  def __init__(self, of: Run):
    self.of, self.options = of, self.options_of(of.config)

  @classmethod
  def options_of(cls, config: ConfigDict) -> ConfigDict:
    """The settings with what the config says.

    Raises:
      UserError: a field that there is not, or one of another type than its default.
    """
    return own_settings(f"evaluators.{cls.name}", config.evaluators.get(cls.name, {}), cls.settings, cls)

  def takes(self, loader: EvalLoader) -> bool:
    """Whether a split can be scored at all; one that cannot is left out in silence."""
    del loader
    return True

  def check(self, loader: EvalLoader) -> None:
    """Raises `UserError`, before the first update, for what would fail after the last."""

  def run(self, leaves: Leaves, loader: EvalLoader) -> Evaluated:
    """Scores the model with these leaves on a split."""
    raise NotImplementedError

  def save(self, folder: Path, split: str, moment: Moment, rows: Any) -> None:
    """Writes what is kept of the examples into the run's folder."""
