"""Leases: one owner at a time, dead owners replaced, and real processes that divide a study between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from peftjax import leases
from peftjax.errors import UserError
from peftjax.leases import Leases

ROOT = Path(__file__).parents[2]


def test_one_owner_at_a_time_and_the_next_after_it(tmp_path):
  one, other = Leases(tmp_path), Leases(tmp_path)
  with one.take("lora/seed-0") as lease:
    assert lease is not None and other.take("lora/seed-0") is None
    assert other.take("lora/seed-1") is not None
  assert other.take("lora/seed-0") is not None
  assert [path.name for path in sorted((tmp_path / "leases").glob("lora-seed-0.*"))] == ["lora-seed-0.0002"]


def test_many_threads_and_one_winner(tmp_path):
  owners, barrier = [], threading.Barrier(8)

  def race():
    leases = Leases(tmp_path)
    barrier.wait()
    owners.append(leases.take("a"))

  threads = [threading.Thread(target=race) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sum(owner is not None for owner in owners) == 1


def test_a_silent_owner_of_another_host_is_given_up_and_a_living_one_is_not(tmp_path):
  here = Leases(tmp_path, patience=1.5)
  assert Leases(tmp_path, host="silent").take("a") is not None  # it never beats: its block is never entered
  assert here.take("a") is None
  with Leases(tmp_path, patience=0.3, host="living").take("b"):
    assert here.take("b") is None
    time.sleep(2.0)
    assert here.take("a") is not None
    assert here.take("b") is None


def test_an_owner_that_was_given_up_leaves_the_next_one_alone(tmp_path):
  here = Leases(tmp_path, patience=0.05)
  slow = Leases(tmp_path, patience=1000.0, host="slow").take("a")
  with slow:
    here.take("a")
    time.sleep(0.1)
    mine = here.take("a")
    assert mine is not None
  assert json.loads(mine.path.read_text()).get("ended") is None
  assert Leases(tmp_path).take("a") is None


def test_other_work_of_the_same_name_is_refused_while_its_owner_lives(tmp_path):
  here = Leases(tmp_path, patience=1.5)
  assert Leases(tmp_path, host="silent").take("a", "one") is not None  # it never beats
  assert here.take("a", "two") is None  # it may have died long ago
  with Leases(tmp_path, patience=0.3, host="living").take("b", "one"), Leases(tmp_path).take("c d", "one") as mine:
    assert here.take("b", "one") is None
    assert here.take("c.d", "two") is None  # another name whose file is called the same
    with pytest.raises(UserError, match=rf"process {mine.state['process']} of \S+ works on c d of another config"):
      here.check({"e": "two", "c d": "two"})
    time.sleep(1.7)
    with pytest.raises(UserError, match="of living works on b of another config"):
      here.take("b", "two")
  assert here.take("a", "two") is not None and here.take("b", "two") is not None
  assert here.take("c d", "two") is not None


def test_a_half_written_lease_counts_as_taken_for_a_while(tmp_path):
  here = Leases(tmp_path, patience=1.0)
  assert here.started > 0
  (tmp_path / "leases/a.0001").write_text("")
  assert here.take("a") is None
  time.sleep(1.2)
  assert here.take("a") is not None


def test_what_raises_ends_its_lease(tmp_path):
  def fail():
    with Leases(tmp_path).shared(["a"], str) as items:
      for _ in items:
        raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt) as kept:
    fail()
  assert kept.value is not None and Leases(tmp_path).take("a") is not None


def test_failures_of_others_are_told_from_older_ones(tmp_path):
  path = tmp_path / "error.txt"
  path.write_text("Traceback\nRuntimeError: no memory\n")
  os.utime(path, (1, 1))
  leases = Leases(tmp_path)
  assert leases.failed_since(path) is None and leases.failed_since(tmp_path / "none") is None
  path.write_text("Traceback\nRuntimeError: no memory\n")
  os.utime(path, (leases.started + 5, leases.started + 5))
  assert leases.failed_since(path) == "RuntimeError: no memory"


WORKER = """
import sys, time
from pathlib import Path
from peftjax.leases import Leases
folder, slow = Path(sys.argv[1]), float(sys.argv[2])
with Leases(folder, patience=30.0).shared(list("abcdefgh"), str, poll=0.02) as items:
  for item in items:
    if not (folder / item).exists():
      print(item, flush=True)
      time.sleep(slow)
      (folder / item).write_text(item)
"""


def test_processes_divide_the_work_and_replace_one_that_is_killed(tmp_path):
  start = [sys.executable, "-c", WORKER, str(tmp_path)]
  stuck = subprocess.Popen([*start, "1000"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
  assert stuck.stdout.readline() == "a\n"
  others = [subprocess.Popen([*start, "0.05"], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
  while len(list(tmp_path.glob("?"))) < 7:
    time.sleep(0.02)
    assert all(other.poll() is None for other in others)  # none ends before all is done
  stuck.kill()
  stuck.wait()
  done = [other.communicate(timeout=300)[0].split() for other in others]
  assert sorted(done[0] + done[1]) == list("abcdefgh")  # each once; the killed one's at once, long before 30 s


def test_processes_are_known_by_their_start():
  assert leases._since(os.getpid()) and not leases._since(2**22 + 1)
