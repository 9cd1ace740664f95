"""CLIP whole against transformers on torch: both towers, one of them, gradients, the way back."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

import peftjax
from peftjax import UserError, methods, tasks
from peftjax.loading import load
from peftjax.models import writing
from peftjax.models.layers import Runtime
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


def test_cosines_are_not_rounded_to_the_dtype_of_the_layers(pair):
  """A scale of 100 would make .4 of a bfloat16's rounding of a cosine near 1."""
  ours = peftjax.load(pair[1], runtime=Runtime(compute_dtype=jnp.bfloat16))
  found = jax.eval_shape(lambda read: ours(**read), given())
  assert {name: one.dtype for name, one in found.items()} == dict.fromkeys(found, jnp.float32)


def test_the_contrastive_loss_and_its_gradients(pair):
  """Of two pairs and a row that only fills the batch."""
  reference, folder = pair
  ours, task = peftjax.load(folder), tasks.make("image_text_contrastive")
  inputs = {"input_ids": tokens(2), "pixel_values": vision.pixels()}
  filled = {name: np.concatenate([value, value[:1]]) for name, value in inputs.items()}
  batch = {**filled, "weight": np.array([1, 1, 0], np.float32), "index": np.arange(3)}

  def loss(params):
    total, weight, _ = task.loss(lambda read: ours.forward(params, read), batch, jax.random.key(0))
    return total / weight

  value, gradients = jax.jit(jax.value_and_grad(loss))(ours.params)
  found = writing.to_checkpoint(ours.family, gradients, ours.stacks)
  reference.zero_grad()
  theirs = reference(**{name: torch.tensor(value) for name, value in inputs.items()}, return_loss=True).loss
  theirs.backward()
  assert_close(value, theirs)
  theirs = {name: one.grad.numpy() for name, one in reference.named_parameters()}
  assert found.keys() == theirs.keys()
  largest = max(np.abs(one).max() for one in theirs.values())
  for name, gradient in found.items():
    atol = 1e-5 * max(np.abs(theirs[name]).max(), 0.05 * largest)
    np.testing.assert_allclose(gradient, theirs[name], rtol=1e-4, atol=atol, err_msg=name)


def test_an_adapter_of_peft_on_both_towers_gives_equal_outputs_and_goes_back(pair, tmp_path):
  def fresh():
    return transformers.CLIPModel.from_pretrained(pair[1])

  torch.manual_seed(0)
  lora = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "fc2"], init_lora_weights=False)
  theirs = peft.get_peft_model(fresh(), lora).eval()
  theirs.save_pretrained(tmp_path / "theirs")
  inputs = {name: torch.tensor(value) for name, value in given().items()}
  with torch.no_grad():
    expected = theirs(**inputs).logits_per_image
  ours = peftjax.load(pair[1], tmp_path / "theirs")
  assert_close(ours(**given())["logits_per_image"], expected)
  ours.save_adapter(tmp_path / "ours")
  again = peft.PeftModel.from_pretrained(fresh(), tmp_path / "ours").eval()
  with torch.no_grad():
    assert_close(np.asarray(ours(**given())["logits_per_image"]), again(**inputs).logits_per_image)


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
