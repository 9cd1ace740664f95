"""Processes that are told what to do line by line and answer each line with one of JSON."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftjax import huge_pages

ROOT = Path(__file__).parents[2]
FAILURES = (RuntimeError, queue.Empty, BrokenPipeError)


class Process:
  """A Python module that runs beside this process.

  Args:
    module: its name.
    arguments: of its command line.
    log: what takes its standard error.
  """

  def __init__(self, module: str, arguments: Sequence[str], log: Any):
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    set_here = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": paths}
    set_here[huge_pages.TUNABLES] = f"{huge_pages.ASKED}=1"  # as `train` runs; peers get them too
    self._process = subprocess.Popen(
      [sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
      cwd=ROOT, env={**os.environ, **set_here},
    )  # fmt: skip
    self._lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=self._read, daemon=True).start()

  def _read(self) -> None:
    assert self._process.stdout is not None
    for line in self._process.stdout:
      self._lines.put(line)
    self._lines.put("")

  def answer(self, seconds: float) -> dict[str, Any]:
    """The next answer.

    Raises:
      RuntimeError: the process ended. queue.Empty: it took longer than `seconds`.
    """
    line = self._lines.get(timeout=seconds)
    if not line:
      raise RuntimeError(f"the process ended with code {self._process.wait()}")
    found: dict[str, Any] = json.loads(line)
    return found

  def ask(self, text: str, seconds: float) -> dict[str, Any]:
    """Tells the process something, and waits for its answer."""
    assert self._process.stdin is not None
    self._process.stdin.write(text + "\n")
    self._process.stdin.flush()
    return self.answer(seconds)

  def end(self) -> None:
    """Ends it."""
    self._process.kill()
    self._process.wait()


def log_of(path: str) -> Any:
  """The file that takes what processes print, or nothing that does."""
  return Path(path).open("a") if path else subprocess.DEVNULL
