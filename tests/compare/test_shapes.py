"""Counts that papers and model cards name."""

from __future__ import annotations

from peftjax.compare import shapes


def test_encoder_decoders():
  assert shapes.MT0_LARGE.total + shapes.MT0_LARGE.lora(8) == 1_231_940_608
  assert shapes.T5_XL.total == 2_849_757_184
  assert shapes.T5_XL.lora(8) == 4_718_592
  assert shapes.T5_XL.ia3() == 540_672
  assert shapes.T5_XXL.ia3() == 1_081_344
  assert shapes.T5_XXL.total == 11_135_332_352


def test_decoders():
  models = {model.name: model for model in shapes.DECODERS}
  assert models["Llama-3.2-3B"].total == 3_212_749_824
  assert models["Llama-3.2-3B"].lora(32) == 9_175_040
  assert models["LLaMA-7B"].total == 6_738_415_616
  assert models["SmolLM2-135M"].total == 134_515_008
  assert shapes.GPT3_LORA_R4 == 18_874_368


def test_a_lora_step_is_two_thirds_of_a_full_one():
  for model in shapes.DECODERS:
    assert 2 / 3 < model.lora_step_flops(8) / model.full_step_flops() < 0.675
