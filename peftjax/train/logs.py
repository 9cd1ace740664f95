"""What a run tells: metrics.jsonl, timing.jsonl, what its writers write, and progress on stderr.

metrics.jsonl holds only what the config determines, so a run that was killed and resumed writes the same bytes as one
that was not. Whatever depends on the clock goes to timing.jsonl.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.train.display import Display
from peftjax.train.rows import Row, RowFile
from peftjax.train.run import Run
from peftjax.train.writers import Begun, Writers


class RunLog:
  """The files and the progress display of one run; silent in every process but the first.

  Args:
    folder: the run's.
    start: the step the run starts from; later rows of an earlier attempt are dropped.
    run: whose steps are logged.
    told: its config as ``config.json`` has it, for the writers.
    silent: writes and shows nothing.
    shown: whether it has a display of its own.
  """

  def __init__(
    self,
    folder: Path,
    start: int,
    run: Run,
    told: Mapping[str, Any],
    silent: bool = False,
    shown: bool = True,
  ):
    config = run.config.train
    self._silent = silent
    self._total = run.total_steps
    self._batch_size = config.batch_size
    self._inputs = run.loaders.inputs
    self._window: list[tuple[float, int]] = []  # seconds and places of the steps since the last timing row
    if silent:
      return
    last = start or -1  # a run that starts anew also evaluates step 0 anew
    self._metrics = RowFile(folder / "metrics.jsonl", last)
    self._timing = RowFile(folder / "timing.jsonl", last)
    self._writers = Writers(run.config, Begun(folder, start, told), self.say)
    self._display = Display(start, self._total, shown)

  def __enter__(self) -> RunLog:
    return self

  def __exit__(self, *error: object) -> None:
    if self._silent:
      return
    self._display.close()
    self._metrics.close()
    self._timing.close()
    self._writers.close(failed=error[0] is not None)

  def step_took(self, seconds: float, batch: Mapping[str, np.ndarray]) -> None:
    """Remembers the time of one step that nothing else (compiling, saving, evaluating) fell into."""
    self._window.append((seconds, self._inputs.places(batch)))

  def is_last(self, step: int) -> bool:
    """Whether a step is the run's last."""
    return step == self._total

  def progress(self, step: int, loss: float) -> None:
    """Moves the bar to a step; its rate is that of the steps since the last row."""
    if not self._silent:
      recent = [seconds for seconds, _ in self._window]
      self._display.update(step, loss, self._batch_size * len(recent) / sum(recent) if recent else None)

  def train_row(self, step: int, row: Row) -> None:
    """One row of training metrics, and the time of the steps since the last one."""
    if self._silent:
      return
    self._metrics.write({"step": step, **row})
    numbers = {f"train/{name}": value for name, value in _scalars(row)}
    if self._window:
      seconds = [one for one, _ in self._window]
      timing = {
        "step_seconds": round(statistics.median(seconds), 6),
        "examples_per_second": round(self._batch_size * len(seconds) / sum(seconds), 2),
      }
      if self._inputs.unit:
        places = sum(count for _, count in self._window)
        timing[f"{self._inputs.unit}s_per_second"] = round(places / sum(seconds), 1)
      self._timing.write({"step": step, **timing})
      numbers |= {f"timing/{name}": value for name, value in timing.items()}
      self._window.clear()
    self._writers.write(step, numbers)
    self._display.row(step, f"loss {row['loss']:.4f}")

  def evaluation_row(self, step: int, split: str, metrics: Mapping[str, float], final: bool = False) -> None:
    """One row of a split's metrics.

    Args:
      final: of the run's result, beside a row of the same step from when it was trained.
    """
    if self._silent:
      return
    self._metrics.write({"step": step, "split": split, **({"final": True} if final else {}), **metrics})
    prefix = "train_examples" if split == "train" else split  # "train" are the updates' own losses
    prefix = f"final/{prefix}" if final else prefix
    self._writers.write(step, {f"{prefix}/{name}": value for name, value in metrics.items()})
    self.say(f"step {step}: {split} " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))

  def say(self, text: str) -> None:
    """Shows a line on stderr, unless silent."""
    if not self._silent:
      self._display.say(text)


def _scalars(row: Row, prefix: str = "") -> Iterator[tuple[str, float]]:
  for name, value in row.items():
    if isinstance(value, Mapping):
      yield from _scalars(dict(value), f"{prefix}{name}/")
    elif isinstance(value, int | float):
      yield prefix + name, float(value)
