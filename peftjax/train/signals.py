"""Being asked to end: by SIGTERM (a scheduler, a cloud taking its machine back) or SIGINT (Ctrl-C)."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import jax

from peftjax.train.checkpoint import Checkpoints

PREEMPTED = 143  # the exit code: all is saved, and the same command goes on


class Preempted(SystemExit):
  """The run was asked to end, and saved its state."""


class EndRequests:
  """Notes the first SIGTERM or SIGINT inside its block; a second one acts as usual, at once."""

  def __init__(self) -> None:
    self._asked = False
    self._before: dict[int, Any] = {}

  def __enter__(self) -> EndRequests:
    # Python lets no other thread set handlers. Where several processes train, JAX's own handler of SIGTERM tells the
    # coordinator, and all of them end after the same step.
    if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *error: object) -> None:
    self._restore()

  def any(self, checkpoints: Checkpoints, step: int) -> bool:
    """Whether to save after `step` and end; all processes of a run get the same answer."""
    return self._asked if jax.process_count() == 1 else checkpoints.reached_preemption(step)

  def _note(self, number: int, frame: FrameType | None) -> None:
    del number, frame
    self._asked = True
    self._restore()

  def _restore(self) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}
