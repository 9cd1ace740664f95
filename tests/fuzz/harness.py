"""Runs code on inputs that nobody meant it for, under limits of time and memory, and says how each ended.

    def test_rows(fuzz):
      fuzz("rows of data files", strategies.binary(), read_rows, count=400)

An input may be taken ("ok") or refused with a `UserError` of one line ("refused"). Everything else fails the test and
shows the smallest such input that hypothesis finds: a traceback, more than two seconds of processor time, more than
1 GB. How many inputs each kind saw is printed at the end of the run (`tests/conftest.py`).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gc
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
from hypothesis import strategies

from peftjax.errors import UserError

OK, REFUSED, TRACEBACK, SLOW, LARGE = "ok", "refused", "traceback", "slow", "large"
_PATIENCE = 60.0  # seconds of wall time after which an input that waits, without working, counts as slow


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How an input ended: `kind`, and what was said or where it broke."""

  kind: str
  detail: str = ""

  @property
  def is_good(self) -> bool:
    return self.kind in (OK, REFUSED)


class _TooLong(BaseException):
  """Not an Exception, so that code which catches those does not hide it."""


def outcome_of(act: Callable[[], Any], seconds: float = 2.0, megabytes: int = 1024) -> Outcome:
  """Runs `act` once in this process.

  Args:
    act: what is tried.
    seconds: of this thread's processor time, so that a busy machine, what earlier tests left running and the
      collection of their garbage change nothing. Work in other threads is bounded by the wall time alone.
    megabytes: of address space beyond what the process has already.
  """
  try:
    with _uncollected(), _limited(seconds, megabytes):
      _acting(act)
  except UserError as error:
    return Outcome(REFUSED, str(error)) if str(error) else Outcome(TRACEBACK, "a UserError that says nothing")
  except _TooLong:
    return Outcome(SLOW, f"more than {seconds} s")
  except MemoryError:
    return Outcome(LARGE, f"more than {megabytes} MB")
  except SystemExit as error:
    return Outcome(REFUSED) if error.code == 2 else Outcome(TRACEBACK, f"SystemExit({error.code!r})")
  except Exception as error:
    return Outcome(TRACEBACK, _place(error))
  return Outcome(OK)


def _place(error: Exception) -> str:
  frames = traceback.extract_tb(error.__traceback__)
  ours = [frame for frame in frames if "/peftjax/" in frame.filename] or frames
  return f"{type(error).__name__}: {str(error)[:200]} at {ours[-1].filename}:{ours[-1].lineno}"


def _acting(act: Callable[[], Any]) -> None:
  act()


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
  """Without garbage collection: a worker of a long run has millions of objects to look through."""
  collecting = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if collecting:
      gc.enable()


@contextlib.contextmanager
def _limited(seconds: float, megabytes: int) -> Iterator[None]:
  start = time.thread_time()

  def stop(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGPROF and time.thread_time() - start < seconds:
      return  # others of this process used it
    while frame is not None:  # nowhere else, where it could keep the limits from being lifted
      if frame.f_code is _acting.__code__:
        raise _TooLong()
      frame = frame.f_back

  pages = int(Path("/proc/self/statm").read_text().split()[0])
  soft, hard = resource.getrlimit(resource.RLIMIT_AS)
  room = pages * resource.getpagesize() + megabytes * 2**20
  before = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
  resource.setrlimit(resource.RLIMIT_AS, (room if hard == resource.RLIM_INFINITY else min(room, hard), hard))
  signal.setitimer(signal.ITIMER_PROF, seconds, 0.1)  # again and again, for code that swallows the first
  signal.setitimer(signal.ITIMER_REAL, max(_PATIENCE, seconds), 0.1)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    for number, handler in before.items():  # a last one may still be on its way, and by default it ends the process
      signal.signal(number, signal.SIG_IGN if handler is signal.SIG_DFL else handler)


class Tally:
  """Counts of inputs by kind and outcome."""

  def __init__(self) -> None:
    self.counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    self.slowest: dict[str, float] = collections.defaultdict(float)

  def __call__(
    self,
    kind: str,
    inputs: strategies.SearchStrategy[Any],
    act: Callable[[Any], Any],
    count: int,
    seconds: float = 2.0,
    megabytes: int = 1024,
  ) -> collections.Counter[str]:
    """Tries `act` on `count` inputs, the same ones every time; raises AssertionError for the smallest bad one."""

    @hypothesis.settings(
      max_examples=count,
      deadline=None,
      database=None,
      derandomize=True,
      suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(inputs)
    def one(value: Any) -> None:
      with _uncollected():
        start = time.thread_time()
        found = outcome_of(lambda: act(value), seconds, megabytes)
        self.slowest[kind] = max(self.slowest[kind], time.thread_time() - start)
      self.counts[kind][found.kind] += 1
      assert found.is_good, f"{found.kind}: {found.detail}"

    one()
    return self.counts[kind]

  def line(self, kind: str) -> str:
    """One line for the end of the run."""
    found = self.counts[kind]
    parts = ", ".join(f"{number:,} {name}" for name, number in sorted(found.items()))
    return f"fuzzed {kind}: {sum(found.values()):,} inputs ({parts}), at most {self.slowest[kind]:.1f} s each"
