"""What a run shows on stderr."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
  """A progress bar where stderr is a terminal, a line now and then elsewhere; nothing at all unless `shown`."""

  def __init__(self, start: int, total: int, shown: bool = True):
    self._shown = shown
    self._console = Console(stderr=True, soft_wrap=True)
    self._total = total
    self._last_line = time.monotonic()
    self._bar: Progress | None = None
    if shown and self._console.is_terminal:
      columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
      self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
      self._bar.start()
      self._task = self._bar.add_task("", total=total, completed=start, text="")

  def update(self, step: int, loss: float, rate: float | None) -> None:
    """Moves the bar to a step, with its loss and the rate in examples a second."""
    if self._bar is not None:
      shown = f"loss {loss:.4f}" + (f", {rate:.1f} examples/s" if rate else "")
      self._bar.update(self._task, completed=step, text=shown)

  def row(self, step: int, text: str, every: float = 5.0) -> None:
    """A line about a step where there is no bar, unless the last one was less than `every` seconds ago."""
    if self._bar is None and (step == self._total or time.monotonic() - self._last_line >= every):
      self._last_line = time.monotonic()
      self.say(f"step {step} of {self._total}: {text}")

  def say(self, text: str) -> None:
    """Shows a line, above the bar where there is one."""
    if not self._shown:
      return
    if self._bar is not None:
      self._console.print(text, highlight=False, markup=False)
    else:
      print(text, file=sys.stderr, flush=True)

  def close(self) -> None:
    """Takes the bar away."""
    if self._bar is not None:
      self._bar.stop()
