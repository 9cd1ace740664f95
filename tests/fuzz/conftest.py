"""The fixture that fuzz tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.fuzz.harness import Tally


@pytest.fixture
def fuzz(record_property: Callable[[str, object], None]) -> Iterator[Tally]:
  """Tries inputs and leaves a line for the end of the run."""
  tally = Tally()
  yield tally
  for kind in tally.counts:
    record_property("counted", tally.line(kind))
