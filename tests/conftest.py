"""What every test runs under: the CPU, and no model hub."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # oracles build their models from configs, never from a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Most of the suite's time is code generation for tiny programs; the HLO, its FLOPs and its buffers stay as they are.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import pytest

from tests import pace


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Marks the cases that `tests/pace.py` leaves to the slow run."""
  for item in items:
    call = getattr(item, "callspec", None)
    test = item.nodeid.partition("tests/")[2].partition("[")[0]
    if call is not None and not pace.is_quick(test, call.id):
      item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
  """Prints what tests counted (`record_property("counted", line)`): inputs of the fuzz suite, settings of oracles."""
  reports = [one for found in terminalreporter.stats.values() for one in found if isinstance(one, pytest.TestReport)]
  for line in sorted({str(line) for one in reports for name, line in one.user_properties if name == "counted"}):
    terminalreporter.write_line(line)
