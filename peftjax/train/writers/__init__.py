"""Writers: where the numbers of a run go beside metrics.jsonl, one file a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from peftjax.errors import UserError
from peftjax.train.faults import first_line
from peftjax.train.writers.base import Begun, Writer, chosen, options_of

__all__ = ["WRITERS", "Begun", "Writer", "Writers", "check"]

# config.train.writers -> class
WRITERS: dict[str, str] = {
  "csv": "peftjax.train.writers.csv_table:CsvTable",
  "mlflow": "peftjax.train.writers.mlflow_run:MlflowRun",
  "tensorboard": "peftjax.train.writers.tensorboard:TensorBoard",
  "wandb": "peftjax.train.writers.wandb_run:WandbRun",
}


def check(config: ConfigDict) -> None:
  """Raises `UserError`, before anything is loaded, for a writer that there is not or that lacks its package."""
  chosen(config, WRITERS)


class Writers:
  """The writers of a run. Use as a context manager.

  Args:
    config: says which.
    begun: the run.
    say: shows a line.

  Raises:
    UserError: one cannot be opened.
  """

  def __init__(self, config: ConfigDict, begun: Begun, say: Callable[[str], None]):
    self._say = say
    self._open: list[Writer] = []
    for name, kind in chosen(config, WRITERS).items():
      try:
        self._open.append(kind(begun, options_of(kind, config)))
      except UserError:
        self.close(failed=True)
        raise
      except Exception as error:  # of a service, or of the user's own program
        self.close(failed=True)
        raise UserError(f"train.writers: {name} cannot begin: {first_line(error)}") from None

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Gives the numbers of a step to all; one whose service fails is left out from then on, and a line says so."""
    self._each("write", step, values)

  def close(self, failed: bool) -> None:
    """Brings everything to where it stays, unless the run has failed, and ends them."""
    try:
      if not failed:
        self._each("flush")
    finally:
      self._each("close", failed)
      self._open.clear()

  def _each(self, what: str, *arguments: Any) -> None:
    for one in list(self._open):
      try:
        getattr(one, what)(*arguments)
      except UserError:
        raise
      except Exception as error:
        self._open.remove(one)
        self._say(f"{one.name}: {first_line(error)}; the run goes on without it, and metrics.jsonl has all numbers")
