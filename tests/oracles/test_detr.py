"""DETR on a ResNet against transformers on torch, outputs, states, gradients and back; PEFT's adapters of detectors."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

import peftjax
from peftjax import loading, masks
from peftjax.errors import UserError
from peftjax.models import writing
from peftjax.models.detr import nearest
from peftjax.models.family import module_key
from peftjax.models.layers import Runtime
from tests.oracles import vision

RESNET = {"embedding_size": 6, "hidden_sizes": [8, 12, 12, 20], "depths": [1, 2, 1, 1], "layer_type": "basic"}
BOTTLENECK = {"layer_type": "bottleneck", "downsample_in_first_stage": True, "depths": [2, 1], "hidden_sizes": [8, 16]}
SIZES = {
  "d_model": 24,
  "encoder_layers": 2,
  "decoder_layers": 3,
  "encoder_attention_heads": 3,
  "decoder_attention_heads": 4,
  "encoder_ffn_dim": 20,
  "decoder_ffn_dim": 28,
  "num_queries": 5,
  "num_labels": 3,
}
CASES = {
  "sine": ("DetrForObjectDetection", {}, {}),
  "auxiliary": ("DetrForObjectDetection", {"auxiliary_loss": True, "activation_function": "gelu"},
                {"hidden_act": "silu", **BOTTLENECK}),
  "learned": ("DetrForObjectDetection", {"position_embedding_type": "learned"}, {"downsample_in_bottleneck": True,
              **BOTTLENECK, "downsample_in_first_stage": False}),
  "bare": ("DetrModel", {}, {}),
}  # fmt: skip


@functools.cache
def model(name):
  """(torch model in evaluation mode with random weights and statistics, its folder)."""
  class_name, sizes, backbone = CASES[name]
  resnet = {**RESNET, **backbone}
  resnet = transformers.ResNetConfig(**resnet, out_features=[f"stage{len(resnet['depths'])}"])
  config = transformers.DetrConfig(use_timm_backbone=False, backbone_config=resnet, **{**SIZES, **sizes})
  torch.manual_seed(0)
  made = getattr(transformers, class_name)(config).eval()
  for name, values in [*made.named_parameters(), *made.named_buffers()]:
    if name.endswith(("running_var", "normalization.weight")):
      torch.nn.init.uniform_(values, 0.5, 1.5)
    else:
      centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
      # Features of a size that attention's softmax does not blow rounding up with.
      torch.nn.init.normal_(values, mean=centre, std=0.2 if values.ndim < 4 else values[0].numel() ** -0.5)
  folder = Path(tempfile.mkdtemp(prefix="tiny-"))
  made.save_pretrained(folder)
  return made, folder


def inputs(height=47, width=70):
  """Pictures, of which the second is filled up on two sides."""
  mask = np.ones((2, height, width), np.int32)
  mask[1, height * 2 // 3 :], mask[1, :, width // 2 :] = 0, 0
  pixels = vision.pixels(height, width) * mask[:, None].astype(np.float32)
  return {"pixel_values": pixels, "pixel_mask": mask}


def tensors(arrays):
  return {name: torch.tensor(array) for name, array in arrays.items()}


def assert_close(ours, theirs, tolerance=1e-5):
  theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
  np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_all_hidden_states(name):
  reference, folder = model(name)
  ours = loading.load(folder, runtime=Runtime(output_hidden_states=True))
  assert ours.architecture == CASES[name][0]
  for arrays in (inputs(), {"pixel_values": vision.pixels(64, 33)}):
    with torch.no_grad():
      expected = reference(**tensors(arrays), output_hidden_states=True)
    found = ours(**arrays)
    for mine, theirs in (("hidden_states", "decoder_hidden_states"), ("encoder_hidden_states",) * 2):
      assert len(found[mine]) == len(expected[theirs])
      for one, other in zip(found[mine], expected[theirs]):
        assert_close(one, other)
    for key in expected.keys() - {"decoder_hidden_states", "encoder_hidden_states"}:
      assert_close(found[key], expected[key])


def test_earlier_layers_objects():
  reference, folder = model("auxiliary")
  arrays = inputs()
  target = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.2]])}
  with torch.no_grad():
    expected = reference(**tensors(arrays), labels=[target, target]).auxiliary_outputs
  found = peftjax.load(folder)(**arrays)
  assert len(found["auxiliary_logits"]) == len(expected) == 2
  for layer, one in enumerate(expected):
    assert_close(found["auxiliary_logits"][layer], one["logits"])
    assert_close(found["auxiliary_boxes"][layer], one["pred_boxes"])


@pytest.mark.parametrize("name", ["sine", "auxiliary", "learned"])
def test_gradients(name):
  reference, folder = model(name)
  ours, arrays = peftjax.load(folder), inputs()
  trainable, frozen = masks.partition(ours.params, ours.add(peftjax.methods.Full(), jax.random.key(0)).labels())

  def loss(leaves):
    outputs = ours.forward(masks.combine(leaves, frozen), arrays)
    return (outputs["logits"] ** 2).sum() + outputs["pred_boxes"].sum()

  found = writing.to_checkpoint(ours.family, jax.grad(loss)(trainable), ours.stacks)
  assert not any("normalization" in name for name in found)  # the four of them are buffers
  reference.requires_grad_(True)  # transformers holds the backbone still
  reference.zero_grad()
  outputs = reference(**tensors(arrays))
  ((outputs.logits**2).sum() + outputs.pred_boxes.sum()).backward()
  theirs = {name: one.grad for name, one in reference.named_parameters()}
  largest = max(float(one.abs().max()) for one in theirs.values())
  for name, gradient in found.items():
    module, _, leaf = name.rpartition(".")
    expected = theirs[f"{module_key(ours.family, module)}.{leaf}"]
    atol = 2e-5 * max(float(expected.abs().max()), 0.01 * largest)
    np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=atol, err_msg=name)
  assert len(found) == len(theirs)


@pytest.mark.parametrize("name", ["auxiliary", "learned", "bare"])
def test_saved_models_load_in_transformers(name, tmp_path):
  reference, folder = model(name)
  peftjax.load(folder).save(tmp_path / "saved")
  kind = getattr(transformers, CASES[name][0])
  again, report = kind.from_pretrained(tmp_path / "saved", output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"]
  for (name, mine), (_, theirs) in zip(again.state_dict().items(), reference.state_dict().items()):
    assert torch.equal(mine, theirs), name
  before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "saved"))
  assert before == after


def test_a_mask_is_read_at_the_places_that_torch_reads():
  for old, new in ((47, 2), (33, 5), (640, 20), (7, 7), (1333, 42), (5, 9)):
    expected = torch.nn.functional.interpolate(torch.arange(old, dtype=torch.float32)[None, None], size=new)
    assert nearest(old, new).tolist() == expected[0, 0].int().tolist()


ADAPTERS = {
  "detr": ("DetrForObjectDetection", ["q_proj", "v_proj"]),
  "detr-convolutions": ("DetrForObjectDetection", ["convolution", "input_projection", "o_proj", "fc2"]),
  "yolos": ("YolosForObjectDetection", ["query", "value", "intermediate.dense"]),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_of_peft_give_equal_outputs_and_go_back(name, tmp_path):
  class_name, targets = ADAPTERS[name]
  kind, is_detr = getattr(transformers, class_name), name.startswith("detr")
  _, folder = model("sine") if is_detr else vision.model(class_name)
  torch.manual_seed(1)
  lora = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False,
                         modules_to_save=["class_labels_classifier", "bbox_predictor"])  # fmt: skip
  adapted = peft.get_peft_model(kind.from_pretrained(folder), lora).eval()
  adapted.save_pretrained(tmp_path / "theirs")
  arrays = inputs() if is_detr else {"pixel_values": vision.pixels(15, 12)}
  ours = peftjax.load(folder, tmp_path / "theirs")
  found = ours(**arrays)
  ours.save_adapter(tmp_path / "ours")
  again = peft.PeftModel.from_pretrained(kind.from_pretrained(folder), tmp_path / "ours").eval()
  with torch.no_grad():
    expected, back = adapted(**tensors(arrays)), again(**tensors(arrays))
  merged = ours.merge()(**arrays)
  for key in ("logits", "pred_boxes"):
    assert_close(found[key], expected[key])
    assert_close(back[key], expected[key])
    assert_close(merged[key], expected[key], 1e-4)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"backbone_config": {"model_type": "timm_backbone"}}, "model_type='timm_backbone': expected 'resnet'"),
    ({"backbone_config": None}, "model_type=None: expected 'resnet'"),
    ({"d_model": 18, "encoder_attention_heads": 3, "decoder_attention_heads": 3}, "need a multiple of 4"),
    ({"position_embedding_type": "rope"}, "expected 'sine' or 'learned'"),
    ({"backbone_config": {"model_type": "resnet", "depths": [1]}}, "4 hidden_sizes and 1 depths"),
    ({"backbone_config": {"model_type": "resnet", "out_features": ["stage2"]}}, "expected 'stage4' as the last"),
  ],
)
def test_configs_that_are_none(changes, said):
  config = json.loads((model("sine")[1] / "config.json").read_text())
  with pytest.raises(UserError, match=said):
    loading.from_config({**config, **changes})
