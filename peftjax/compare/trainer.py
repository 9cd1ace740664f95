"""What a study asks of training, in one protocol; `peftjax.compare.training.JaxTrainer` is the one that trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ml_collections import ConfigDict

from peftjax.train.timing import Step

if TYPE_CHECKING:
  from peftjax.compare.dimensions.base import Dimension

Measured = dict[str, Any] | None | Exception  # None where there is nothing to measure
RunOutcome = Mapping[str, Any] | Exception  # a run's summary, or why it has none


class Trainer(Protocol):
  """Builds, trains and measures trials; each is given as its config and its folder."""

  def check(self, config: ConfigDict) -> None:
    """Raises `UserError` where a trial cannot be built; reads neither weights nor data."""

  def train(self, configs: Sequence[ConfigDict], folders: Sequence[Path]) -> Sequence[RunOutcome]:
    """Trains some runs, or goes on with them; the outcome of each, in their order."""

  def step(self, config: ConfigDict) -> Step:
    """A trial's bare training step, for the clock."""

  def step_flops(self, config: ConfigDict) -> float:
    """FLOPs of one update, on a batch of the greatest length."""

  def measure(
    self, dimensions: Sequence[Dimension], config: ConfigDict, folder: Path, study: Mapping[str, Any]
  ) -> Iterable[Measured]:
    """What each dimension measures of a trained trial, one after the other.

    Args:
      study: the section `compare` of the study's config.
    """
