"""PEFT's adapters on vision transformers in and out, under the names that modules have now and those of before."""

from __future__ import annotations

import json

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import peftjax
from peftjax import masks, methods
from peftjax.errors import UserError
from tests.oracles import vision

# Module's name now -> in checkpoints, and in adapters that were written before transformers 5.
BEFORE = {
  "vit.layers": "vit.encoder.layer",
  "attention.q_proj": "attention.attention.query",
  "attention.v_proj": "attention.attention.value",
  "attention.o_proj": "attention.output.dense",
  "layer.0.mlp.fc2": "layer.0.output.dense",
  "layer.1.mlp.fc2": "layer.1.output.dense",
  "layer.2.mlp.fc2": "layer.2.output.dense",
}
CLASSES = [
  "ViTForImageClassification",
  "DeiTForImageClassification",
  "Dinov2ForImageClassification",
  "CLIPForImageClassification",
]


def torch_logits(model):
  with torch.no_grad():
    return model(torch.tensor(vision.pixels())).logits.numpy()


def fresh(class_name):
  return getattr(transformers, class_name).from_pretrained(vision.model(class_name)[1])


def in_peft(class_name, folder):
  return torch_logits(peft.PeftModel.from_pretrained(fresh(class_name), folder).eval())


def assert_close(ours, theirs):
  np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("class_name", CLASSES)
def test_an_adapter_of_peft_gives_equal_outputs_and_goes_back(class_name, tmp_path):
  torch.manual_seed(0)
  lora = peft.LoraConfig(
    r=3,
    lora_alpha=5,
    target_modules=["q_proj", "v_proj", "fc2"],
    rank_pattern={"v_proj": 2},
    modules_to_save=["classifier"],
    init_lora_weights=False,
  )
  adapted = peft.get_peft_model(fresh(class_name), lora).eval()
  adapted.save_pretrained(tmp_path / "theirs")
  expected = torch_logits(adapted)
  folder = vision.model(class_name)[1]
  ours = peftjax.load(folder, tmp_path / "theirs")
  assert_close(ours(pixel_values=vision.pixels())["logits"], expected)
  ours.save_adapter(tmp_path / "ours")
  written = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
  assert sorted(written["target_modules"]) == ["fc2", "q_proj", "v_proj"]
  assert_close(in_peft(class_name, tmp_path / "ours"), expected)
  merged = ours.merge()(pixel_values=vision.pixels())["logits"]
  np.testing.assert_allclose(merged, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_an_adapter_from_before_the_names_changed(tmp_path):
  class_name = CLASSES[0]
  lora = peft.LoraConfig(r=3, target_modules=["q_proj", "o_proj"], rank_pattern={"q_proj": 2}, init_lora_weights=False)
  adapted = peft.get_peft_model(fresh(class_name), lora).eval()
  adapted.save_pretrained(tmp_path)
  tensors = load_file(tmp_path / "adapter_model.safetensors")
  for now, then in BEFORE.items():
    tensors = {key.replace(now, then): value for key, value in tensors.items()}
  save_file(tensors, tmp_path / "adapter_model.safetensors")
  config = json.loads((tmp_path / "adapter_config.json").read_text())
  config |= {"target_modules": ["query", "attention.output.dense"], "rank_pattern": {"query": 2}}
  (tmp_path / "adapter_config.json").write_text(json.dumps(config))
  ours = peftjax.load(vision.model(class_name)[1], tmp_path)
  assert_close(ours(pixel_values=vision.pixels())["logits"], torch_logits(adapted))
  ours.save_adapter(tmp_path / "again")
  assert_close(in_peft(class_name, tmp_path / "again"), torch_logits(adapted))


@pytest.mark.parametrize(
  ("targets", "found"),
  [
    (("query", "value"), ["q_proj", "v_proj"]),
    (("q_proj", "v_proj"), ["q_proj", "v_proj"]),
    (("output.dense",), ["fc2", "o_proj"]),
    (("fc2",), ["fc2"]),
    ((r"*.1.mlp.fc1", "k_proj"), 4),
    (r".*layers\.[02]\..*o_proj", 2),
    ("all-linear", 18),
    ((), ["q_proj", "v_proj"]),
  ],
)
def test_targets_by_either_name(targets, found, tmp_path):
  class_name = CLASSES[0]
  model = peftjax.load(vision.model(class_name)[1]).add(methods.LoRA(rank=2, targets=targets))
  moved = {path: leaf + 0.1 for path, leaf in masks.flatten(model.params).items() if path in model.adapter_paths()}
  model = model.with_params(masks.unflatten({**masks.flatten(model.params), **moved}))
  model.save_adapter(tmp_path / "adapter")
  written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
  assert (written if isinstance(found, list) else len(written)) == found
  assert_close(in_peft(class_name, tmp_path / "adapter"), np.asarray(model(pixel_values=vision.pixels())["logits"]))


@pytest.mark.parametrize(
  "method", [methods.IA3(), methods.LayerNormTuning(), methods.DoRA(rank=2), methods.OFT(oft_block_size=4)]
)
def test_other_adapters_of_ours_in_peft(method, tmp_path):
  class_name = CLASSES[0]
  model = peftjax.load(vision.model(class_name)[1]).add(method, jax.random.key(1))
  groups = masks.flatten(model.labels())
  moved = {
    path: leaf + (0.05 * jax.random.normal(jax.random.key(2), leaf.shape) if groups[path] != "frozen" else 0)
    for path, leaf in masks.flatten(model.params).items()
  }
  model = model.with_params(masks.unflatten(moved))
  model.save_adapter(tmp_path / "adapter")
  assert_close(in_peft(class_name, tmp_path / "adapter"), np.asarray(model(pixel_values=vision.pixels())["logits"]))


@pytest.mark.parametrize("method", [methods.Prompt(), methods.Prompt(deep=True), methods.PTuning(), methods.Prefix()])
def test_what_peft_has_for_tokens_alone(method, tmp_path):
  model = peftjax.load(vision.model(CLASSES[0])[1]).add(method)
  with pytest.raises(UserError, match="PEFT has prompts and prefixes for models of tokens alone"):
    model.save_adapter(tmp_path / "adapter")
