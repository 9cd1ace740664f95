"""Kept plans against the models' shapes once more, and the verdicts that rest on them."""

from __future__ import annotations

import pytest

from experiments import plans as making
from peftjax.compare import claims, plans

KEPT = plans.kept()


@pytest.mark.parametrize("kept", KEPT["t0_3b"], ids=lambda one: f"{one['method']}-{one['precision']}-{one['remat']}")
def test_each_step_of_t0_3b_takes_what_was_kept(kept, tmp_path):
  method = {"lora": making.LORA, "full": {"name": "full"}}[kept["method"]]
  again = making.t0_step(tmp_path, method, kept["precision"], kept["remat"])
  assert {"method": kept["method"], **again} == kept


def test_weights_gradients_and_moments_of_full_fine_tuning_are_four_times_the_published_count():
  full = next(one for one in KEPT["t0_3b"] if one["method"] == "full")
  parts = full["arguments"]
  assert parts["adapter"] == parts["gradients"] == 4 * 2_849_757_184  # memory_anchors.json: t5v11_xl_total
  assert parts["optimizer"] == pytest.approx(8 * 2_849_757_184, rel=1e-6)


@pytest.mark.slow
def test_the_7b_steps_compile_to_what_was_kept(tmp_path):
  for name, found in making.llama(tmp_path).items():
    assert found["total"] == pytest.approx(KEPT["llama_7b"][name]["total"], rel=0.02)


def test_verdicts_follow_the_bytes(monkeypatch):
  summary = {"rows": [], "reference": None, "metric": "accuracy", "margin": 0.01}
  names = ("memory-3x", "t0-3b-on-2080ti", "checkpointing-11gb", "adapter-mb")

  def verdicts():
    return {one["id"]: one["verdict"] for one in claims.judge(summary, []) if one["id"] in names}

  assert verdicts() == dict.fromkeys(names, "supported")
  monkeypatch.setattr(plans, "CARD", 2 * 2**30)
  heavy = {**KEPT, "llama_7b": {"full": {"total": 29}, "lora": {"total": 10}}}
  monkeypatch.setattr(plans, "kept", lambda: heavy)
  assert verdicts() == {**dict.fromkeys(names[:3], "contradicted"), "adapter-mb": "supported"}
