"""CLIP whole against transformers on torch: both towers, one of them, gradients, the way back."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import torch
import transformers

import peftjax
from peftjax import UserError, methods
from peftjax.loading import load
from peftjax.models import writing
from tests.oracles import vision
from tests.oracles.diffusion import TEXT, assert_close, saved, tokens, widened

VISION = {**vision.SIZES, "intermediate_size": 40, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def pair():
  """(torch model, its folder)."""
  config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=7)
  made = widened(transformers.CLIPModel(config))
  made.logit_scale.data.fill_(1.5)
  return made, saved(made)


def given():
  return {"input_ids": tokens(), "pixel_values": vision.pixels()}


def test_both_towers(pair):
  reference, folder = pair
  ours = peftjax.load(folder)
  assert ours.architecture == "CLIPModel"
  with torch.no_grad():
    expected = reference(**{name: torch.tensor(value) for name, value in given().items()})
  found = ours(**given())
  for name in ("text_embeds", "image_embeds", "logits_per_image", "logits_per_text"):
    assert_close(found[name], expected[name])
  assert_close(ours(input_ids=tokens())["text_embeds"], expected.text_embeds)
  assert_close(ours(pixel_values=vision.pixels())["image_embeds"], expected.image_embeds)
  with pytest.raises(UserError, match="takes input_ids, pixel_values, or both"):
    ours()


def test_gradients_of_the_contrastive_loss(pair):
  reference, folder = pair
  ours = peftjax.load(folder)
  inputs = {**given(), "input_ids": tokens(2)}

  def loss(params):
    logits = ours.forward(params, inputs)["logits_per_text"]
    each = [jax.nn.log_softmax(one)[np.arange(2), np.arange(2)].mean() for one in (logits, logits.T)]
    return -sum(each) / 2

  found = writing.to_checkpoint(ours.family, jax.jit(jax.grad(loss))(ours.params), ours.stacks)
  reference.zero_grad()
  reference(**{name: torch.tensor(value) for name, value in inputs.items()}, return_loss=True).loss.backward()
  theirs = {name: one.grad.numpy() for name, one in reference.named_parameters()}
  assert found.keys() == theirs.keys()
  largest = max(np.abs(one).max() for one in theirs.values())
  for name, gradient in found.items():
    atol = 1e-5 * max(np.abs(theirs[name]).max(), 0.05 * largest)
    np.testing.assert_allclose(gradient, theirs[name], rtol=1e-4, atol=atol, err_msg=name)


def test_saved_models_load_in_transformers(pair, tmp_path):
  reference, folder = pair
  peftjax.load(folder).save(tmp_path)
  again, report = transformers.CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"]
  for (name, mine), (_, theirs) in zip(again.state_dict().items(), reference.state_dict().items(), strict=True):
    assert torch.equal(mine, theirs), name
  before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path))
  assert before == after


def test_one_tower_of_a_folder_of_both(pair):
  model = load(pair[1], task="image_classification", num_labels=4)
  assert model.architecture == "CLIPForImageClassification"
  assert model(pixel_values=vision.pixels())["logits"].shape == (2, 4)


def test_lora_acts_in_both_towers(pair):
  model = peftjax.load(pair[1]).add(methods.LoRA(rank=2, init="orthogonal", targets=("q_proj", "fc2")))
  names = {name.split(".")[0] for site in model.bound[0].sites for name in site.names}
  assert names == {"text_model", "vision_model"}
