"""The harness tells the five outcomes apart."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time

import pytest
from hypothesis import strategies

from peftjax.errors import UserError
from tests.fuzz.harness import LARGE, OK, REFUSED, SLOW, TRACEBACK, outcome_of


def refuse():
  raise UserError("no")


def work():
  while True:
    pass


def swallow():
  with contextlib.suppress(Exception):
    work()


@pytest.mark.parametrize(
  ("act", "kind"),
  [
    (lambda: 1, OK),
    (refuse, REFUSED),
    (lambda: 1 / 0, TRACEBACK),
    (work, SLOW),
    (swallow, SLOW),
    (lambda: re.fullmatch(r"((a+)+)+!", "a" * 40), SLOW),
    (lambda: bytearray(2**31), LARGE),
  ],
  ids=["ok", "refused", "traceback", "works without end", "catches what it can", "pattern without end", "large"],
)
def test_outcomes(act, kind):
  assert outcome_of(act, seconds=0.3).kind == kind


def test_limits_end_with_the_input():
  assert outcome_of(lambda: None, seconds=0.1, megabytes=64).kind == OK
  signal.raise_signal(signal.SIGPROF)  # one that comes late does not end the process
  until = time.process_time() + 0.3
  while time.process_time() < until:
    pass
  assert len(bytearray(2**27)) == 2**27


def test_what_other_threads_use_is_not_the_inputs():
  ended = threading.Event()

  def others():
    while not ended.is_set():
      sum(range(1000))

  thread = threading.Thread(target=others)
  thread.start()
  start = time.process_time()
  try:
    assert outcome_of(lambda: time.sleep(0.8), seconds=0.2).kind == OK
  finally:
    ended.set()
    thread.join()
  assert time.process_time() - start > 0.2  # so that there was something to count


def test_a_bad_input_is_found_and_made_small(fuzz):
  with pytest.raises(AssertionError, match="ZeroDivisionError") as caught:
    fuzz("numbers", strategies.integers(0, 1000), lambda value: 1 // (value // 100 - 1), count=500)
  assert "100" in "".join(caught.value.__notes__)
  counts = fuzz("numbers", strategies.integers(0, 9), lambda value: refuse() if value > 4 else value, count=50)
  assert counts[OK] > 0 and counts[REFUSED] > 0
