"""Being asked to end: by SIGTERM (a scheduler, a cloud taking its machine back) or SIGINT (Ctrl-C)."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, ClassVar

import jax

from peftjax.train.checkpoint import Checkpoints

PREEMPTED = 143  # the exit code: all is saved, and the same command goes on


class Preempted(SystemExit):
  """The run was asked to end, and saved its state."""


class EndRequests:
  """Notes the first SIGTERM or SIGINT inside its block; a second one acts as usual, at once.

  Blocks may stand inside each other: a request is noted in all of them, so that one which came too late for a run to
  end early still ends the study around it.
  """

  _open: ClassVar[list[EndRequests]] = []

  def __init__(self) -> None:
    self.asked = False
    self._before: dict[int, Any] = {}

  def __enter__(self) -> EndRequests:
    self.asked = any(one.asked for one in self._open)
    self._open.append(self)
    # Python lets no other thread set handlers. Where several processes train, JAX's own handler of SIGTERM tells the
    # coordinator, and all of them end after the same step.
    settable = threading.current_thread() is threading.main_thread() and jax.process_count() == 1
    if settable and not self.asked:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *error: object) -> None:
    self._open.remove(self)
    self._restore()

  def any(self, checkpoints: Checkpoints, step: int) -> bool:
    """Whether to save after `step` and end; all processes of a run get the same answer."""
    return self.asked if jax.process_count() == 1 else checkpoints.reached_preemption(step)

  def _note(self, number: int, frame: FrameType | None) -> None:
    del number, frame
    for one in reversed(self._open):  # the innermost first, whose handlers are the last set
      one.asked = True
      one._restore()

  def _restore(self) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}
