"""What every test runs under: the CPU, and no model hub."""

from __future__ import annotations

import collections
import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # oracles build their models from configs, never from a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Most of the suite's time is code generation for tiny programs; the HLO, its FLOPs and its buffers stay as they are.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false",
)

import jax
import pytest

from tests import pace

_STATM = Path("/proc/self/statm")
_ROOM = 2**31  # bytes that a process may hold between two files of tests


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
  """Marks the cases that `tests/pace.py` leaves to the slow run; a case that it names must be there."""
  found: dict[str, set[str]] = collections.defaultdict(set)
  for item in items:
    call = getattr(item, "callspec", None)
    test = item.nodeid.partition("tests/")[2].partition("[")[0]
    if call is not None:
      found[test].add(call.id)
      if not pace.is_quick(test, call.id):
        item.add_marker(pytest.mark.slow)
  if not any("::" in argument for argument in config.args):  # whole files were collected
    for test in found.keys() & pace.QUICK.keys():
      if missing := set(pace.QUICK[test]) - found[test]:
        raise pytest.UsageError(f"tests/pace.py: {test} has no case {', '.join(sorted(missing))}")


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory() -> Iterator[None]:
  """Drops the programs compiled so far once they are many: over the whole suite they come to more than 10 GB."""
  yield
  if sys.platform == "linux" and int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > _ROOM:
    jax.clear_caches()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # back to the system


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
  """Prints what tests counted (`record_property("counted", line)`): inputs of the fuzz suite, settings of oracles."""
  reports = [one for found in terminalreporter.stats.values() for one in found if isinstance(one, pytest.TestReport)]
  for line in sorted({str(line) for one in reports for name, line in one.user_properties if name == "counted"}):
    terminalreporter.write_line(line)
