from __future__ import annotations

import numpy as np
import pytest

from peftjax.train import timing


def test_every_row_takes_every_round_in_turns():
  calls: list[str] = []
  steps = {name: (lambda name=name: calls.append(name)) for name in ("full", "lora", "ia3")}
  taken = timing.interleaved(steps, "full", rounds=6, warmup=2)
  counted = calls[6:]
  assert all(set(counted[start : start + 3]) == set(steps) for start in range(0, 18, 3))
  assert len({tuple(counted[start : start + 3]) for start in range(0, 18, 3)}) > 1
  assert taken.rounds == 6 and len(taken.rows["lora"].seconds) == 6


def test_a_slow_spell_of_the_machine_does_not_move_the_ratio():
  spell = [1.0] * 10 + [7.0] * 10
  rows = timing.timing_of({"full": [0.2 * s for s in spell], "lora": [0.1 * s for s in spell]}, "full").rows
  assert rows["lora"].ratio == pytest.approx(0.5)
  assert rows["lora"].ratio_low == pytest.approx(0.5) == rows["lora"].ratio_high
  assert rows["full"].ratio == 1.0


def test_median_intervals_cover():
  rng = np.random.default_rng(0)
  found = [timing.median_interval(rng.exponential(size=20)) for _ in range(3000)]
  covered = np.mean([low <= np.log(2) <= high for low, _, high in found])
  assert 0.945 <= covered <= 0.98
