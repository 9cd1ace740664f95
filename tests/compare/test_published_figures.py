"""Figures of published models: the page and its verdicts against the models' shapes and kept plans, once more."""

from __future__ import annotations

import json

import pytest

from experiments import plans as making
from experiments import published_figures as figures
from experiments.published_models import DECODERS, T0_3B, T0_11B

KEPT = making.kept()


@pytest.fixture(scope="module")
def judged():
  return figures.verdicts(KEPT)


def test_the_page_and_the_verdicts_are_what_is_kept(judged):
  assert figures.PAGE.read_text() == figures.page(KEPT, judged)
  assert json.loads(figures.VERDICTS.read_text()) == json.loads(json.dumps(judged))


def test_verdicts_hold_to_the_published_numbers(judged):
  assert "2,359,296 of 1,231,940,608" in judged["trainable-share-mt0"]["reason"]
  assert judged["checkpoint-40gb-to-mb"]["effect"] == pytest.approx(4.2, rel=0.05)
  assert all(one["verdict"] == "supported" for name, one in judged.items() if "scales" not in name)


def test_a_ratio_of_bytes_is_called_one(judged):
  one = judged["memory-3x"]
  assert 1 < one["effect"] < 100 and one["unit"].startswith("times the bytes")


def test_verdicts_follow_the_bytes(monkeypatch):
  monkeypatch.setattr(figures, "CARD", 2 * 2**30)
  heavy = {**KEPT, "llama_7b": {"full": {"total": 29}, "lora": {"total": 10}}}
  for one in (figures.on_a_card(heavy), figures.with_checkpointing(heavy), figures.three_times(heavy)):
    assert one["verdict"] == "contradicted"


@pytest.mark.parametrize(
  ("shapes", "total", "rank", "added"),
  [
    (T0_3B, 2_849_757_184, 8, 4_718_592),
    (T0_11B, 11_135_332_352, 8, 9_437_184),
    (DECODERS["Llama-3.2-3B"], 3_212_749_824, 32, 9_175_040),
    (DECODERS["LLaMA-7B"], 6_738_415_616, 8, 4_194_304),
    (DECODERS["SmolLM2-135M"], 134_515_008, 8, 460_800),
  ],
)
def test_counts_that_papers_and_model_cards_name(shapes, total, rank, added):
  one = figures.lora(shapes, rank)
  assert (one["base"], one["adapter"]) == (total, added)


def test_counts_of_a_denoiser():
  assert figures.denoiser() == (797_184, 859_520_964)


def test_a_lora_step_is_two_thirds_of_a_full_one():
  for shapes in (DECODERS["SmolLM2-135M"], DECODERS["LLaMA-7B"]):  # a tied and an untied output layer
    one = figures.lora(shapes, 8)
    assert 2 / 3 < (4 * one["multiplied"] + 6 * one["adapter"]) / (6 * one["multiplied"]) < 0.675


@pytest.mark.parametrize("kept", KEPT["t0_3b"], ids=lambda one: f"{one['method']}-{one['precision']}-{one['remat']}")
def test_each_step_of_t0_3b_takes_what_was_kept(kept, tmp_path):
  method = {"lora": making.LORA, "full": {"name": "full"}}[kept["method"]]
  again = making.t0_step(tmp_path, method, kept["precision"], kept["remat"])
  assert {"method": kept["method"], **again} == kept


def test_weights_gradients_and_moments_of_full_fine_tuning_are_four_times_the_published_count():
  full = next(one for one in KEPT["t0_3b"] if one["method"] == "full")
  parts = full["arguments"]
  assert parts["trainable"] == parts["gradients"] == 4 * 2_849_757_184  # memory_anchors.json: t5v11_xl_total
  assert parts["optimizer"] == pytest.approx(8 * 2_849_757_184, rel=1e-6)


@pytest.mark.slow
def test_the_7b_steps_compile_to_what_was_kept(tmp_path):
  for name, found in making.llama(tmp_path).items():
    assert found["total"] == pytest.approx(KEPT["llama_7b"][name]["total"], rel=0.02)
