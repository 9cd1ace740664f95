"""Random tiny configs of every family against transformers: equal outputs, or refused in one line."""

from __future__ import annotations

import collections

import pytest

from tests.oracles.config_draws import FAMILIES
from tests.oracles.config_draws_senses import SENSES
from tests.oracles.random_configs import run_case

QUICK, MANY = 2, 300


def _counted(family: str, seeds: range) -> collections.Counter[str]:
  return collections.Counter(run_case(family, seed)[0] for seed in seeds)


@pytest.mark.parametrize("family", [*FAMILIES, *SENSES])
def test_a_random_config_is_equal_or_refused(family):
  assert _counted(family, range(QUICK)).total() == QUICK


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, *SENSES])
def test_many_random_configs_are_equal_or_refused(family, record_property):
  counts = _counted(family, range(QUICK, QUICK + MANY))
  record_property("counted", f"{family}: {dict(sorted(counts.items()))} of {MANY} random configs")
  assert counts["equal"] > MANY / 2
