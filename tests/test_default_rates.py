"""The default learning rates are those that the kept studies give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments import default_rates
from peftjax import methods
from peftjax.methods.base import NEW_HEAD_RATE


def test_the_methods_have_them_and_the_page_shows_them():
  found = default_rates.defaults()
  assert found["beside"][0] == NEW_HEAD_RATE
  for name in ("full", "bitfit", "lora", "ia3", "houlsby"):
    assert methods.METHODS[name].learning_rate == found[name][0], name
  page = Path("docs/learning_rates.md").read_text(encoding="utf-8")
  rows = default_rates.table().splitlines()[2:]
  for name, row in zip(found, rows):
    if name != "head":  # whose rate is the head's
      assert row.partition(" | ")[2] in page, row


def test_a_loss_between_rates_and_the_rule():
  curve = [(1e-3, 60.0), (1e-2, 70.0), (1e-1, 50.0)]
  loss = default_rates.losses(curve)
  assert loss(1e-2) == 0 and loss(10**-2.5) == pytest.approx(5.0) and np.isnan(loss(1.0))
  assert default_rates.chosen([curve]) == (1e-2, 0.0)
  flat = [(1e-3, 69.0), (1e-2, 70.0), (1e-1, 50.0)]
  assert default_rates.chosen([flat])[0] == 1e-3  # the lowest within the error
