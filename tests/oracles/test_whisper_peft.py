"""PEFT's adapters on Whisper in and out, with equal outputs."""

from __future__ import annotations

import json

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import peftjax
from tests.oracles import speech
from tests.oracles.test_vit_peft import assert_close


def torch_logits(class_name, model):
  return speech.outputs(model, speech.inputs(class_name)).logits.numpy()


def fresh(class_name):
  return getattr(transformers, class_name).from_pretrained(speech.model(class_name)[1], attn_implementation="eager")


@pytest.mark.parametrize("class_name", [speech.GENERATION, speech.CLASSIFICATION])
def test_an_adapter_of_peft_gives_equal_outputs_and_goes_back(class_name, tmp_path):
  torch.manual_seed(0)
  is_classifier = class_name == speech.CLASSIFICATION
  lora = peft.LoraConfig(
    r=3,
    lora_alpha=5,
    target_modules=["q_proj", "v_proj", "fc2"],
    rank_pattern={"v_proj": 2},
    modules_to_save=["projector", "classifier"] if is_classifier else None,
    init_lora_weights=False,
  )
  adapted = peft.get_peft_model(fresh(class_name), lora).eval()
  adapted.save_pretrained(tmp_path / "theirs")
  expected = torch_logits(class_name, adapted)
  folder, batch = speech.model(class_name)[1], speech.inputs(class_name)
  ours = peftjax.load(folder, tmp_path / "theirs")
  assert_close(ours(**batch)["logits"], expected)
  assert np.abs(expected - torch_logits(class_name, speech.model(class_name)[0])).max() > 0.1
  ours.save_adapter(tmp_path / "ours")
  written = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
  assert sorted(written["target_modules"]) == ["fc2", "q_proj", "v_proj"]
  again = peft.PeftModel.from_pretrained(fresh(class_name), tmp_path / "ours").eval()
  assert_close(torch_logits(class_name, again), expected)
  merged = ours.merge()(**batch)["logits"]
  np.testing.assert_allclose(merged, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_whole_module_goes_back_with_what_never_trains_here(tmp_path):
  """Of `embed_positions` the decoder's are learned, the encoder's computed: PEFT trains and saves both."""
  lora = peft.LoraConfig(r=2, target_modules=["v_proj"], modules_to_save=["embed_positions"])
  adapted = peft.get_peft_model(fresh(speech.GENERATION), lora).eval()
  with torch.no_grad():
    for name, leaf in adapted.named_parameters():
      if "modules_to_save" in name:
        leaf.add_(0.3 * torch.randn(leaf.shape, generator=torch.Generator().manual_seed(len(name))))
  adapted.save_pretrained(tmp_path / "theirs")
  ours = peftjax.load(speech.model(speech.GENERATION)[1], tmp_path / "theirs")
  assert_close(ours(**speech.inputs(speech.GENERATION))["logits"], torch_logits(speech.GENERATION, adapted))
  ours.save_adapter(tmp_path / "ours")
  theirs, found = (load_file(tmp_path / one / "adapter_model.safetensors") for one in ("theirs", "ours"))
  assert theirs.keys() == found.keys() and all((theirs[key] == found[key]).all() for key in theirs)
  assert json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["modules_to_save"] == ["embed_positions"]


def test_the_counts_that_peft_prints(capsys):
  """LoRA of rank 32 on queries and values, of Whisper large-v2 in PEFT's guide to speech recognition."""
  sizes = {"d_model": 1280, "encoder_layers": 32, "decoder_layers": 32, "encoder_attention_heads": 20,
           "decoder_attention_heads": 20, "encoder_ffn_dim": 5120, "decoder_ffn_dim": 5120}  # fmt: skip
  lora = {"r": 32, "target_modules": ["q_proj", "v_proj"]}
  with torch.device("meta"):
    theirs = peft.get_peft_model(
      transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**sizes)), peft.LoraConfig(**lora)
    )
  theirs.print_trainable_parameters()
  assert "trainable params: 15,728,640 || all params: 1,559,033,600 || trainable%: 1.0089" in capsys.readouterr().out
  ours = peftjax.loading.from_config({"model_type": "whisper", **sizes})
  adapted = ours.add(peftjax.methods.LoRA(rank=32))
  count = peftjax.masks.count
  assert count(ours.params).parameters == 1_543_304_960
  assert count(adapted.params).parameters == 1_559_033_600
