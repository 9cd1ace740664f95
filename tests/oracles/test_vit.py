"""ViT, DeiT, DINOv2 and CLIP's images against transformers on torch: outputs, states, gradients, and the way back."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import peftjax
from peftjax import UserError, loading
from peftjax.models import writing
from peftjax.models.family import module_key
from peftjax.models.layers import Runtime
from peftjax.models.resampling import matrix
from tests.oracles import vision

CLASSES = {
  "vit": ("ViTForImageClassification", {"qkv_bias": False}),
  "vit-bare": ("ViTModel", {"pooler_output_size": 7, "pooler_act": "relu"}),
  "deit": ("DeiTForImageClassification", {}),
  "deit-bare": ("DeiTModel", {}),
  "deit-teacher": ("DeiTForImageClassificationWithTeacher", {"hidden_act": "quick_gelu"}),
  "dinov2": ("Dinov2ForImageClassification", {"head_dim": 5}),
  "dinov2-bare": ("Dinov2Model", {"use_mask_token": False}),
  "dinov2-swiglu": ("Dinov2ForImageClassification", {"use_swiglu_ffn": True}),
  "registers": ("Dinov2WithRegistersForImageClassification", {}),
  "clip": ("CLIPForImageClassification", {}),
  "clip-bare": ("CLIPVisionModel", {"hidden_act": "gelu"}),
  "clip-projection": ("CLIPVisionModelWithProjection", {}),
  "registers-bare": ("Dinov2WithRegistersModel", {"use_swiglu_ffn": True}),
  "yolos": ("YolosForObjectDetection", {}),
  "yolos-plain": ("YolosForObjectDetection", {"use_mid_position_embeddings": False, "image_size": (16, 11)}),
  "yolos-bare": ("YolosModel", {"qkv_bias": False}),
}


def assert_close(ours, theirs, tolerance=1e-5):
  theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
  np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_and_all_hidden_states(name):
  class_name, sizes = CLASSES[name]
  reference, folder = vision.model(class_name, **sizes)
  ours = loading.load(folder, runtime=Runtime(output_hidden_states=True))
  assert ours.architecture == class_name
  for height, width in ((15, 15), (21, 18), (10, 13)):  # as learned, larger, smaller with pixels left over
    pictures = vision.pixels(height, width)
    with torch.no_grad():
      expected = vision.outputs(reference, pictures, output_hidden_states=True)
    found = ours(pixel_values=pictures)
    assert set(expected.keys()) <= set(found)
    assert len(found["hidden_states"]) == len(expected.hidden_states) == 4
    for mine, theirs in zip(found["hidden_states"], expected.hidden_states):
      assert_close(mine, theirs)
    for key in expected.keys() - {"hidden_states"}:
      assert_close(found[key], expected[key])


@pytest.mark.parametrize("name", CLASSES)
def test_gradients(name):
  class_name, sizes = CLASSES[name]
  reference, folder = vision.model(class_name, **sizes)
  ours, pictures = peftjax.load(folder), vision.pixels(18, 12)
  key = "logits" if "logits" in ours(pixel_values=pictures) else "last_hidden_state"

  def loss(params):
    return (ours.forward(params, {"pixel_values": pictures})[key] ** 2).sum()

  found = writing.to_checkpoint(ours.family, jax.grad(loss)(ours.params), ours.stacks)
  reference.zero_grad()
  (vision.outputs(reference, pictures)[key] ** 2).sum().backward()
  theirs = {name: one.grad for name, one in reference.named_parameters() if one.grad is not None}
  largest = max(float(one.abs().max()) for one in theirs.values())
  for name, gradient in found.items():
    module, _, leaf = name.rpartition(".")
    if module.endswith("weights_in"):  # one matrix in checkpoints, two modules in transformers
      expected = torch.cat([theirs[f"{module[:-10]}{part}_proj.{leaf}"] for part in ("gate", "up")])
    else:
      renamed = f"{module_key(ours.family, module)}.{leaf}" if module else leaf
      renamed = renamed.replace("encoder.mid_position", "encoder.interpolation.mid_position")
      expected = theirs.get(renamed.replace("weights_out", "down_proj"))
    if expected is None:  # what torch never reads: the mask token, and a pooler beside the states
      assert not np.any(gradient), name
    else:
      atol = 1e-5 * max(float(expected.abs().max()), 0.01 * largest)  # a key's bias has none but rounding
      np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=atol, err_msg=name)


@pytest.mark.parametrize("name", CLASSES)
def test_saved_models_load_in_transformers(name, tmp_path):
  class_name, sizes = CLASSES[name]
  reference, folder = vision.model(class_name, **sizes)
  peftjax.load(folder).save(tmp_path / "saved")
  again, report = getattr(transformers, class_name).from_pretrained(tmp_path / "saved", output_loading_info=True)
  assert not report["missing_keys"]
  assert not report["unexpected_keys"]
  for (name, mine), (_, theirs) in zip(again.state_dict().items(), reference.state_dict().items()):
    assert torch.equal(mine, theirs), name
  before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "saved"))
  assert before == after


@pytest.mark.parametrize("class_name", ["ViTModel", "Dinov2Model"])
def test_positions_of_a_grid_that_is_no_square_are_not_resampled(class_name):
  """transformers would take 4 x 1 positions for 2 x 2, in DINOv2 at any size."""
  reference, folder = vision.model(class_name, image_size=(12, 3))
  if class_name == "ViTModel":
    with torch.no_grad():
      expected = reference(torch.tensor(vision.pixels(12, 3))).last_hidden_state
    assert_close(peftjax.load(folder)(pixel_values=vision.pixels(12, 3))["last_hidden_state"], expected)
  with pytest.raises(UserError, match="positions for 4 x 1 cannot be resampled"):
    peftjax.load(folder)(pixel_values=vision.pixels(12, 3 if class_name == "Dinov2Model" else 6))


def test_boxes_are_not_rounded_to_the_dtype_of_the_layers():
  """A bfloat16 between a half and one has steps of .4 per cent, three pixels of a picture of 800."""
  _, folder = vision.model("YolosForObjectDetection")
  ours = loading.load(folder, runtime=Runtime(compute_dtype=jnp.bfloat16))
  shapes = jax.eval_shape(lambda pixels: ours(pixel_values=pixels), vision.pixels())
  assert shapes["pred_boxes"].dtype == jnp.float32 and shapes["logits"].dtype == jnp.bfloat16


def test_two_thirds_of_one_feature_are_none():
  with pytest.raises(UserError, match="1 features are too few for use_swiglu_ffn"):
    loading.from_config({"model_type": "dinov2", "hidden_size": 1, "num_attention_heads": 1, "mlp_ratio": 1,
                         "use_swiglu_ffn": True, "architectures": ["Dinov2Model"]})  # fmt: skip


def test_masked_patches():
  reference, folder = vision.model("Dinov2Model")
  pictures = vision.pixels()
  hidden = np.random.default_rng(1).random((2, 25)) < 0.4
  expected = reference(torch.tensor(pictures), bool_masked_pos=torch.tensor(hidden))
  assert_close(
    peftjax.load(folder)(pixel_values=pictures, bool_masked_pos=hidden)["last_hidden_state"], expected.last_hidden_state
  )


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("new", "old"), [(3, 7), (16, 37), (11, 4), (5, 5), (1, 6), (9, 1)])
def test_the_resampling_matrix_is_torchs(new, old, antialias):
  samples = torch.eye(old)[None, :, :, None].repeat(1, 1, 1, old)  # each old row alone
  expected = torch.nn.functional.interpolate(samples, size=(new, old), mode="bicubic", antialias=antialias)
  assert_close(matrix(new, old, antialias).T, expected[0, :, :, 0], 1e-6)


@pytest.mark.slow  # 90 MB to download
def test_the_packaged_vision_transformer():
  folder = loading.folder_of("packaged:dinov2-small-focus")
  reference, report = transformers.Dinov2Model.from_pretrained(folder, output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"]
  ours = peftjax.load("packaged:dinov2-small-focus")
  for height, width in ((98, 98), (126, 70)):
    pictures = vision.pixels(height, width)
    with torch.no_grad():
      expected = reference.eval()(torch.tensor(pictures))
    assert_close(ours(pixel_values=pictures)["last_hidden_state"], expected.last_hidden_state)
